"""`Search`: how the sequences of one request grow, split and end.

`SampleSearch` (sample.py) samples n choices independently; `BeamSearch` (beam.py) keeps the
likeliest histories. Both start from one root sequence and split it by forks that share its blocks
(copy-on-write). `PoolSearch` (pool.py) computes the root alone, for its hidden states.
"""

from __future__ import annotations

from typing import Protocol

from ..executor.base import Capacity
from ..params import Emitted, FinishReason, Request
from ..sequence import Sequence
from ..step import Delta, Slice, SliceResult, Timing, TokenLogprobs, Wants


class Family(Protocol):
    """What a search may do to sequences; the scheduler does it."""

    def fork(self, parent: Sequence) -> Sequence:
        """A new sequence with the parent's history, sharing its blocks."""

    def end(self, sequence: Sequence, reason: FinishReason) -> None:
        """The sequence needs nothing any more."""


class Search(Protocol):
    """One request's sequences. A Delta with a finish reason is the last of its choice."""

    def advance(
        self, sequence: Sequence, piece: Slice, result: SliceResult, now: float
    ) -> list[Delta]:
        """Take in what the committed slice `piece` of `sequence` yielded."""

    def fail(self, sequence: Sequence, error: str, now: float) -> list[Delta]:
        """`sequence` cannot be computed: end it, and every choice that depends on it."""

    def abort(self, index: int | None) -> None:
        """Nobody wants choice `index`, or any choice, any more."""

    def emitted(self) -> tuple[Emitted, ...]:
        """What its choices have said so far, and which have ended: with this the request can be
        begun anew, and goes on with the very next token."""


class Terms:
    """What searches keep of a request: its limits, its stops, its prompt's scores."""

    __slots__ = ("end_ids", "limit", "logprobs", "request", "stop_ids")

    def __init__(self, request: Request, capacity: Capacity) -> None:
        params = request.sampling
        self.request = request
        length = len(request.prompt_token_ids)
        room = capacity.max_model_len - length
        wanted = room if params.max_tokens is None else min(params.max_tokens, room)
        self.limit = length + max(wanted, 0)
        # Behind a whole answer of a grammar nothing but its end can come.
        goes_on = params.ignore_eos and params.grammar is None
        self.end_ids = frozenset(() if goes_on else capacity.eos_token_ids)
        self.stop_ids = self.end_ids | frozenset(params.stop_token_ids)
        self.logprobs: list[TokenLogprobs] = []

    def bound(self, sequence: Sequence) -> None:
        """Set where `sequence` ends. The whole prompt is computed, even for no output."""
        sequence.limit = self.limit
        sequence.end = max(self.limit - 1, sequence.prompt_length)

    def score(self, sequence: Sequence, piece: Slice, result: SliceResult) -> None:
        """Gather prompt log-probabilities. A recomputed slice may repeat some of them."""
        repeated = len(self.logprobs) - piece.start
        self.logprobs.extend(result.prompt_logprobs[repeated:])
        if len(self.logprobs) >= len(self.request.prompt_token_ids) - 1:
            sequence.gathering = Wants.NOTHING

    def ends(self, token: int, output_length: int) -> bool:
        """Whether `token`, as output number `output_length`, ends a sequence."""
        params = self.request.sampling
        if params.grammar is not None and token in self.end_ids:
            return True
        return token in self.stop_ids and output_length > params.min_tokens

    def timing(self, sequence: Sequence, now: float) -> Timing:
        first_scheduled = sequence.first_scheduled
        return Timing(
            arrival=self.request.arrival,
            first_scheduled=now if first_scheduled is None else first_scheduled,
            first_token=now if sequence.first_token is None else sequence.first_token,
            finished=now,
            preemptions=sequence.preemptions,
        )

    def failures(
        self, indexes: list[int], sequence: Sequence, error: str, now: float
    ) -> list[Delta]:
        return [
            Delta(
                request_id=self.request.id,
                index=index,
                finish_reason=FinishReason.ERROR,
                error=error,
                timing=self.timing(sequence, now),
            )
            for index in indexes
        ]
