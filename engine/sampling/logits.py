"""Rules that shape logits before a token is drawn: one class per idea.

To add a sampling parameter that acts on logits, write one `LogitsRule` and add it to
`rules.standard_rules`. A rule acts on the rows that need it and costs nothing while none does.
What it knows beyond its parameters is a pure function of the sequence's tokens, so nothing has
to be saved, restored or rolled back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..params import SamplingParams
from ..transfer import beside

Rows = npt.NDArray[np.int64]
Tokens = npt.NDArray[np.int64]
Follow = Callable[[Tensor], None]
"""To be told what is drawn from shaped logits: int64 [batch rows], on their device."""

_NEVER = float("-inf")


class Histories(Protocol):
    """The known tokens of every sequence, by row. Owned by the worker."""

    @property
    def token_ids(self) -> npt.NDArray[np.int32]: ...  # [rows, longest]

    @property
    def lengths(self) -> npt.NDArray[np.int64]: ...  # [rows] known tokens

    @property
    def prompt_lengths(self) -> npt.NDArray[np.int64]: ...  # [rows]


class LogitsRule(Protocol):
    """One way to change logits. `reads_history`: whether it needs the last tokens that have been
    said on the host, where a sequence that runs ahead has them later."""

    reads_history: bool

    def needs(self, params: SamplingParams) -> bool:
        """Whether a sequence with these parameters is touched at all."""

    def admit(self, row: int, params: SamplingParams) -> None:
        """A sequence that needs this rule now lives in `row`; forget who lived there before."""

    def apply(self, logits: Tensor, at: Rows, rows: Rows, histories: Histories) -> Follow | None:
        """Change logits[at[i]] in place for the sequence in rows[i].

        Args:
            logits: float32 [batch rows, vocab].
            at: which rows of `logits` to change.
            rows: which sequence each of them continues, same length.
            histories: what has been said.

        Returns:
            Who wants to know what is drawn then, if anything is.
        """


class AllowedTokens:
    """`allowed_token_ids`: nothing else may be said."""

    reads_history = False

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._allowed: dict[int, Tokens] = {}  # by row

    def needs(self, params: SamplingParams) -> bool:
        return params.allowed_token_ids is not None

    def admit(self, row: int, params: SamplingParams) -> None:
        self._allowed[row] = _ids(params.allowed_token_ids or (), self._vocab_size)

    def apply(self, logits: Tensor, at: Rows, rows: Rows, histories: Histories) -> None:
        cells = _cells(logits, at, [self._allowed[row] for row in rows.tolist()])
        flat = logits.view(-1)
        kept = flat[cells]
        logits.index_fill_(0, beside(at, logits), _NEVER)
        flat[cells] = kept


class BadWords:
    """`bad_words_ids`: a token that would complete one of the sequences may not be said."""

    reads_history = True

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._words: dict[int, list[tuple[npt.NDArray[np.int32], int]]] = {}  # (prefix, last id)

    def needs(self, params: SamplingParams) -> bool:
        return bool(params.bad_words_ids)

    def admit(self, row: int, params: SamplingParams) -> None:
        self._words[row] = [
            (np.array(word[:-1], dtype=np.int32), word[-1])
            for word in params.bad_words_ids
            if word and word[-1] < self._vocab_size
        ]

    def apply(self, logits: Tensor, at: Rows, rows: Rows, histories: Histories) -> None:
        banned = [self._banned(row, histories) for row in rows.tolist()]
        logits.view(-1)[_cells(logits, at, banned)] = _NEVER

    def _banned(self, row: int, histories: Histories) -> Tokens:
        said = histories.token_ids[row, : histories.lengths[row]]
        last = [
            token
            for prefix, token in self._words[row]
            if len(prefix) <= len(said) and np.array_equal(said[len(said) - len(prefix) :], prefix)
        ]
        return np.array(last, dtype=np.int64)


class MinimumLength:
    """`min_tokens`: until reached, neither end-of-sequence nor stop ids may be said."""

    reads_history = False

    def __init__(self, vocab_size: int, stop_ids: Sequence[int]) -> None:
        self._vocab_size = vocab_size
        self._stop_ids = tuple(stop_ids)
        self._minimum: dict[int, int] = {}  # by row
        self._ends: dict[int, Tokens] = {}  # by row

    def needs(self, params: SamplingParams) -> bool:
        return params.min_tokens > 0

    def admit(self, row: int, params: SamplingParams) -> None:
        self._minimum[row] = params.min_tokens
        self._ends[row] = _ids((*self._stop_ids, *params.stop_token_ids), self._vocab_size)

    def apply(self, logits: Tensor, at: Rows, rows: Rows, histories: Histories) -> None:
        said = histories.lengths[rows] - histories.prompt_lengths[rows]
        short = said < np.array([self._minimum[row] for row in rows.tolist()])
        ends = [self._ends[row] for row in rows[short].tolist()]
        logits.view(-1)[_cells(logits, at[short], ends)] = _NEVER


class LogitBias:
    """`logit_bias`: numbers added to chosen tokens' logits."""

    reads_history = False

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._ids: dict[int, Tokens] = {}  # by row
        self._values: dict[int, npt.NDArray[np.float32]] = {}  # by row, in the order of the ids

    def needs(self, params: SamplingParams) -> bool:
        return bool(params.logit_bias)

    def admit(self, row: int, params: SamplingParams) -> None:
        known = {i: bias for i, bias in params.logit_bias.items() if i < self._vocab_size}
        self._ids[row] = np.array(list(known), dtype=np.int64)
        self._values[row] = np.array(list(known.values()), dtype=np.float32)

    def apply(self, logits: Tensor, at: Rows, rows: Rows, histories: Histories) -> None:
        living = rows.tolist()
        cells = _cells(logits, at, [self._ids[row] for row in living])
        values = np.concatenate([self._values[row] for row in living])
        logits.view(-1)[cells] += beside(values, logits)


def _ids(ids: Sequence[int], vocab_size: int) -> Tokens:
    """The different ids among `ids` that the model has."""
    return np.array(sorted({i for i in ids if 0 <= i < vocab_size}), dtype=np.int64)


def _cells(logits: Tensor, at: Rows, ids: Sequence[Tokens]) -> Tensor:
    """Where the given ids of the given rows lie in `logits.view(-1)`."""
    lengths = [len(row_ids) for row_ids in ids]
    if not sum(lengths):
        return torch.empty(0, dtype=torch.int64, device=logits.device)
    cells = np.repeat(at, lengths) * logits.shape[1] + np.concatenate(ids)
    return beside(cells, logits)
