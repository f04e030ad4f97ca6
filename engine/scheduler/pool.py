"""`PoolSearch`: a prompt that is computed for its hidden states; nothing is generated."""

from __future__ import annotations

import math
from collections.abc import Sequence as Vector
from operator import add

from ..executor.base import Capacity
from ..params import Emitted, FinishReason, PoolingKind, PoolingParams
from ..sequence import Sequence
from ..step import Delta, Slice, SliceResult, Wants
from .search import Family, Terms


class PoolSearch:
    """Computes the prompt in slices like any other and ends with one Delta, the embedding.

    For a mean every slice yields the sum over its positions, so that nothing can be attached from
    the prefix cache; for the last token only the last slice yields something, and the cache helps.
    The sums are added up here rather than in the compute wing: they outlive a preemption (after a
    swap they go on, after a recompute they begin again at position 0), and a slice stays a pure
    function of its plan.
    """

    def __init__(
        self, root: Sequence, pooling: PoolingParams, capacity: Capacity, family: Family
    ) -> None:
        self._family = family
        self._terms = Terms(root.request, capacity)
        self._pooling = pooling
        self._root = root
        self._sum: Vector[float] = ()  # over the positions committed so far
        root.end = root.prompt_length
        root.limit = root.end + 1  # what the last slice yields is still wanted
        if pooling.kind is PoolingKind.MEAN:
            root.yields = root.gathering = Wants.EMBEDDING_SUM
        else:
            root.yields = Wants.EMBEDDING

    def advance(
        self, sequence: Sequence, piece: Slice, result: SliceResult, now: float
    ) -> list[Delta]:
        if not piece.wants:
            return []
        if not result.embedding:
            return self.fail(sequence, "the executor gave no hidden state for this sequence", now)
        mean = self._pooling.kind is PoolingKind.MEAN
        if mean and piece.start > 0:
            self._sum = list(map(add, self._sum, result.embedding))
        else:
            self._sum = result.embedding
        if piece.start + piece.count < sequence.end:
            return []
        count = sequence.prompt_length if mean else 1
        delta = Delta(
            request_id=sequence.request.id,
            embedding=_finished([x / count for x in self._sum], self._pooling),
            cached_tokens=sequence.cached_tokens,
            finish_reason=FinishReason.STOP,
            timing=self._terms.timing(sequence, now),
        )
        self._family.end(sequence, FinishReason.STOP)
        return [delta]

    def fail(self, sequence: Sequence, error: str, now: float) -> list[Delta]:
        self._family.end(sequence, FinishReason.ERROR)
        return self._terms.failures([0], sequence, error, now)

    def abort(self, index: int | None) -> None:
        if index in (None, 0):
            self._family.end(self._root, FinishReason.ABORT)

    def emitted(self) -> tuple[Emitted, ...]:
        return ()


def _finished(pooled: list[float], pooling: PoolingParams) -> tuple[float, ...]:
    """Cut to the wanted dimensions, then brought to length 1."""
    kept = pooled[: pooling.dimensions]
    length = math.hypot(*kept) if pooling.normalize else 1.0
    return tuple([x / length for x in kept]) if length else tuple(kept)
