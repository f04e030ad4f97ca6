"""From a `StepPlan` to the tensors of a step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ..batch import Batch
from ..errors import SequenceFailed
from ..step import Slice, StepPlan, Wants
from .sequences import SequenceTable

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The slices of a plan that can be computed, and their tensors.

    `batch.logits_rows` has the rows of the slices in `sampling`, then of those in `searching`.
    """

    slices: tuple[Slice, ...]
    rows: Integers  # [slices] rows of the sequence table
    batch: Batch
    sampling: Integers  # indexes of slices that want a token
    searching: Integers  # of those that want candidates
    scoring: Integers  # of those that want prompt log-probabilities
    failed: dict[int, str]  # why other sequences of the plan cannot be computed


def gather(plan: StepPlan, table: SequenceTable, block_size: int, device: torch.device) -> Work:
    """Take in what the plan's slices bring, and lay their tokens out one after the other.

    A slice whose sequence lacks tokens or blocks, because an earlier step of it failed, is left
    out and named in `failed`.
    """
    failed: dict[int, str] = {}
    slices, row_list = [], []
    for part in plan.slices:
        try:
            row_list.append(table.row(part))
        except SequenceFailed as error:
            failed[part.sequence] = str(error)
        else:
            slices.append(part)
    rows = np.array(row_list, dtype=np.int64)
    starts = np.array([part.start for part in slices], dtype=np.int64)
    counts = np.array([part.count for part in slices], dtype=np.int64)
    short = table.reach(rows) < starts + counts
    if short.any():
        for index in np.flatnonzero(short).tolist():
            failed[slices[index].sequence] = "an earlier step of the sequence failed"
        slices = [part for part, missing in zip(slices, short, strict=True) if not missing]
        rows, starts, counts = rows[~short], starts[~short], counts[~short]
    return _lay_out(tuple(slices), rows, starts, counts, failed, table, block_size, device)


def _lay_out(
    slices: tuple[Slice, ...],
    rows: Integers,
    starts: Integers,
    counts: Integers,
    failed: dict[int, str],
    table: SequenceTable,
    block_size: int,
    device: torch.device,
) -> Work:
    ends = np.cumsum(counts)
    contexts = starts + counts
    row_of_token = np.repeat(rows, counts)  # [tokens]
    positions = np.arange(len(row_of_token)) + np.repeat(starts - ends + counts, counts)
    blocks = table.block_tables[row_of_token, positions // block_size].astype(np.int64)
    width = -(-int(contexts.max(initial=0)) // block_size)
    wants = np.array([part.wants for part in slices], dtype=np.int64)
    sampling = np.flatnonzero(wants & Wants.TOKEN)
    searching = np.flatnonzero(wants & Wants.CANDIDATES)

    def tensor(values: npt.NDArray[np.integer]) -> torch.Tensor:
        return torch.from_numpy(values).to(device)

    batch = Batch(
        token_ids=tensor(table.token_ids[row_of_token, positions].astype(np.int64)),
        positions=tensor(positions),
        query_offsets=tensor(np.concatenate(([0], ends)).astype(np.int32)),
        context_lengths=tensor(contexts.astype(np.int32)),
        block_tables=tensor(table.block_tables[rows, :width]),
        slot_mapping=tensor(blocks * block_size + positions % block_size),
        logits_rows=tensor(ends[np.concatenate((sampling, searching))] - 1),
        query_lengths=tuple(counts.tolist()),
        context_lengths_host=tuple(contexts.tolist()),
    )
    return Work(
        slices=slices,
        rows=rows,
        batch=batch,
        sampling=sampling,
        searching=searching,
        scoring=np.flatnonzero(wants & Wants.PROMPT_LOGPROBS),
        failed=failed,
    )
