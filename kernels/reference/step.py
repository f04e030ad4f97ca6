"""A step's inputs, and what of its drafts is right."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from ..ops import SequenceState, StepInputs


def build_step(
    state: SequenceState,
    rows: Tensor,
    query_offsets: Tensor,
    inputs: StepInputs,
    block_size: int,
) -> None:
    """See `ops.BuildStep`."""
    inputs.token_ids.zero_()
    inputs.positions.zero_()
    inputs.slot_mapping.fill_(-1)
    inputs.context_lengths.zero_()
    offsets = query_offsets.tolist()
    for index, row in enumerate(rows.tolist()):
        if row < 0:
            continue
        begin, end = offsets[index], offsets[index + 1]
        start = int(state.computed[row])
        context = start + end - begin
        positions = torch.arange(start, context, device=rows.device)
        table = state.block_tables[row]
        inputs.token_ids[begin:end] = state.token_ids[row, start:context].long()
        inputs.positions[begin:end] = positions
        blocks = table[positions // block_size].long()
        inputs.slot_mapping[begin:end] = blocks * block_size + positions % block_size
        inputs.context_lengths[index] = context
        used = -(-context // block_size)
        inputs.block_tables[index, :used] = table[:used]


def verify(
    token_ids: Tensor, drawn: Tensor, query_offsets: Tensor, parents: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """See `ops.Verify`."""
    offsets = query_offsets.tolist()
    tokens, follows = token_ids.tolist(), drawn.tolist()
    accepted, last, path = [], [], [-1] * len(tokens)
    for begin, end in pairwise(offsets):
        after = None if parents is None else parents[begin:end].tolist()
        node, count = 0, 0
        path[begin:end] = [0] * (end > begin) + [-1] * (end - begin - 1)
        for index in range(1, end - begin):
            parent = index - 1 if after is None else after[index]
            if parent == node and tokens[begin + index] == follows[begin + node]:
                node, count = index, count + 1
                path[begin + index] = count
        accepted.append(count)
        last.append(follows[begin + node] if end > begin else 0)

    def tensor(values: list[int], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=drawn.device)

    return tensor(accepted, torch.int32), tensor(last, torch.int64), tensor(path, torch.int32)
