"""`Resident`: what a device keeps of every sequence, and steps' inputs made from it there.

A row for each sequence has its tokens, its block table and how much of it is computed, so what a
step samples need not visit the host before the next one, and the host tells the device only what it
cannot know: where slices begin, new blocks, and tokens that were not sampled there. That travels in
one copy of a few numbers for each sequence. The kernels that make the batch (`ops.BuildStep`) leave
it where graphs read theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from octavo.kernels.ops import BuildStep, SequenceState

from ..batch import Batch
from ..transfer import Array, Transfer
from .inputs import Layout, Sent
from .padding import StaticBatch
from .sequences import SequenceTable

_COMPUTED = 0  # the column of a row that has how many tokens are computed
_TABLE = 1  # where its block table begins; its tokens follow


class Resident:
    """See `worker.inputs.Inputs`.

    Args:
        table: the host's: `SequenceTable.news` tells what the device has not heard of.
        room: where batches are put, if they fit.
    """

    def __init__(
        self,
        table: SequenceTable,
        block_size: int,
        transfer: Transfer,
        build_step: BuildStep,
        room: StaticBatch,
    ) -> None:
        self._table = table
        self._block_size = block_size
        self._transfer = transfer
        self._build_step = build_step
        self._room = room
        self._first_token = _TABLE + table.block_tables.shape[1]
        self._width = self._first_token + table.token_ids.shape[1]
        self._take(self._empty(len(table.lengths)))

    def send(self, layout: Layout, others: Sequence[Array] = ()) -> Sent:
        width, rows, contexts = self._width, layout.rows, layout.contexts
        tokens, blocks = self._table.news(rows)
        cells = (
            rows * width + _COMPUTED,
            blocks.rows * width + _TABLE + blocks.columns,
            tokens.rows * width + self._first_token + tokens.columns,
        )
        values = (contexts - layout.counts, blocks.values, tokens.values)
        drawn = rows[layout.draws] * width + self._first_token + layout.places
        arrays = [
            np.concatenate(cells),
            np.concatenate(values).astype(np.int32),
            rows.astype(np.int32),
            np.concatenate(([0], layout.ends)).astype(np.int32),
            drawn,
        ]
        if not layout.all_logits:
            arrays.append(layout.logits_rows)
        sent = self._transfer.send(*arrays, *others)
        batch = partial(self._batch, layout, len(self._table.lengths), sent)
        return Sent(batch=batch, targets=sent[4], others=sent[len(arrays) :])

    def remember(self, targets: Tensor, token_ids: Tensor) -> None:
        self._cells[targets] = token_ids.to(self._cells.dtype)

    def _batch(self, layout: Layout, table_rows: int, sent: list[Tensor]) -> Batch:
        if len(self._rows) < table_rows:
            grown = self._empty(table_rows)
            grown[: len(self._rows)] = self._rows
            self._take(grown)
        cells, values, rows, offsets = sent[:4]
        self._cells[cells] = values
        tokens, slices = layout.tokens, len(layout.rows)
        width = -(-int(layout.contexts.max(initial=0)) // self._block_size)
        inputs, block_tables, every_row = self._room.inputs(tokens, slices, width)
        self._build_step(self._state, rows, offsets, inputs, self._block_size)
        return Batch(
            token_ids=inputs.token_ids,
            positions=inputs.positions,
            query_offsets=offsets,
            context_lengths=inputs.context_lengths,
            block_tables=block_tables,
            slot_mapping=inputs.slot_mapping,
            logits_rows=every_row if layout.all_logits else sent[5],
            query_lengths=tuple(layout.counts.tolist()),
            context_lengths_host=tuple(layout.contexts.tolist()),
            all_logits=layout.all_logits,
        )

    def _take(self, rows: Tensor) -> None:
        """Go on with these, int32 [rows of the sequence table, width]."""
        self._rows, self._cells = rows, rows.view(-1)
        self._state = SequenceState(
            token_ids=rows[:, self._first_token :],
            computed=rows[:, _COMPUTED],
            block_tables=rows[:, _TABLE : self._first_token],
        )

    def _empty(self, rows: int) -> Tensor:
        return torch.zeros((rows, self._width), dtype=torch.int32, device=self._room.device)
