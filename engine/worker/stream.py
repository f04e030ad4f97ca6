"""`Stream`: work for a device, done in the order in which it is given.

A GPU has streams of its own: a call that gives it work returns before the work is done. A CPU that
computes beside the planner is made the same by a thread. So the host goes on to the next step in
either case, and only who asks for a result waits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

T = TypeVar("T")


class Stream(Protocol):
    """Where the calls are made that give a device its work."""

    @property
    def raises_at_once(self) -> bool:
        """Whether `run` itself raises what its work does: what it has taken does not fail."""

    def run(self, work: Callable[[], T]) -> Callable[[], T]:
        """Have `work` done after all that was given before. Returns the way to its result, which
        waits for it, and raises what it raised; so may `run` itself."""

    def close(self) -> None:
        """No more work will come; what has begun is waited for. Idempotent."""


class AtOnce:
    """In the caller's thread, at once: for devices with streams of their own, and for a CPU that
    does one thing after the other."""

    raises_at_once = True

    def run(self, work: Callable[[], T]) -> Callable[[], T]:
        result = work()
        return lambda: result

    def close(self) -> None:
        pass


class OwnThread:
    """In one thread, which alone calls the device: torch's workers belong to who calls them."""

    raises_at_once = False

    def __init__(self) -> None:
        own: list[int] = []
        self._own = own
        self._thread = ThreadPoolExecutor(
            1, "octavo-compute", initializer=lambda: own.append(threading.get_ident())
        )

    def run(self, work: Callable[[], T]) -> Callable[[], T]:
        if threading.get_ident() in self._own:  # it would wait for itself
            return AtOnce().run(work)
        future: Future[T] = self._thread.submit(work)
        return future.result

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
