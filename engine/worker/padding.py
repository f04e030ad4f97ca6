"""Numbers of sequences that steps are padded to, and the memory in which padded batches lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from octavo.kernels.ops import StepInputs

from ..batch import Batch

LARGEST = 512  # sequences
STEADY = 8  # kinds of steps whose parts of a memory are kept: each part is a call of torch
_SHORT = 8192  # tokens of context: the first graphs are for contexts up to this
_LONG_ROWS = 64  # sequences of a graph for contexts of any length: with more, launches are hidden


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """What a graph is for."""

    longest: int  # tokens of context, at most
    rows: int  # sequences, padding included
    queries: int  # tokens of each


def sizes(most: int) -> tuple[int, ...]:
    """Numbers of sequences to record graphs for: 1, 2, 4, 8, then in steps that pad little, up to
    what covers `most`."""
    steps = (1, 2, 4, *range(8, 129, 8), *range(144, 257, 16), *range(288, LARGEST + 1, 32))
    below = tuple(size for size in steps if size < most)
    return (*below, *steps[len(below) : len(below) + 1])


def keys_for(most: int, longest: int, queries: Sequence[int] = (1,)) -> tuple[Key, ...]:
    """The graphs worth having, those first that are.

    Args:
        most: sequences that may run at the same time.
        longest: tokens of the longest context.
        queries: tokens of a slice that steps may be uniform in. With many of them graphs end at
            fewer sequences: what takes as long as `LARGEST` decodes hides its launches.
    """
    short = min(longest, _SHORT)
    pairs = [
        (rows, count)
        for count in queries
        for rows in reversed(sizes(max(1, min(most, LARGEST // count))))
    ]
    found = [Key(short, rows, count) for rows, count in pairs]
    if longest > short:
        found += [Key(longest, rows, count) for rows, count in pairs if rows <= _LONG_ROWS]
    return tuple(found)


class StaticBatch:
    """The memory that recorded kernels read their batch from, large enough for the largest."""

    def __init__(
        self,
        *,
        rows: int,
        queries: int,
        longest: int,
        block_size: int,
        device: torch.device,
        tokens: int = 0,
        room: int = 0,
    ) -> None:
        """`tokens`: of the largest recorded step, where it is not one of all rows and queries.
        `room`: of the largest that is to lie here without being recorded."""

        def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.device = device
        self.rows = rows
        self.longest = longest
        self.tokens = tokens = tokens or rows * queries  # of the largest recorded step
        room = max(room, tokens)
        self._most_tokens = room
        self._token_ids = zeros(room, dtype=torch.int64)
        self._positions = zeros(room, dtype=torch.int64)
        self._slots = zeros(room, dtype=torch.int64)
        self._every_row = torch.arange(room, device=device)
        self._contexts = zeros(rows, dtype=torch.int32)
        self.temperature = zeros(tokens, dtype=torch.float32)
        self.seeds = zeros(tokens, dtype=torch.int64)
        self.draw_positions = zeros(tokens, dtype=torch.int64)
        self._tables = zeros(rows, -(-longest // block_size), dtype=torch.int32)
        counts = torch.arange(rows + 1, dtype=torch.int32, device=device)
        self._offsets = {count: counts * count for count in range(1, queries + 1)}
        self._ragged_offsets = zeros(rows + 1, dtype=torch.int32)
        self._places = lru_cache(maxsize=STEADY)(self._place)
        self._paddings = lru_cache(maxsize=STEADY)(self._padding)

    def of(self, key: Key) -> Batch:
        """The part of it that a graph is recorded with."""
        rows, tokens = key.rows, key.rows * key.queries
        return Batch(
            token_ids=self._token_ids[:tokens],
            positions=self._positions[:tokens],
            query_offsets=self._offsets[key.queries][: rows + 1],
            context_lengths=self._contexts[:rows],
            block_tables=self._tables[:rows],
            slot_mapping=self._slots[:tokens],
            logits_rows=self._every_row[:tokens],
            query_lengths=(key.queries,) * rows,
            context_lengths_host=(key.longest,) * rows,
            all_logits=True,
        )

    def ragged(self, query_lengths: tuple[int, ...]) -> Batch | None:
        """The part of it for slices of these numbers of tokens, all of which want logits; the
        offsets are to be filled in unless each has one. None: there is no room."""
        rows, tokens = len(query_lengths), sum(query_lengths)
        if rows > self.rows or tokens > len(self._token_ids):
            return None
        offsets = self._offsets[1] if tokens == rows else self._ragged_offsets
        return Batch(
            token_ids=self._token_ids[:tokens],
            positions=self._positions[:tokens],
            query_offsets=offsets[: rows + 1],
            context_lengths=self._contexts[:rows],
            block_tables=self._tables[:rows],
            slot_mapping=self._slots[:tokens],
            logits_rows=self._every_row[:tokens],
            query_lengths=query_lengths,
            context_lengths_host=(self.longest,) * rows,
            all_logits=True,
        )

    def holds(self, tokens: int, rows: int) -> bool:
        """Whether there is room for a step's `inputs`."""
        return tokens <= self._most_tokens and rows <= self.rows

    def one_each(self, rows: int) -> Tensor:
        """The offsets of slices of one token each, int32 [rows + 1]."""
        return self._offsets[1][: rows + 1]

    def inputs(self, tokens: int, rows: int, width: int) -> tuple[StepInputs, Tensor, Tensor]:
        """Where to put a step's inputs, what of its block tables has `width` entries, and the
        numbers of its tokens, int64 [tokens]: here, if there is room, else in new memory."""
        if self.holds(tokens, rows):
            return self._places(tokens, rows, width)
        longs = self._token_ids.new_empty((3, tokens))
        inputs = StepInputs(
            token_ids=longs[0],
            positions=longs[1],
            slot_mapping=longs[2],
            context_lengths=self._contexts.new_empty(rows),
            block_tables=self._tables.new_empty((rows, self._tables.shape[1])),
        )
        every_row = torch.arange(tokens, device=self.device)
        return inputs, inputs.block_tables[:, :width], every_row

    def _place(self, tokens: int, rows: int, width: int) -> tuple[StepInputs, Tensor, Tensor]:
        inputs = StepInputs(
            token_ids=self._token_ids[:tokens],
            positions=self._positions[:tokens],
            slot_mapping=self._slots[:tokens],
            context_lengths=self._contexts[:rows],
            block_tables=self._tables[:rows],
        )
        return inputs, inputs.block_tables[:, :width], self._every_row[:tokens]

    def fill(self, key: Key, batch: Batch | None) -> None:
        """Copy a batch there, if it is not there already (`inputs`); what is left of the key's rows
        is padding: it stores nothing (slot -1) and attends to nothing (length 0). None: padding
        only. Which tokens want logits is not copied: all of them."""
        rows = 0 if batch is None else len(batch.query_lengths)
        tokens = rows * key.queries
        if batch is not None and batch.token_ids.data_ptr() != self._token_ids.data_ptr():
            width = batch.block_tables.shape[1]
            pairs = (
                (self._token_ids[:tokens], batch.token_ids),
                (self._positions[:tokens], batch.positions),
                (self._slots[:tokens], batch.slot_mapping),
                (self._contexts[:rows], batch.context_lengths),
                (self._tables[:rows, :width], batch.block_tables),
            )
            for place, given in pairs:
                place.copy_(given, non_blocking=True)
        if rows < key.rows:
            slots, contexts = self._paddings(key, rows)
            slots.fill_(-1)
            contexts.zero_()

    def _padding(self, key: Key, rows: int) -> tuple[Tensor, Tensor]:
        """Slots and contexts of the key's rows behind the first so many."""
        slots = self._slots[rows * key.queries : key.rows * key.queries]
        return slots, self._contexts[rows : key.rows]
