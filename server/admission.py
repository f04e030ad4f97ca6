"""`Admission`: the bounded queue before the engine, and the place each request has in it.

A request enters the queue when its body has come in and leaves it with the first token of its last
prompt; in between it counts as one request, and with the tokens of those prompts that have not
begun. Who finds the queue full is sent away at once, with the time after which it is worth while
to come back: how long what waits now will take to begin, at the pace measured over the last half
minute in which anything waited.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Collection

from octavo.engine.errors import Draining, Overloaded

MEMORY_SECONDS = 30.0  # what is older counts for less than 1/e in the pace
LEAST_SECONDS = 1.0  # of waiting, before a pace is taken as measured so fast
UNMEASURED_SECONDS = 2.0  # told to those sent away before anything has left the queue
# OpenAI's clients do not come back by themselves where they are told to wait for longer.
LONGEST_RETRY_SECONDS = 60.0

Clock = Callable[[], float]
"""Seconds that only grow."""


class Line:
    """Things that wait, all of one kind, and the pace at which they get their turn.

    The pace is of the time in which anything waited: a quiet night does not slow it down.
    """

    def __init__(self, *, limit: int, clock: Clock) -> None:
        self.limit = limit
        self.waiting = 0
        self._clock = clock
        self._seen = clock()
        self._begun = 0.0  # how many had their turn, the older the less
        self._seconds = 0.0  # in which anything waited, the older the less

    @property
    def full(self) -> bool:
        return self.waiting >= self.limit

    def join(self, count: int) -> None:
        self._age()
        self.waiting += count

    def begin(self, count: int) -> None:
        """So many have their turn."""
        self._age()
        self.waiting -= count
        self._begun += count

    def leave(self, count: int) -> None:
        """So many wait no longer, and never had their turn."""
        self._age()
        self.waiting -= count

    def seconds(self) -> float | None:
        """How long it takes until all that waits now has had its turn; None: nobody knows yet."""
        if not self.waiting:
            return 0.0
        self._age()
        if not self._begun:
            return None
        return self.waiting * max(self._seconds, LEAST_SECONDS) / self._begun

    def _age(self) -> None:
        now = self._clock()
        if self.waiting:
            kept = math.exp((self._seen - now) / MEMORY_SECONDS)
            self._begun *= kept
            self._seconds = self._seconds * kept + MEMORY_SECONDS * (1.0 - kept)
        self._seen = now


class Admission:
    """Who may come in. Use it from one event loop."""

    def __init__(
        self,
        *,
        max_requests: int,
        max_tokens: int,
        longest: float | None = None,
        token_seconds: Callable[[], float] = lambda: 0.0,
        clock: Clock = time.monotonic,
    ) -> None:
        """`longest`: the seconds that any request may take; None: as long as it takes.
        `token_seconds` tells what the engine takes for one token of a prompt; 0: not known."""
        self.requests = Line(limit=max_requests, clock=clock)
        self.tokens = Line(limit=max_tokens, clock=clock)
        self.live = 0  # requests that are in, waiting or not
        self.draining = False
        self.longest = longest
        self._token_seconds = token_seconds
        self.clock = clock
        self._emptied = asyncio.Event()

    def wait(self) -> float | None:
        """How long a newcomer will wait for its first token; None: nobody knows yet.

        What waits must at least be computed; how long it takes to get there, the pace tells.
        """
        lines = [line for line in (self.requests, self.tokens) if line.waiting]
        known = [seconds for line in lines if (seconds := line.seconds()) is not None]
        if (computing := self.tokens.waiting * self._token_seconds()) > 0:
            known.append(computing)
        return max(known, default=None) if lines else 0.0

    def require_room(self, deadline: float | None = None) -> None:
        """A first look, that costs nothing.

        Raises:
            Draining: nobody is let in any more.
            Overloaded: the queue is full, or what waits would not leave enough time.
        """
        if self.draining:
            raise Draining("The daemon is being shut down; ask another one.")
        if self.requests.full:
            raise self._overloaded(
                f"{self.requests.waiting} requests wait already, of {self.requests.limit} that may",
                "queue_requests",
            )
        if self.tokens.full:
            raise self._overloaded(
                f"{self.tokens.waiting} tokens of prompts wait already, of {self.tokens.limit} "
                f"that may",
                "queue_tokens",
            )
        self._require_time(deadline)

    def permit(self) -> Permit:
        """For a request that has just arrived. Whoever asks for it must release it."""
        return Permit(self)

    async def idle(self) -> None:
        """Returns when nobody is in."""
        while self.live:
            self._emptied.clear()
            await self._emptied.wait()

    def _require_time(self, deadline: float | None) -> None:
        wait = self.wait()
        if deadline is None or not wait or self.clock() + wait <= deadline:
            return
        left = max(0.0, deadline - self.clock())
        raise self._overloaded(
            f"It would wait for {wait:.1f} s, but {left:.1f} s are left of its time",
            "deadline",
            wait - left,
        )

    def _require_tokens(self, count: int) -> None:
        """A prompt that is alone may have any length: its context is what limits it."""
        if self.tokens.waiting and self.tokens.waiting + count > self.tokens.limit:
            raise self._overloaded(
                f"{self.tokens.waiting} tokens of prompts wait already, and with the {count} of "
                f"this request they were more than the {self.tokens.limit} that may",
                "queue_tokens",
            )

    def _overloaded(self, why: str, reason: str, seconds: float | None = None) -> Overloaded:
        wait = self.wait() if seconds is None else seconds
        wait = UNMEASURED_SECONDS if wait is None else wait
        wait = min(max(wait, LEAST_SECONDS), LONGEST_RETRY_SECONDS)
        return Overloaded(
            f"{why}; try again in {math.ceil(wait)} s.", retry_after=wait, reason=reason
        )

    def _went(self) -> None:
        self.live -= 1
        if not self.live:
            self._emptied.set()


class Permit:
    """What one request holds of the queue, from its arrival to the last byte of its answer."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._arrival = admission.clock()
        self._in = False
        self._queued = False
        self._prompts = 0  # that have not begun
        self._tokens = 0  # of these
        self.deadline: float | None = None
        self.limit_time(None)

    def limit_time(self, seconds: float | None) -> None:
        """It may take so long from its arrival on, or less where the operator says so."""
        given = [s for s in (seconds, self._admission.longest) if s is not None]
        self.deadline = self._arrival + min(given) if given else None

    @property
    def seconds_left(self) -> float | None:
        """Until its time is up; None: it has no limit."""
        return None if self.deadline is None else max(0.0, self.deadline - self._admission.clock())

    def require_room(self) -> None:
        """Raises what `Admission.require_room` does."""
        self._admission.require_room(self.deadline)

    def enter(self) -> None:
        """Take a place in the queue. Raises what `require_room` does."""
        self.require_room()
        self._in = self._queued = True
        self._admission.live += 1
        self._admission.requests.join(1)

    def weigh(self, prompts: Collection[Collection[int]]) -> None:
        """The token ids of its prompts are known now.

        Raises:
            Overloaded: with them too much would wait, or there is no longer enough time.
        """
        assert self._queued and not self._prompts, "it has entered, and is weighed once"
        tokens = sum(map(len, prompts))
        self._admission._require_tokens(tokens)
        self._admission._require_time(self.deadline)
        self._prompts, self._tokens = len(prompts), tokens
        self._admission.tokens.join(tokens)

    def begin(self, tokens: int) -> None:
        """One of its prompts, of so many tokens, has got its first token."""
        self._prompts -= 1
        self._tokens -= tokens
        self._admission.tokens.begin(tokens)
        if not self._prompts:
            self._queued = False
            self._admission.requests.begin(1)

    def release(self) -> None:
        """It is over, however it ended. Idempotent."""
        if self._tokens:
            self._admission.tokens.leave(self._tokens)
        if self._queued:
            self._admission.requests.leave(1)
        if self._in:
            self._admission._went()
        self._in = self._queued = False
        self._prompts = self._tokens = 0
