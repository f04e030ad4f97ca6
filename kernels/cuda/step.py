"""A step's inputs, and what of its drafts is right, without the host."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ops import SequenceState, StepInputs

_BLOCK = 256


@triton.jit(do_not_specialize=["tokens"])
def build_step_kernel(
    known, computed, tables, rows, query_offsets,
    token_ids, positions, slots, contexts, step_tables,
    known_stride, computed_stride, table_stride, step_stride, sequences, tokens,
    BLOCK_SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per sequence, and one more for the tokens after the last."""
    sequence = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    begin = tl.load(query_offsets + sequence)
    end = tokens
    row = -1
    if sequence < sequences:
        end = tl.load(query_offsets + sequence + 1)
        row = tl.load(rows + sequence)
    at_row = tl.maximum(row, 0).to(tl.int64)
    start = tl.load(computed + at_row * computed_stride)
    for first in range(0, end - begin, BLOCK):
        index = first + lane
        inside = index < end - begin
        to = begin + index
        position = tl.where(row >= 0, start + index, 0)
        token = tl.load(known + at_row * known_stride + position, mask=inside, other=0)
        block = tl.load(
            tables + at_row * table_stride + position // BLOCK_SIZE, mask=inside, other=0
        ).to(tl.int64)
        slot = block * BLOCK_SIZE + position % BLOCK_SIZE
        tl.store(token_ids + to, tl.where(row >= 0, token, 0).to(tl.int64), mask=inside)
        tl.store(positions + to, position.to(tl.int64), mask=inside)
        tl.store(slots + to, tl.where(row >= 0, slot, -1), mask=inside)
    if sequence < sequences:
        context = tl.where(row >= 0, start + end - begin, 0)
        tl.store(contexts + sequence, context)
        used = (context + BLOCK_SIZE - 1) // BLOCK_SIZE
        for first in range(0, used, BLOCK):
            index = first + lane
            inside = index < used
            block = tl.load(tables + at_row * table_stride + index, mask=inside)
            tl.store(step_tables + sequence.to(tl.int64) * step_stride + index, block, mask=inside)


@triton.jit
def verify_kernel(
    token_ids, drawn, query_offsets, parents, accepted, last, path, TREE: tl.constexpr
):
    """The drafts of one sequence, in their order: a parent comes before its children."""
    sequence = tl.program_id(0)
    begin, end = tl.load(query_offsets + sequence), tl.load(query_offsets + sequence + 1)
    node, count = 0, 0
    follows = tl.zeros([], tl.int64)
    if end > begin:
        follows = tl.load(drawn + begin)
        tl.store(path + begin, 0)
    for index in range(1, end - begin):
        parent = index - 1
        if TREE:
            parent = tl.load(parents + begin + index)
        right = (parent == node) & (tl.load(token_ids + begin + index) == follows)
        step = -1
        if right:
            node = index
            count += 1
            step = count
            follows = tl.load(drawn + begin + index)
        tl.store(path + begin + index, step)
    tl.store(accepted + sequence, count)
    tl.store(last + sequence, follows)


def build_step(
    state: SequenceState,
    rows: Tensor,
    query_offsets: Tensor,
    inputs: StepInputs,
    block_size: int,
) -> None:
    """See `ops.BuildStep`."""
    sequences = len(rows)
    build_step_kernel[(sequences + 1,)](
        state.token_ids, state.computed, state.block_tables, rows, query_offsets,
        inputs.token_ids, inputs.positions, inputs.slot_mapping,
        inputs.context_lengths, inputs.block_tables,
        state.token_ids.stride(0), state.computed.stride(0), state.block_tables.stride(0),
        inputs.block_tables.stride(0),
        sequences, len(inputs.token_ids),
        BLOCK_SIZE=block_size, BLOCK=_BLOCK, num_warps=4,
    )  # fmt: skip


def verify(
    token_ids: Tensor, drawn: Tensor, query_offsets: Tensor, parents: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """See `ops.Verify`."""
    sequences = len(query_offsets) - 1
    accepted = torch.empty(sequences, dtype=torch.int32, device=drawn.device)
    last = torch.empty(sequences, dtype=torch.int64, device=drawn.device)
    path = torch.full(drawn.shape, -1, dtype=torch.int32, device=drawn.device)
    if sequences:
        verify_kernel[(sequences,)](
            token_ids, drawn, query_offsets, parents, accepted, last, path,
            TREE=parents is not None, num_warps=1,
        )  # fmt: skip
    return accepted, last, path
