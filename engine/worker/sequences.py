"""What the compute wing knows of each living sequence: its tokens and its block table, by row.

Rows of preallocated arrays, so that the batch of a step is gathered by a handful of indexing
operations however many sequences it has.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import SequenceFailed
from ..step import History, Slice

_ARRAYS = (
    "token_ids",
    "lengths",
    "prompt_lengths",
    "block_tables",
    "_promised",
    "_guessed",
    "_kept",
    "_mapped",
    "_news_tokens",
    "_news_blocks",
)
_NO_NEWS = 1 << 62

Integers = npt.NDArray[np.int64]


class Cells(NamedTuple):
    """Some cells of a table with a row for each sequence."""

    rows: Integers
    columns: Integers
    values: npt.NDArray[np.int32]


class AsOf(NamedTuple):
    """The tokens of sequences as they stood when a step was given to the device: a `Histories`
    that the planner does not change while the step is under way."""

    token_ids: npt.NDArray[np.int32]
    lengths: Integers
    prompt_lengths: Integers


class SequenceTable:
    """Token ids, lengths and block tables of the living sequences. Grows when it must.

    A sequence's tokens become known when a slice brings them; they are *kept* when the step has
    succeeded. A step that failed may therefore be run again: it brings the same tokens to the same
    places. What a step under way will sample is *promised*: the sequence is that much longer, but
    only the device knows the token. A draft's tokens stand behind the known ones, and are none of
    the sequence's until they are accepted.

    Args:
        rows: sequences to make room for at first.
        longest: tokens of the longest sequence.
        block_size: tokens of a block.
    """

    def __init__(self, *, rows: int, longest: int, block_size: int) -> None:
        self._block_size = block_size
        self._row_of: dict[int, int] = {}  # by sequence id
        self.tenants = 0  # grows whenever a row is given to a sequence or taken from one
        self._free = list(range(rows - 1, -1, -1))
        # One more than the longest: the last token of a sequence is sampled, never computed.
        self.token_ids = np.zeros((rows, longest + 1), dtype=np.int32)
        self.lengths = np.zeros(rows, dtype=np.int64)  # tokens, those promised included
        self.prompt_lengths = np.zeros(rows, dtype=np.int64)
        self.block_tables = np.zeros((rows, -(-longest // block_size)), dtype=np.int32)
        self._promised = np.zeros(rows, dtype=np.int64)  # the last so many tokens
        self._guessed = np.zeros(rows, dtype=np.int64)  # behind the known ones (`guess`)
        self._kept = np.zeros(rows, dtype=np.int64)  # tokens of steps that have succeeded
        self._mapped = np.zeros(rows, dtype=np.int64)  # entries of the block table that are set
        # From where on tokens, and entries of the block table, are news (`news`).
        self._news_tokens = np.zeros(rows, dtype=np.int64)
        self._news_blocks = np.zeros(rows, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._row_of)

    def forget(self, sequences: Iterable[int]) -> None:
        """Give up the rows of sequences; unknown ones are no error."""
        for sequence in sequences:
            row = self._row_of.pop(sequence, None)
            if row is not None:
                self._free.append(row)
                self.tenants += 1

    def row(self, part: Slice) -> int:
        """Take in what a slice brings, and return the row of its sequence.

        Raises:
            SequenceFailed: the sequence is unknown.
        """
        row = self._row_of.get(part.sequence)
        if part.history is not None:
            row = self._admit(part.sequence, part.history)
        elif row is None:
            raise SequenceFailed("an earlier step, which brought the sequence's history, failed")
        if part.token_ids or part.history is not None:
            length = self._kept[row] + len(part.token_ids)
            self.token_ids[row, self._kept[row] : length] = part.token_ids
            self._news_tokens[row] = min(self._news_tokens[row], self._kept[row])
            self.lengths[row] = length
        if part.draft:
            length = self._kept[row] + len(part.token_ids)
            self.token_ids[row, length : length + len(part.draft)] = part.draft
            self._news_tokens[row] = min(self._news_tokens[row], length)
        if part.blocks:
            end = part.first_block + len(part.blocks)
            self.block_tables[row, part.first_block : end] = part.blocks
            self._news_blocks[row] = min(self._news_blocks[row], part.first_block)
            self._mapped[row] = end
        return row

    def guess(self, rows: Integers, counts: Integers | int) -> None:
        """So many guesses stand behind the known tokens of each: those of its last slice."""
        self._guessed[rows] = counts

    def reach(self, rows: Integers) -> Integers:
        """How many positions of each sequence can be computed: it has their blocks, and their
        tokens or guesses, or the device will."""
        tokens: Integers = self.lengths[rows] + self._guessed[rows]
        return np.minimum(tokens, self._mapped[rows] * self._block_size)

    def known(self, rows: Integers) -> Integers:
        """How many tokens of each sequence the host knows: all but those promised."""
        return self.lengths[rows] - self._promised[rows]

    def news(self, rows: Integers) -> tuple[Cells, Cells]:
        """The tokens and the block table entries of these sequences that have come in since this
        was last asked, but for tokens that were sampled; guesses are among them. After a `rewind`:
        all there are."""
        known = self.known(rows) + self._guessed[rows]
        tokens = _spans(rows, self._news_tokens[rows], known, self.token_ids)
        blocks = _spans(rows, self._news_blocks[rows], self._mapped[rows], self.block_tables)
        self._news_tokens[rows] = self._news_blocks[rows] = _NO_NEWS
        return tokens, blocks

    def as_of(self, rows: Integers, lengths: Integers) -> AsOf:
        """The histories of these sequences, cut to these lengths."""
        cut = self.lengths.copy()
        cut[rows] = lengths
        return AsOf(self.token_ids, cut, self.prompt_lengths)

    def promise(self, rows: Integers) -> None:
        """A step was given to the device that will sample one token for each of these."""
        self.lengths[rows] += 1
        self._promised[rows] += 1

    def break_promise(self, rows: Integers) -> None:
        """Their tokens have not come."""
        self.lengths[rows] -= 1
        self._promised[rows] -= 1

    def rewind(self) -> None:
        """The steps under way are given up: back to what was kept."""
        self.lengths[:] = self._kept
        self._promised[:] = 0
        self._news_tokens[:] = self._news_blocks[:] = 0

    def keep(self, rows: Integers, known: Integers) -> None:
        """A step has succeeded that knew so many tokens of these sequences: they are theirs."""
        self._kept[rows] = np.maximum(self._kept[rows], known)

    def append(self, rows: Integers, token_ids: Integers) -> None:
        """The tokens that were promised to these sequences first have come."""
        places = self.known(rows)
        self.token_ids[rows, places] = token_ids
        self._promised[rows] -= 1
        self._kept[rows] = places + 1

    def accept(self, row: int, token_ids: tuple[int, ...]) -> None:
        """As `append` for one sequence, nothing else being promised: with the token some guesses
        before it have come true."""
        place = int(self.known(np.array([row]))[0])
        end = place + len(token_ids)
        self.token_ids[row, place:end] = token_ids
        self._promised[row] = self._guessed[row] = 0
        self.lengths[row] = self._kept[row] = end

    def extend(self, row: int, token_ids: tuple[int, ...]) -> tuple[int, ...]:
        """Further tokens of a sequence, to which none is promised, are known without a step;
        returns those there is room for: the others are beyond the longest sequence."""
        length = int(self.lengths[row])
        end = min(length + len(token_ids), self.token_ids.shape[1])
        taken = token_ids[: end - length]
        self.token_ids[row, length:end] = taken
        self._news_tokens[row] = min(self._news_tokens[row], length)
        self.lengths[row] = self._kept[row] = end
        return taken

    def check(self) -> None:
        """Every row is free or has exactly one owner, and nothing is known beyond its width."""
        rows = sorted([*self._free, *self._row_of.values()])
        assert rows == list(range(len(self.lengths))), "rows leaked or were given out twice"
        assert (self.lengths <= self.token_ids.shape[1]).all()
        assert (self._kept <= self.lengths - self._promised).all()

    def _admit(self, sequence: int, history: History) -> int:
        row = self._row_of.get(sequence)
        if row is None:
            if not self._free:
                self._grow()
            row = self._row_of[sequence] = self._free.pop()
            self.tenants += 1
        self.token_ids[row, : len(history.token_ids)] = history.token_ids
        self.prompt_lengths[row] = history.prompt_length
        self._kept[row] = len(history.token_ids)
        self._promised[row] = 0
        self._mapped[row] = 0
        self._news_tokens[row] = self._news_blocks[row] = 0
        return row

    def _grow(self) -> None:
        """Twice as many rows. Swapped-out sequences live on here, and planning has no limit."""
        rows = len(self.lengths)
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        # Made first and taken then: memory may be missing half way.
        grown = {name: np.concatenate((old, np.zeros_like(old))) for name, old in arrays.items()}
        for name, array in grown.items():
            setattr(self, name, array)
        self._free.extend(range(2 * rows - 1, rows - 1, -1))


def _spans(rows: Integers, begin: Integers, end: Integers, table: npt.NDArray[np.int32]) -> Cells:
    """The cells begin[i] .. end[i] - 1 of each rows[i]; in most steps there are few."""
    some = np.flatnonzero(begin < end)
    rows, begin, counts = rows[some], begin[some], (end - begin)[some]
    row = np.repeat(rows, counts)
    column = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts - begin, counts)
    return Cells(row, column, table[row, column])
