"""`Attempt`: slices computed together, and apart where together they fail.

When a step raises it is not known which of its slices is to blame. So its halves are computed
apart, and the half that raises in halves again, until one slice stands alone: that one fails, and
nobody else. k culprits among n slices take O(k log n) attempts. Culprits that fail only in each
other's company do not fail at all.

Running out of memory is answered in the same way, with less at a time: in the end a single slice
is computed some tokens at a time, and fails only when that does not help.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from operator import add
from typing import Protocol

from ..config import LONGEST_DRAFT
from ..device import check_alive, is_out_of_memory, release_memory
from ..step import Slice, SliceResult, Wants

# Of one sequence at a time: with fewer, memory is not what is missing. No draft is cut in two.
_FEWEST_TOKENS = LONGEST_DRAFT + 1
_OF_EVERY_POSITION = Wants.PROMPT_LOGPROBS | Wants.EMBEDDING_SUM


class Compute(Protocol):
    """What may fail: nothing came of the slices then, and they may be given again."""

    def __call__(self, slices: Sequence[Slice], /) -> list[SliceResult]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What is kept of an exception: no frames, which would keep a step's tensors alive."""

    kind: str
    out_of_memory: bool
    trace: str

    @classmethod
    def of(cls, error: Exception) -> Failure:
        return cls(
            kind=type(error).__name__,
            out_of_memory=is_out_of_memory(error),
            trace="".join(traceback.format_exception(error)).rstrip(),
        )


class Attempt:
    """One step's slices. `count` tells how often something was computed, `failures` what went
    wrong, and `culprits` who failed, by sequence."""

    def __init__(self, compute: Compute) -> None:
        self._compute = compute
        self.count = 0
        self.failures: list[Failure] = []
        self.culprits: dict[int, Failure] = {}

    def results(self, slices: Sequence[Slice]) -> list[SliceResult]:
        """What each slice yielded, in their order; a culprit's result has its error."""
        if not slices:
            return []
        self.count += 1
        try:
            return self._compute(slices)
        except Exception as error:  # kernels, allocators and rules raise whatever they like
            check_alive(error)
            failure = Failure.of(error)
        if failure.out_of_memory and not any(earlier.out_of_memory for earlier in self.failures):
            release_memory()
        self.failures.append(failure)
        if len(slices) > 1:
            middle = len(slices) // 2
            return self.results(slices[:middle]) + self.results(slices[middle:])
        (part,) = slices
        if failure.out_of_memory and part.count > _FEWEST_TOKENS:
            return [self._in_two(part)]
        if self.count == 1:  # the only slice of its step: what passes must not end it
            return self.results(slices)
        self.culprits[part.sequence] = failure
        return [SliceResult(sequence=part.sequence, error=_sentence(part, failure))]

    def _in_two(self, part: Slice) -> SliceResult:
        """One slice as two, one after the other."""
        count = part.count // 2
        first = part._replace(count=count, wants=part.wants & _OF_EVERY_POSITION)
        rest = part._replace(
            start=part.start + count,
            count=part.count - count,
            token_ids=(),
            blocks=(),
            history=None,
        )
        (before,) = self.results([first])
        if before.error is not None:
            return before
        (after,) = self.results([rest])
        if after.error is not None:
            return after
        summed = tuple(map(add, before.embedding, after.embedding))
        return after._replace(
            prompt_logprobs=before.prompt_logprobs + after.prompt_logprobs,
            embedding=summed or after.embedding,
        )


def _sentence(part: Slice, failure: Failure) -> str:
    """What the client is told: nothing of the exception but its kind."""
    if not failure.out_of_memory:
        return (
            f"This request could not be computed: the engine failed with {failure.kind} at tokens "
            f"{part.start} to {part.start + part.count - 1}, also when it computed them alone; the "
            f"server's log says more."
        )
    ways = ["a shorter prompt", "a smaller --max-num-batched-tokens of the server"]
    if part.wants & Wants.PROMPT_LOGPROBS:
        ways.insert(0, "fewer prompt_logprobs")
    return (
        f"The server's memory is not enough to compute this request, even alone and {part.count} "
        f"of its tokens at a time (from token {part.start} on); it takes {', '.join(ways[:-1])} or "
        f"{ways[-1]}."
    )
