"""Which cells a query sees, as numbers to add to its scores."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor


def bias_of(positions: Tensor, cells: Tensor, window: int | None, dtype: torch.dtype) -> Tensor:
    """What to add to scores: 0 where a query sees a cell, else -inf.

    positions [..., queries] and cells [..., cells] are places in a sequence
    -> [..., queries, cells].
    """
    here, there = positions.unsqueeze(-1), cells.unsqueeze(-2)
    hidden = there > here
    if window is not None:
        hidden |= there <= here - window
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -inf)


def tree_bias(
    marks: tuple[int, ...],
    start: int,
    cells: Tensor,
    window: int | None,
    dtype: torch.dtype,
) -> Tensor:
    """As `bias_of`, for a slice of which some queries are nodes of a tree (`ops.PlanAttention`).

    `start` is its first position; cells [1, cells] -> [1, queries, cells].
    """
    rows = []
    for index, mark in enumerate(marks):
        depth = index if mark < 0 else mark.bit_count() - 1
        row = bias_of(cells.new_tensor([start + depth]), cells[0], window, dtype)[0]
        if mark >= 0:
            of_step = torch.tensor([0.0 if mark >> j & 1 else -inf for j in range(len(marks))])
            row = row.where(cells[0] < start, -inf)
            inside = (cells[0] >= start) & (cells[0] < start + len(marks))
            row[inside] = of_step.to(row)
        rows.append(row)
    return torch.stack(rows).unsqueeze(0)
