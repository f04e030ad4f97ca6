"""`Tally`: what one HTTP request costs, counted while it runs; in the end a `FinishedRequest`."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from octavo.engine.params import FinishReason, SamplingParams
from octavo.engine.step import Timing

from .record import FinishedRequest

_UNASKED = SamplingParams()  # as long as the engine is asked for nothing
_GIVEN_UP = (408, 499)  # its time was up, or nobody wanted it any more


@dataclass(slots=True)
class Tally:
    """Times in seconds, `arrival` on the monotonic clock."""

    id: str
    arrival: float = field(default_factory=time.monotonic)
    cache_owner: str = ""  # whose prefix cache it uses; empty: everybody's
    generating: bool = False  # it has come as far as the engine
    failure: BaseException | None = None  # what it ended with
    status: int | None = None  # what it ended with, where the status line had left before
    _params: SamplingParams = _UNASKED
    _prompts: int = 0
    _prompt_tokens: int = 0
    _cached_tokens: int = 0
    _first_token: float | None = None
    _output_tokens: dict[int, int] = field(default_factory=dict)  # by choice
    _last_tokens: dict[int, float] = field(default_factory=dict)  # when each choice got its last
    _reasons: dict[int, FinishReason] = field(default_factory=dict)
    _timings: list[Timing] = field(default_factory=list)

    def begin(self, params: SamplingParams, *, prompts: int, prompt_tokens: int) -> None:
        """The engine is about to be asked."""
        self.generating = True
        self._params = params
        self._prompts = prompts
        self._prompt_tokens = prompt_tokens

    def first_token(self, seconds: float, cached_tokens: int) -> None:
        """A prompt yielded its first token, `seconds` after arrival."""
        self._cached_tokens += cached_tokens
        if self._first_token is None:
            self._first_token = seconds

    def tokens(self, choice: int, count: int) -> float | None:
        """A choice got tokens; the time since its previous ones, None for the first."""
        now = time.monotonic()
        before = self._last_tokens.get(choice)
        self._last_tokens[choice] = now
        self._output_tokens[choice] = self._output_tokens.get(choice, 0) + count
        return None if before is None else now - before

    def finish(self, choice: int, reason: FinishReason | None, timing: Timing | None) -> None:
        """A choice has ended; the engine's timing of it where the engine ended it."""
        if reason is not None:
            self._reasons[choice] = reason
        if timing is not None:
            self._timings.append(timing)

    def fail(self, error: Exception, status: int) -> None:
        """It broke off with `error` after its answer had begun."""
        self.failure = error
        self.status = status

    def record(self, *, route: str, status: int) -> FinishedRequest:
        """Everything there is to say, now that the last byte has left."""
        total = time.monotonic() - self.arrival
        unfinished = FinishReason.ABORT if status in _GIVEN_UP else FinishReason.ERROR
        choices = self._prompts * self._params.n
        queue = prefill = decode = None
        if self._timings:
            queue = min(t.first_scheduled for t in self._timings) - self.arrival
        if queue is not None and self._first_token is not None:
            prefill = max(0.0, self._first_token - queue)
            decode = max(0.0, max(self._last_tokens.values(), default=self.arrival) - self.arrival)
            decode = max(0.0, decode - self._first_token)
        return FinishedRequest(
            id=self.id,
            route=route,
            status=status,
            total_seconds=total,
            prompt_tokens=self._prompt_tokens,
            output_tokens=sum(self._output_tokens.values()),
            cached_tokens=self._cached_tokens,
            longest_output=max(self._output_tokens.values(), default=0),
            n=self._params.n,
            max_tokens=self._params.max_tokens,
            finish_reasons=tuple(self._reasons.get(i, unfinished) for i in range(choices)),
            queue_seconds=queue,
            first_token_seconds=self._first_token,
            prefill_seconds=prefill,
            decode_seconds=decode,
            preemptions=max((t.preemptions for t in self._timings), default=0),
            error=_said(self.failure),
        )


def _said(failure: BaseException | None) -> str | None:
    return None if failure is None else str(failure) or type(failure).__name__
