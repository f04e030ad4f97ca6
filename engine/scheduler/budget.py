"""`StepBudget`: how many tokens a step that is being planned may still compute.

Tokens are one limit. Time is the other, where somebody waits for the next token of a stream: what
a prompt adds to the step, every stream waits for. So prompts are cut to what is left of the
inter-token target once the streams' own tokens are paid for, and to `_LEAST_SHARE` of it where the
streams alone take longer: prompts must come to an end, too.

Drafts are part of their streams, and get what is left of the tokens once each that runs has one.
"""

from __future__ import annotations

from collections.abc import Collection

from ..sequence import Sequence
from .step_time import StepTime

_LEAST_SHARE = 0.25


class StepBudget:
    """What is left of one step. `target` is in seconds, 0 for no limit of time."""

    def __init__(
        self,
        tokens: int,
        *,
        target: float,
        running: Collection[Sequence],
        time: StepTime,
        waiting: bool,
    ) -> None:
        """`waiting`: others may begin in this step."""
        self.tokens = tokens
        self._time = time
        self._seconds: float | None = None  # left for prompts; None: no limit
        self._prompts = 0  # that have been served
        self._guesses = max(0, tokens - len(running))  # tokens left for drafts
        counts = [s.pending - len(s.draft) for s in running]
        streams = []
        if target > 0 and (waiting or max(counts, default=0) > 1):  # else there is no prompt to cut
            streams = [
                (s.computed, s.pending)
                for s, count in zip(running, counts, strict=True)
                if count == 1
            ]
        if streams:
            spare = target - time.predict_decoding(streams)
            self._seconds = max(spare, _LEAST_SHARE * target)

    def __bool__(self) -> bool:
        """Whether anything more may be computed."""
        return self.tokens > 0

    @property
    def takes_prompts(self) -> bool:
        """Whether there is time for one prompt more. The first always has some."""
        return self._seconds is None or not self._prompts or self._seconds > 0

    def grant(self, sequence: Sequence) -> int:
        """How many of its pending tokens a sequence may compute; 0 when it must wait."""
        pending = sequence.pending
        count = pending if pending < self.tokens else self.tokens
        if sequence.draft:
            return min(count, 1 + self._guesses)
        if count <= 1 or self._seconds is None:
            return count
        if not self.takes_prompts:
            return 0
        return min(count, max(1, self._time.tokens_within(self._seconds, sequence.computed)))

    def spend(self, sequence: Sequence, count: int) -> None:
        """The step will compute the next `count` pending tokens of a sequence."""
        self.tokens -= count
        if sequence.draft:
            self._guesses -= count - 1
        elif count > 1 and self._seconds is not None:
            self._seconds -= self._time.price(sequence.computed, count)
            self._prompts += 1
