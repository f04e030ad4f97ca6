"""Penalties for what has been said, from counts that live where the logits do."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from octavo.kernels.ops import Ops

from ..params import SamplingParams
from ..transfer import beside
from .logits import Follow, Histories, Rows


class Penalties:
    """`presence_penalty`, `frequency_penalty` and `repetition_penalty` (`ops.penalise`).

    Counts are kept by row on the device of the logits. What is drawn is counted there at once, so
    a running sequence needs nothing of the host, which may not know the token yet. What comes in
    another way, a sequence met for the first time or a run that a grammar forces, is counted from
    the history. Counts that are ahead of it, because the step that drew was given up, are made
    anew.

    Args:
        rows: sequences to make room for when the first one comes.
    """

    reads_history = False

    def __init__(self, vocab_size: int, ops: Ops, *, rows: int = 0) -> None:
        self._vocab_size = vocab_size
        self._ops = ops
        self._strengths = np.zeros((rows, 3), dtype=np.float32)  # presence, frequency, repetition
        self._counted = np.zeros(rows, dtype=np.int64)  # tokens of the history; 0: nothing is there
        self._tables: tuple[Tensor, Tensor, Tensor] | None = None

    def needs(self, params: SamplingParams) -> bool:
        return (
            params.presence_penalty != 0.0
            or params.frequency_penalty != 0.0
            or params.repetition_penalty != 1.0
        )

    def admit(self, row: int, params: SamplingParams) -> None:
        if row >= len(self._counted):
            more = row + 1  # twice as many, at least
            # Both or, where memory is missing, none.
            strengths = np.concatenate((self._strengths, np.zeros((more, 3), dtype=np.float32)))
            self._counted = np.concatenate((self._counted, np.zeros(more, dtype=np.int64)))
            self._strengths = strengths
        self._strengths[row] = (
            params.presence_penalty,
            params.frequency_penalty,
            params.repetition_penalty,
        )
        self._counted[row] = 0

    def apply(self, logits: Tensor, at: Rows, rows: Rows, histories: Histories) -> Follow:
        seen, said, strengths = self._room(logits)
        place, where = beside(np.stack((at, rows)), logits)
        self._catch_up(rows, histories)
        presence, frequency, repetition = strengths[where].unbind(1)
        logits[place] = self._ops.penalise(
            logits[place], seen[where], said[where], presence, frequency, repetition
        )

        def follow(drawn: Tensor) -> None:
            said[where, drawn[place]] += 1
            self._counted[rows] += 1

        return follow

    def _catch_up(self, rows: Rows, histories: Histories) -> None:
        """Count the tokens of the history that are not; in a running sequence there are none."""
        lengths = histories.lengths[rows]
        counted = self._counted[rows]
        anew = rows[(counted == 0) | (counted > lengths)]
        if len(anew):
            self._clear(anew)
            counted = self._counted[rows]
        fresh = lengths - counted
        if not fresh.any():
            return
        assert self._tables is not None
        seen, said, _ = self._tables
        row = np.repeat(rows, fresh)  # [fresh tokens]
        position = np.arange(len(row)) - np.repeat(np.cumsum(fresh) - fresh - counted, fresh)
        cell = row * self._vocab_size + histories.token_ids[row, position]
        output = position >= histories.prompt_lengths[row]
        seen.view(-1)[beside(cell[~output], seen)] = True
        cells = beside(cell[output], said)
        said.view(-1).index_add_(0, cells, torch.ones_like(cells, dtype=said.dtype))
        self._counted[rows] = lengths

    def _clear(self, rows: Rows) -> None:
        assert self._tables is not None
        seen, said, strengths = self._tables
        self._counted[rows] = 0
        where = beside(rows, seen)
        seen.index_fill_(0, where, False)
        said.index_fill_(0, where, 0)
        strengths[where] = beside(self._strengths[rows], strengths)

    def _room(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of as many rows as have been admitted: which tokens the prompt has, bool [rows, vocab];
        how often the output has them, int32 [rows, vocab]; and strengths, float32 [rows, 3]."""
        rows = len(self._counted)
        if self._tables is None or len(self._tables[0]) < rows:
            # All of them or, where memory is missing, none.
            tables = (
                torch.zeros((rows, self._vocab_size), dtype=torch.bool, device=like.device),
                torch.zeros((rows, self._vocab_size), dtype=torch.int32, device=like.device),
                torch.zeros((rows, 3), device=like.device),
            )
            for old, new in zip(self._tables or (), tables, strict=self._tables is not None):
                new[: len(old)] = old
            self._tables = tables
        return self._tables
