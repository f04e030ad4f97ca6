"""Hidden states for embeddings: each slice's own, a pure function of the slice.

Nothing is kept from one step to the next. Where a prompt takes several slices the planner adds
their sums up (`engine/scheduler/pool.py`), so that a slice that is computed again, after a
preemption or a failed step, gives the same and counts once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..step import Wants
from .gathering import Work

_NOT_FINITE = "the model's hidden states are not finite"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooled:
    """By index of the slice."""

    embeddings: dict[int, tuple[float, ...]]
    errors: dict[int, str]


def pool(hidden: Tensor, work: Work) -> Pooled:
    """The last hidden state of each slice that wants an embedding, or the sum of all of them.

    Args:
        hidden: [tokens, hidden], behind the model's last norm.

    Sums are float32; their order depends on the slice, not on the batch.
    """
    ends = np.cumsum(work.counts).tolist()
    at = work.pooling.tolist()
    vectors: list[Tensor] = []
    for i in at:
        part, end = work.slices[i], ends[i]
        if part.wants & Wants.EMBEDDING_SUM:
            vectors.append(hidden[end - part.count : end].sum(0, dtype=torch.float32))
        else:
            vectors.append(hidden[end - 1].float())
    stacked = torch.stack(vectors).cpu()  # [slices, hidden]
    finite = stacked.isfinite().all(-1).tolist()
    found = dict(zip(at, stacked.tolist(), strict=True))
    sound = dict(zip(at, finite, strict=True))
    return Pooled(
        embeddings={i: tuple(vector) for i, vector in found.items() if sound[i]},
        errors={i: _NOT_FINITE for i in at if not sound[i]},
    )
