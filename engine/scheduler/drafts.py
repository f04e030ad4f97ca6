"""`Drafts`: guesses of what sequences will say next, from a proposal to its verdict.

A draft is verified in the step after the one that proposed it, as part of the same slice: its
positions count as computed when the plan is made, and those of wrong guesses are taken off when it
is committed. Nothing rests on a guess before that: a sequence is not planned ahead of its draft,
its blocks are published up to the known tokens, and nobody gives way to a draft.
"""

from __future__ import annotations

from ..cache.manager import BlockManager
from ..sequence import Sequence, Status
from ..step import Slice, SliceResult


class Drafts:
    """Keeps the drafts of sequences, and counts what came of them."""

    def __init__(self, blocks: BlockManager) -> None:
        self.made = 0  # counter
        self.tokens = 0  # counter
        self.accepted: list[int] = []  # by place in the draft, counters
        self._blocks = blocks

    def propose(self, sequence: Sequence, draft: tuple[int, ...]) -> None:
        """A committed step proposes what `sequence` says next.

        Of a sequence that was planned ahead of it nothing more is planned before that step, too,
        has landed and proposed anew. What has ended or given way takes no draft.
        """
        if not sequence.promised and sequence.status is Status.RUNNING:
            # The last token of a sequence never needs computing, so it is not guessed.
            sequence.draft = draft[: max(0, sequence.end - sequence.known)]

    def settle(self, sequence: Sequence, piece: Slice, result: SliceResult) -> None:
        """The verdict on the draft of a slice: the positions of wrong guesses are not computed."""
        if not result.token_ids:
            return  # it has failed: so has its sequence
        right = min(len(result.token_ids) - 1, len(piece.draft))
        self.made += 1
        self.tokens += len(piece.draft)
        self.accepted += [0] * (right - len(self.accepted))
        for place in range(right):
            self.accepted[place] += 1
        self._take_off(sequence, sequence.drafted - right)

    def give_up(self, sequence: Sequence) -> None:
        """It gives way: what is in flight may bring more tokens, whose cells nobody will have."""
        sequence.draft = ()
        self._take_off(sequence, sequence.drafted)

    def _take_off(self, sequence: Sequence, count: int) -> None:
        """The last `count` positions are not computed, the others of the draft for good."""
        if count > 0:
            self._blocks.trim(sequence, sequence.computed - count)
        sequence.drafted = 0
