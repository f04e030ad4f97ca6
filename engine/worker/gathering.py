"""From the slices of a step to its tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..batch import Batch
from ..errors import SequenceFailed
from ..step import Slice, Wants
from ..transfer import Transfer
from .sequences import Integers, SequenceTable

_TOKEN = int(Wants.TOKEN)
_KINDS = (
    _TOKEN,
    int(Wants.CANDIDATES),
    int(Wants.PROMPT_LOGPROBS),
    int(Wants.EMBEDDING | Wants.EMBEDDING_SUM),
)
LACKING = "an earlier step, which was to yield its last token, failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Those of some slices that can be computed, and their tensors.

    `batch.logits_rows` has the rows of the slices in `sampling`, then of those in `searching`.
    """

    slices: tuple[Slice, ...]
    rows: Integers  # [slices] rows of the sequence table
    contexts: Integers  # [slices] computed tokens and this step's: the position a token is for
    known: Integers  # [slices] tokens of the sequence that the host knew
    batch: Batch
    awaited: Tensor  # int64: the tokens of the batch that only the device knows ...
    awaited_rows: Tensor  # ... and the rows of their sequences
    sampling_rows: Tensor  # int64: rows of the sequences in `sampling`
    sampling: Integers  # indexes of slices that want a token
    searching: Integers  # of those that want candidates
    scoring: Integers  # of those that want prompt log-probabilities
    pooling: Integers  # of those that want an embedding
    failed: dict[int, str]  # why the others cannot be computed, by sequence


def gather(
    given: Sequence[Slice], table: SequenceTable, block_size: int, transfer: Transfer
) -> Work:
    """Take in what the slices bring, and lay their tokens out one after the other.

    A slice whose sequence lacks tokens or blocks, because an earlier step of it failed, is left
    out and named in `failed`.
    """
    slices, rows, failed = _take_in(given, table)
    counts = np.array([part.count for part in slices], dtype=np.int64)
    contexts = np.array([part.start for part in slices], dtype=np.int64) + counts
    wants = np.array([part.wants for part in slices], dtype=np.int64)
    sampling, searching, scoring, pooling = _wanting(wants)
    tokens = int(counts.sum())

    def spread(values: Integers) -> Integers:
        """From slices to their tokens; each has one in most steps."""
        return values if tokens == len(slices) else np.repeat(values, counts)

    ends = np.cumsum(counts)
    row_of_token = spread(rows)  # [tokens]
    positions = np.arange(tokens) + spread(contexts - ends)
    known = table.known(rows)
    awaited = np.flatnonzero(positions >= spread(known))
    block, offset = np.divmod(positions, block_size)
    blocks = table.block_tables[row_of_token, block].astype(np.int64)
    width = -(-int(contexts.max(initial=0)) // block_size)

    tensors = transfer.send(
        table.token_ids[row_of_token, positions].astype(np.int64),
        positions,
        np.concatenate(([0], ends)).astype(np.int32),
        contexts.astype(np.int32),
        table.block_tables[rows, :width],
        blocks * block_size + offset,
        ends[np.concatenate((sampling, searching))] - 1,
        awaited,
        row_of_token[awaited],
        rows[sampling],
    )
    batch = Batch(
        token_ids=tensors[0],
        positions=tensors[1],
        query_offsets=tensors[2],
        context_lengths=tensors[3],
        block_tables=tensors[4],
        slot_mapping=tensors[5],
        logits_rows=tensors[6],
        query_lengths=tuple(counts.tolist()),
        context_lengths_host=tuple(contexts.tolist()),
        all_logits=len(sampling) == tokens,
    )
    return Work(
        slices=slices,
        rows=rows,
        contexts=contexts,
        known=known,
        batch=batch,
        awaited=tensors[7],
        awaited_rows=tensors[8],
        sampling_rows=tensors[9],
        sampling=sampling,
        searching=searching,
        scoring=scoring,
        pooling=pooling,
        failed=failed,
    )


def _wanting(wants: Integers) -> tuple[Integers, Integers, Integers, Integers]:
    """Indexes of the slices that want a token, candidates, scores of the prompt, an embedding."""
    if (wants == _TOKEN).all():  # as in most steps
        none = np.zeros(0, np.int64)
        return np.arange(len(wants)), none, none, none
    sampling, searching, scoring, pooling = [np.flatnonzero(wants & kind) for kind in _KINDS]
    return sampling, searching, scoring, pooling


def _take_in(
    given: Sequence[Slice], table: SequenceTable
) -> tuple[tuple[Slice, ...], Integers, dict[int, str]]:
    """The slices that can be computed, the rows of their sequences, and why the others cannot."""
    failed: dict[int, str] = {}
    slices: list[Slice] = []
    found: list[int] = []
    for part in given:
        try:
            found.append(table.row(part))
        except SequenceFailed as error:
            failed[part.sequence] = str(error)
        else:
            slices.append(part)
    rows = np.array(found, dtype=np.int64)
    able = table.reach(rows) >= [part.start + part.count for part in slices]
    if not able.all():
        failed |= {slices[i].sequence: LACKING for i in np.flatnonzero(~able).tolist()}
        slices = [slices[i] for i in np.flatnonzero(able).tolist()]
        rows = rows[able]
    return tuple(slices), rows, failed
