"""Rules that shape logits before a token is drawn: one class per idea.

To add a sampling parameter that acts on logits, write one `LogitsRule` and add it to
`rules.standard_rules`. A rule acts on the rows that need it and costs nothing while none does.
What it knows beyond its parameters is a pure function of the sequence's tokens, so nothing has
to be saved, restored or rolled back.

A rule does its part in two pieces. On the host, before there are logits, it tells what the device
must know (`LogitsRule.shaping`); all that goes there in the step's one copy. On the device, when
there are, it changes them (`Shaping.apply`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ..params import SamplingParams

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Shaping:
    """What a rule does to the logits of one step."""

    arrays: tuple[npt.NDArray[Any], ...]  # what the device is to be sent for that
    apply: Callable[[Tensor, Sequence[Tensor]], Follow | None]
    """Change logits, float32 [batch rows, vocab], in place, given `arrays` as tensors beside them.
    Returns who wants to know what is drawn then, if anything is."""
    undrawn: Callable[[], None] | None = None
    """On the host, when it has been applied: no token is drawn of these rows."""


class LogitsRule(Protocol):
    """One way to change logits. `reads_history`: whether it needs the last tokens that have been
    said on the host, where a sequence that runs ahead has them later. `depends_on_output`: whether
    it depends on them at all, so that nothing can be drawn behind a guess."""

    reads_history: bool
    depends_on_output: bool

    def needs(self, params: SamplingParams) -> bool:
        """Whether a sequence with these parameters is touched at all."""

    def admit(self, row: int, params: SamplingParams) -> None:
        """A sequence that needs this rule now lives in `row`; forget who lived there before."""

    def shaping(self, at: Rows, rows: Rows, histories: Histories) -> Shaping:
        """How to change logits[at[i]] for the sequence in rows[i]: once for each step, in their
        order, and applied in that order or never.

        Args:
            at: which rows of the logits to change.
            rows: which sequence each of them continues, same length.
            histories: what has been said.
        """


class AllowedTokens:
    """`allowed_token_ids`: nothing else may be said."""

    reads_history = False
    depends_on_output = False

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._allowed: dict[int, Tokens] = {}  # by row

    def needs(self, params: SamplingParams) -> bool:
        return params.allowed_token_ids is not None

    def admit(self, row: int, params: SamplingParams) -> None:
        self._allowed[row] = _ids(params.allowed_token_ids or (), self._vocab_size)

    def shaping(self, at: Rows, rows: Rows, histories: Histories) -> Shaping:
        cells = _cells(self._vocab_size, at, [self._allowed[row] for row in rows.tolist()])
        return Shaping(arrays=(at, cells), apply=_allow)


class BadTokens:
    """`bad_words_ids` of one token each, never to be said: nobody waits for what has been."""

    reads_history = False
    depends_on_output = False

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._forbidden: dict[int, Tokens] = {}  # by row

    def needs(self, params: SamplingParams) -> bool:
        return any(len(word) == 1 for word in params.bad_words_ids)

    def admit(self, row: int, params: SamplingParams) -> None:
        alone = [word[0] for word in params.bad_words_ids if len(word) == 1]
        self._forbidden[row] = _ids(alone, self._vocab_size)

    def shaping(self, at: Rows, rows: Rows, histories: Histories) -> Shaping:
        cells = _cells(self._vocab_size, at, [self._forbidden[row] for row in rows.tolist()])
        return Shaping(arrays=(cells,), apply=_forbid)


class BadWords:
    """`bad_words_ids` of several tokens: one that would complete such a sequence may not be said.
    The draw waits for the token before it to reach the host."""

    reads_history = True
    depends_on_output = True

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._words: dict[int, list[tuple[npt.NDArray[np.int32], int]]] = {}  # (prefix, last id)

    def needs(self, params: SamplingParams) -> bool:
        return any(len(word) > 1 for word in params.bad_words_ids)

    def admit(self, row: int, params: SamplingParams) -> None:
        self._words[row] = [
            (np.array(word[:-1], dtype=np.int32), word[-1])
            for word in params.bad_words_ids
            if len(word) > 1 and word[-1] < self._vocab_size
        ]

    def shaping(self, at: Rows, rows: Rows, histories: Histories) -> Shaping:
        banned = [self._banned(row, histories) for row in rows.tolist()]
        return Shaping(arrays=(_cells(self._vocab_size, at, banned),), apply=_forbid)

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
    depends_on_output = True

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

    def shaping(self, at: Rows, rows: Rows, histories: Histories) -> Shaping:
        said = histories.lengths[rows] - histories.prompt_lengths[rows]
        short = said < np.array([self._minimum[row] for row in rows.tolist()])
        ends = [self._ends[row] for row in rows[short].tolist()]
        return Shaping(arrays=(_cells(self._vocab_size, at[short], ends),), apply=_forbid)


class LogitBias:
    """`logit_bias`: numbers added to chosen tokens' logits."""

    reads_history = False
    depends_on_output = False

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

    def shaping(self, at: Rows, rows: Rows, histories: Histories) -> Shaping:
        living = rows.tolist()
        cells = _cells(self._vocab_size, at, [self._ids[row] for row in living])
        values = np.concatenate([self._values[row] for row in living])
        return Shaping(arrays=(cells, values), apply=_add)


def _ids(ids: Sequence[int], vocab_size: int) -> Tokens:
    """The different ids among `ids` that the model has."""
    return np.array(sorted({i for i in ids if 0 <= i < vocab_size}), dtype=np.int64)


def _cells(vocab_size: int, at: Rows, ids: Sequence[Tokens]) -> Tokens:
    """Where the given ids of the given rows lie in `logits.view(-1)`."""
    lengths = [len(row_ids) for row_ids in ids]
    if not sum(lengths):
        return np.zeros(0, dtype=np.int64)
    return np.repeat(at, lengths) * vocab_size + np.concatenate(ids)


def _allow(logits: Tensor, given: Sequence[Tensor]) -> None:
    at, cells = given
    flat = logits.view(-1)
    kept = flat[cells]
    logits.index_fill_(0, at, _NEVER)
    flat[cells] = kept


def _forbid(logits: Tensor, given: Sequence[Tensor]) -> None:
    (cells,) = given
    logits.view(-1).index_fill_(0, cells, _NEVER)


def _add(logits: Tensor, given: Sequence[Tensor]) -> None:
    cells, values = given
    logits.view(-1).index_add_(0, cells, values)
