"""Penalties for what has been said, from counts that live where the logits do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from octavo.kernels.ops import Ops

from ..params import SamplingParams
from .logits import Follow, Histories, Rows, Shaping, Tokens

_Tables = tuple[Tensor, Tensor, Tensor]


class Penalties:
    """`presence_penalty`, `frequency_penalty` and `repetition_penalty` (`ops.penalise`).

    Counts are kept by row on the device of the logits. What is drawn is counted there at once, so
    a running sequence needs nothing of the host, which may not know the token yet. What comes in
    another way, a sequence met for the first time or a run that a grammar forces, is counted from
    the history. Counts that are ahead of it, because a step that was to draw was given up, are made
    anew.

    Args:
        rows: sequences to make room for when the first one comes.
    """

    reads_history = False
    depends_on_output = True

    def __init__(self, vocab_size: int, ops: Ops, *, rows: int = 0) -> None:
        self._vocab_size = vocab_size
        self._ops = ops
        self._strengths = np.zeros((rows, 3), dtype=np.float32)  # presence, frequency, repetition
        # Tokens of the history, and those that will be drawn next; 0: nothing is there.
        self._counted = np.zeros(rows, dtype=np.int64)
        self._tables: _Tables | None = None

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

    def shaping(self, at: Rows, rows: Rows, histories: Histories) -> Shaping:
        lengths = histories.lengths[rows]
        anew = rows[(self._counted[rows] == 0) | (self._counted[rows] > lengths)]
        self._counted[anew] = 0
        prompt, output = self._fresh(rows, lengths, histories)
        self._counted[rows] = lengths + 1  # what will be drawn, too

        def undrawn() -> None:
            self._counted[rows] = lengths

        news = (anew, self._strengths[anew], prompt, output)
        return Shaping(arrays=(at, rows, *news), apply=self._apply, undrawn=undrawn)

    def _fresh(self, rows: Rows, lengths: Tokens, histories: Histories) -> tuple[Tokens, Tokens]:
        """Cells of the tables for tokens of the history that are not counted, of prompts and of
        outputs; in a running sequence there are none."""
        counted = self._counted[rows]
        fresh = lengths - counted
        row = np.repeat(rows, fresh)  # [fresh tokens]
        position = np.arange(len(row)) - np.repeat(np.cumsum(fresh) - fresh - counted, fresh)
        cells = row * self._vocab_size + histories.token_ids[row, position]
        said = position >= histories.prompt_lengths[row]
        return cells[~said], cells[said]

    def _apply(self, logits: Tensor, given: Sequence[Tensor]) -> Follow:
        at, rows, *news = given
        seen, said, strengths = tables = self._room(logits)
        if any(map(len, news)):
            _take_in(tables, *news)
        presence, frequency, repetition = strengths[rows].unbind(1)
        logits[at] = self._ops.penalise(
            logits[at], seen[rows], said[rows], presence, frequency, repetition
        )

        def follow(drawn: Tensor) -> None:
            said[rows, drawn[at]] += 1

        return follow

    def _room(self, like: Tensor) -> _Tables:
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


def _take_in(
    tables: _Tables, anew: Tensor, strengths: Tensor, prompt: Tensor, output: Tensor
) -> None:
    """Rows that begin anew, then cells that are to be counted."""
    seen, said, of_rows = tables
    seen.index_fill_(0, anew, False)
    said.index_fill_(0, anew, 0)
    of_rows[anew] = strengths
    seen.view(-1).index_fill_(0, prompt, True)
    said.view(-1).index_add_(0, output, torch.ones_like(output, dtype=said.dtype))
