"""Prompt lookup: what followed the last tokens when they stood there before follows them again.

Answers repeat their prompts and themselves: code that is edited, texts that are summarised, JSON.
The last few tokens are looked for in what is known, and what came after them is the draft (Saxena
2023, "Prompt Lookup Decoding"). Nothing is kept of a sequence but how its drafts fared.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_FIRST = 2  # tokens of a first draft, and after one of which nothing was right
_SHORTEST_PAUSE, _LONGEST_PAUSE = 16, 256  # tokens
_LOOK_AGAIN = 4  # tokens after one whose place was not found


@dataclass(slots=True)
class _Record:
    """How the drafts of a sequence fared."""

    length: int = _FIRST  # of its next one
    pause: int = _SHORTEST_PAUSE  # tokens without one, when the next fails
    resumes: int = 0  # known tokens from which on there are drafts again


class PromptLookup:
    """A `Proposer`.

    A draft that was right makes the next one longer. One of which nothing was ends them for some
    tokens, and for twice as many the next time: where texts do not repeat that is all it costs. To
    look costs some microseconds, and is not done at every token where nothing is found.

    Args:
        most: tokens of a draft.
        shortest, longest: tokens that are looked for; of two places the one is taken where more
            tokens before it agree, then the later one.
    """

    def __init__(self, *, most: int, shortest: int, longest: int) -> None:
        self._most = most
        self._shortest = shortest
        self._longest = longest
        self._records: dict[int, _Record] = {}  # by row

    def admit(self, row: int) -> None:
        self._records[row] = _Record()

    def propose(
        self, row: int, known: npt.NDArray[np.int32], accepted: int | None
    ) -> tuple[int, ...]:
        record = self._records[row]
        if accepted:
            record.length = 2 * accepted + _FIRST
            record.pause = _SHORTEST_PAUSE
        elif accepted == 0:
            record.length = _FIRST
            record.resumes = len(known) + record.pause
            record.pause = min(_LONGEST_PAUSE, 2 * record.pause)
        if len(known) < record.resumes:
            return ()
        most = min(record.length, self._most)
        draft = continuation(known, self._shortest, self._longest, most)
        if not draft:
            record.resumes = len(known) + _LOOK_AGAIN
        return draft


def continuation(
    known: npt.NDArray[np.int32], shortest: int, longest: int, count: int
) -> tuple[int, ...]:
    """The `count` tokens that followed the longest end of `known`, of shortest..longest tokens,
    that stands in it before. What reaches its end goes on with the draft itself, as a text that
    has a period does."""
    length = len(known)
    if length <= shortest:
        return ()
    found = known[shortest - 1 : -1] == known[-1]
    for back in range(1, shortest):
        found &= known[shortest - 1 - back : -1 - back] == known[-1 - back]
    behind = np.flatnonzero(found) + shortest  # places of what followed
    if not len(behind):
        return ()
    for size in range(shortest + 1, min(longest, length - 1) + 1):
        longer = behind[(behind >= size) & (known[behind - size] == known[-size])]
        if not len(longer):
            break
        behind = longer
    period = known[behind[-1] :].tolist()
    return tuple((period * (count // len(period) + 1))[:count])
