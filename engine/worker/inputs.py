"""`Inputs`: from what the host knows of a step's slices to the tensors of its `Batch`.

Two ways, chosen by the device. `FromHost` makes them by numpy, where the device computes in the
host's memory and nothing need be copied. `resident.Resident` has the device make them from what it
keeps of every sequence, so that a step sends it nothing but what has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ..batch import Batch
from ..transfer import Array, Transfer
from .padding import STEADY, StaticBatch
from .sequences import Integers, SequenceTable


class Layout(NamedTuple):
    """A step's slices, one after the other."""

    rows: Integers  # [slices] rows of the sequence table
    counts: Integers  # [slices] tokens of each
    contexts: Integers  # [slices] computed tokens and this step's, guesses included
    known: Integers  # [slices] tokens of the sequence that the host knows or guesses
    ends: Integers  # [slices] tokens up to its last one
    logits_rows: Integers  # tokens that want logits: those that are drawn behind first
    draws: Integers  # [draws] for which slice each is
    places: Integers  # [draws] positions of what is drawn

    @property
    def tokens(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    @property
    def all_logits(self) -> bool:
        """Whether `logits_rows` are all tokens, in their order."""
        return len(self.draws) == self.tokens


class Sent(NamedTuple):
    """What a step needs, on its way to the device."""

    batch: Callable[[], Batch]  # to be called on the stream, when the step before has been given
    targets: Tensor  # int64 [draws]: for `Inputs.remember`
    others: list[Tensor]  # what was sent with it


class Inputs(Protocol):
    """Makes the tensors of steps. Tokens that only the device knows are found there."""

    def send(self, layout: Layout, others: Sequence[Array] = ()) -> Sent:
        """When a step is launched: one copy, which nobody waits for. `others` go with it."""

    def remember(self, targets: Tensor, token_ids: Tensor) -> None:
        """On the stream: what was drawn for these `Sent.targets`, for the steps to come. Where
        several are of one sequence the host will know which of them hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where some number of tokens and slices is put, and a batch of it: of slices of a token each,
    all of which want logits, but for their lengths."""

    token_ids: Array
    positions: Array
    slots: Array
    contexts: Array
    block_tables: Array
    batch: Batch


class FromHost:
    """See `Inputs`: all of it made by the host, but for the tokens that it does not know."""

    def __init__(
        self,
        table: SequenceTable,
        block_size: int,
        transfer: Transfer,
        room: StaticBatch | None = None,
    ) -> None:
        """`room`: where steps' inputs are put, if they fit. Only where no step is launched before
        the last one has landed: its inputs are overwritten, and the host knows all tokens."""
        self._table = table
        self._room = room
        self._places = lru_cache(maxsize=STEADY)(self._place)
        self._block_size = block_size
        self._transfer = transfer
        self._last: Tensor | None = None  # on the device: the last token sampled, by row

    def send(self, layout: Layout, others: Sequence[Array] = ()) -> Sent:
        if self._room is not None and self._room.holds(layout.tokens, len(layout.rows)):
            return self._put(layout, others)
        table, contexts, ends = self._table, layout.contexts, layout.ends
        tokens = layout.tokens

        def spread(values: Integers) -> Integers:
            """From slices to their tokens; each has one in most steps."""
            return values if tokens == len(layout.rows) else np.repeat(values, layout.counts)

        row_of_token = spread(layout.rows)  # [tokens]
        positions = np.arange(tokens) + spread(contexts - ends)
        awaited = np.flatnonzero(positions >= spread(layout.known))
        block, offset = np.divmod(positions, self._block_size)
        blocks = table.block_tables[row_of_token, block].astype(np.int64)
        width = -(-int(contexts.max(initial=0)) // self._block_size)
        tensors = self._transfer.send(
            table.token_ids[row_of_token, positions].astype(np.int64),
            positions,
            np.concatenate(([0], ends)).astype(np.int32),
            contexts.astype(np.int32),
            table.block_tables[layout.rows, :width],
            blocks * self._block_size + offset,
            layout.logits_rows,
            awaited,
            row_of_token[awaited],
            layout.rows[layout.draws],
            *others,
        )
        batch = Batch(
            token_ids=tensors[0],
            positions=tensors[1],
            query_offsets=tensors[2],
            context_lengths=tensors[3],
            block_tables=tensors[4],
            slot_mapping=tensors[5],
            logits_rows=tensors[6],
            query_lengths=tuple(layout.counts.tolist()),
            context_lengths_host=tuple(contexts.tolist()),
            all_logits=layout.all_logits,
        )
        complete = partial(self._complete, batch, *tensors[7:9]) if len(awaited) else lambda: batch
        return Sent(batch=complete, targets=tensors[9], others=tensors[10:])

    def _put(self, layout: Layout, others: Sequence[Array]) -> Sent:
        """All but a few small arrays to where it is read: after a forward pass the code of each op
        of torch, and of each copy, comes from memory."""
        table, rows, contexts, tokens = self._table, layout.rows, layout.contexts, layout.tokens
        assert (layout.known >= contexts).all(), "a step was launched ahead of one under way"
        context_lengths = tuple(contexts.tolist())
        width = -(-max(context_lengths, default=0) // self._block_size)
        place = self._places(tokens, len(rows), width)
        place.contexts[:] = contexts
        place.block_tables[:] = table.block_tables[rows, :width]
        if tokens == len(rows):  # one each, as in most steps
            np.subtract(contexts, 1, out=place.positions)
            offsets, lengths = place.batch.query_offsets, place.batch.query_lengths
        else:
            rows = np.repeat(rows, layout.counts)
            starts = np.repeat(contexts - layout.ends, layout.counts)
            np.add(np.arange(tokens), starts, out=place.positions)
            offsets = torch.from_numpy(np.concatenate(([0], layout.ends)).astype(np.int32))
            lengths = tuple(layout.counts.tolist())
        place.token_ids[:] = table.token_ids[rows, place.positions]
        block, offset = np.divmod(place.positions, self._block_size)
        slots = place.slots
        slots[:] = table.block_tables[rows, block]
        slots *= self._block_size
        slots += offset
        all_rows = place.batch.logits_rows
        batch = Batch(
            token_ids=place.batch.token_ids,
            positions=place.batch.positions,
            query_offsets=offsets,
            context_lengths=place.batch.context_lengths,
            block_tables=place.batch.block_tables,
            slot_mapping=place.batch.slot_mapping,
            logits_rows=all_rows if layout.all_logits else torch.from_numpy(layout.logits_rows),
            query_lengths=lengths,
            context_lengths_host=context_lengths,
            all_logits=layout.all_logits,
        )
        drawn, *sent = self._transfer.send(layout.rows[layout.draws], *others)
        return Sent(batch=lambda: batch, targets=drawn, others=sent)

    def _place(self, tokens: int, slices: int, width: int) -> _Place:
        assert self._room is not None
        inputs, block_tables, every_row = self._room.inputs(tokens, slices, width)
        return _Place(
            token_ids=inputs.token_ids.numpy(),
            positions=inputs.positions.numpy(),
            slots=inputs.slot_mapping.numpy(),
            contexts=inputs.context_lengths.numpy(),
            block_tables=block_tables.numpy(),
            batch=Batch(
                token_ids=inputs.token_ids,
                positions=inputs.positions,
                query_offsets=self._room.one_each(slices),
                context_lengths=inputs.context_lengths,
                block_tables=block_tables,
                slot_mapping=inputs.slot_mapping,
                logits_rows=every_row,
                query_lengths=(1,) * slices,
                context_lengths_host=(),
            ),
        )

    def remember(self, targets: Tensor, token_ids: Tensor) -> None:
        if self._room is not None:
            return
        rows = len(self._table.lengths)
        if self._last is None:
            self._last = token_ids.new_zeros(rows)
        elif len(self._last) < rows:
            grown = token_ids.new_zeros(rows)
            grown[: len(self._last)] = self._last
            self._last = grown
        self._last[targets] = token_ids

    def _complete(self, batch: Batch, awaited: Tensor, rows: Tensor) -> Batch:
        """Fill in the tokens that only the device knows: the last ones of these rows."""
        assert self._last is not None, "a step was to yield these tokens"
        batch.token_ids[awaited] = self._last[rows]
        return batch
