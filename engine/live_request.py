"""`LiveRequest`: a request somebody listens to, and all that is needed to resume it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

from .errors import OctavoError
from .params import Emitted, Request
from .step import Delta


@dataclass(slots=True, eq=False)
class _Choice:
    """What one choice has emitted, so that it can go on in another incarnation."""

    token_ids: list[int] = field(default_factory=list)
    finished: bool = False
    prompt_logprobs: int = 0  # entries received
    repeated: int = 0  # of those, entries that a resumed engine will send again
    cached_tokens_told: bool = False


class LiveRequest:
    """The deltas that have arrived for one request, and who waits for them.

    It remembers what each choice has emitted, so that another incarnation of the engine can go on
    with the very next token; what that one tells once more is left out.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.choices = [_Choice() for _ in range(request.sampling.n)]
        for choice, emitted in zip(self.choices, request.emitted, strict=False):
            choice.token_ids.extend(emitted.token_ids)
            choice.finished = emitted.finished
        self._open = len(self.choices) - len(self.ended_choices)  # choices that go on
        self._arrived: list[Delta] = []
        self.unread = 0  # output tokens and their log-probabilities, arrived and not taken
        self._failure: OctavoError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.known_before = False  # to an earlier incarnation of the engine
        # What this incarnation of the engine knows of it:
        self.submitted = False
        self.calls_before = 0  # roll calls before it was submitted
        self.gained = False  # a token, from this incarnation

    @property
    def failed(self) -> bool:
        """Whether it is over for another reason than that its choices have ended."""
        return self._failure is not None

    @property
    def ended(self) -> bool:
        return not self._open

    @property
    def over(self) -> bool:
        """Whether nothing more is wanted of the engine."""
        return self.failed or self.ended

    @property
    def ended_choices(self) -> list[int]:
        return [index for index, choice in enumerate(self.choices) if choice.finished]

    def arrive(self, delta: Delta) -> None:
        """Note what a delta brings; `wake` follows once per step."""
        choice = self.choices[delta.index]
        if choice.finished or self.failed:
            return  # it was finished here while the engine still computed it
        if delta.prompt_logprobs:
            skipped = min(choice.repeated, len(delta.prompt_logprobs))
            choice.repeated -= skipped
            delta = delta._replace(prompt_logprobs=delta.prompt_logprobs[skipped:])
            choice.prompt_logprobs += len(delta.prompt_logprobs)
        if delta.cached_tokens is not None:
            if choice.cached_tokens_told:
                delta = delta._replace(cached_tokens=None)
            choice.cached_tokens_told = True
        choice.token_ids.extend(delta.token_ids)
        if delta.last or delta.error is not None:
            self._end(choice)
        self._arrived.append(delta)
        self.unread += len(delta.token_ids)
        if delta.logprobs:
            self.unread += sum([len(scores.top_ids) for scores in delta.logprobs])

    def finish(self, index: int) -> None:
        """The listener itself ends a choice; what has arrived for it is dropped."""
        self._end(self.choices[index])
        self._arrived = [delta for delta in self._arrived if delta.index != index]
        self.wake()

    def _end(self, choice: _Choice) -> None:
        self._open -= not choice.finished
        choice.finished = True

    def fail(self, failure: OctavoError) -> None:
        """Raised by `take` when what has arrived has been taken."""
        self._failure = failure
        self.wake()

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> list[Delta]:
        """Everything that has arrived; waits for the first. Empty when all choices have ended."""
        while not self._arrived and not self.ended:
            if self._failure is not None:
                raise self._failure
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        arrived, self._arrived = self._arrived, []
        self.unread = 0
        return arrived

    def submit(self, calls: int) -> Request:
        """The request as this incarnation must see it: with what it has already emitted.

        Args:
            calls: roll calls so far.
        """
        self.submitted, self.calls_before, self.gained = True, calls, False
        for choice in self.choices:
            choice.repeated = choice.prompt_logprobs
        if not any(choice.token_ids or choice.finished for choice in self.choices):
            return self.request
        emitted = tuple(
            Emitted(token_ids=tuple(choice.token_ids), finished=choice.finished)
            for choice in self.choices
        )
        return replace(self.request, emitted=emitted)
