"""`Bodies`: how much of the requests' bodies is held at the same time, all together.

A body costs memory from its first byte on, as text, as JSON and as tokens, and an answer may be as
long again. So what has been taken of it counts until the answer has been sent.
"""

from __future__ import annotations

from octavo.engine.errors import Overloaded

# Of each body. The HTTP server buffers as much for each connection in any case, so that few large
# bodies, coming slowly, keep nobody out whose request is an ordinary one.
UNCOUNTED_BYTES = 64 << 10
RETRY_SECONDS = 2.0


class Bodies:
    """Use it from one event loop."""

    def __init__(self, limit: int) -> None:
        """`limit` in bytes."""
        self.limit = limit
        self.held = 0

    def share(self) -> Share:
        """For one request. Whoever asks for it must release it."""
        return Share(self)


class Share:
    """What one request holds."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self._arrived = 0
        self._counted = 0

    def take(self, size: int) -> None:
        """So many more bytes have arrived.

        Raises:
            Overloaded: with them too much were held. A body that is alone may have any length.
        """
        bodies = self._bodies
        self._arrived += size
        more = max(0, self._arrived - UNCOUNTED_BYTES) - self._counted
        others = bodies.held - self._counted
        if more and others and bodies.held + more > bodies.limit:
            raise Overloaded(
                f"The bodies of other requests take {others} bytes already, and with this one they "
                f"were more than the {bodies.limit} that may (--max-body-memory); try again in "
                f"{RETRY_SECONDS:g} s.",
                retry_after=RETRY_SECONDS,
                reason="bodies",
            )
        self._counted += more
        bodies.held += more

    def release(self) -> None:
        """It is over, however it ended. Idempotent."""
        self._bodies.held -= self._counted
        self._counted = 0
