"""`StopScanner`: finds stop strings in text that arrives piece by piece."""

from __future__ import annotations

from collections.abc import Sequence


class StopScanner:
    """Lets text through until one of the stop strings appears in it.

    Of all matches the one that starts first in the text wins; of two that start at the same place,
    the one listed first. Text that may still turn out to belong to the winner is held back, so
    what comes out does not depend on how the text was cut into pieces: it is what a search in the
    whole text would give.
    """

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        """`include`: the stop string itself is let through, too. Empty strings never match."""
        self._searches = [_Search(stop) for stop in stops if stop]
        self._include = include
        self._held = ""
        self._held_from = 0  # position of the held text in all text
        self.matched: str | None = None

    def feed(self, text: str) -> str:
        """The text that is certain to come before any stop string.

        When `matched` is set afterwards, this was the last of it: the caller stops here.
        """
        if self.matched is not None:
            return ""
        if not self._searches:
            return text
        self._held += text
        for search in self._searches:
            search.feed(text)
        winner = self._winner()
        if winner is not None and not self._contested(winner):
            return self._stop_at(winner)
        return self._release(min(search.start for search in self._searches))

    def finish(self) -> str:
        """The text has ended: what was held back, up to a stop string if there is one in it."""
        winner = None if self.matched is not None else self._winner()
        if winner is not None:
            return self._stop_at(winner)
        rest, self._held = self._held, ""
        return rest

    def _winner(self) -> _Search | None:
        found = [search for search in self._searches if search.found]
        return min(found, key=lambda search: search.start, default=None)  # ties: the first listed

    def _contested(self, winner: _Search) -> bool:
        """Whether an unfinished match could still take the winner's place."""
        rank = self._searches.index(winner)
        return any(
            not search.found and (search.start, place) < (winner.start, rank)
            for place, search in enumerate(self._searches)
        )

    def _stop_at(self, winner: _Search) -> str:
        self.matched = winner.stop
        end = winner.start + (len(winner.stop) if self._include else 0)
        text = self._release(end)
        self._held = ""
        return text

    def _release(self, end: int) -> str:
        cut = end - self._held_from
        text, self._held = self._held[:cut], self._held[cut:]
        self._held_from += cut
        return text


class _Search:
    """The first occurrence of one string (Knuth, Morris and Pratt 1977): each character is read
    once, and the longest unfinished match is known all the time."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self._fallback = _prefix_function(stop)
        self._matched = 0  # characters of `stop` that end the text read so far
        self._read = 0

    @property
    def found(self) -> bool:
        return self._matched == len(self.stop)

    @property
    def start(self) -> int:
        """Where the match, or the longest unfinished one, begins in all text; else its end."""
        return self._read - self._matched

    def feed(self, text: str) -> None:
        for character in text:
            if self.found:
                return
            while self._matched and self.stop[self._matched] != character:
                self._matched = self._fallback[self._matched - 1]
            self._matched += self.stop[self._matched] == character
            self._read += 1


def _prefix_function(stop: str) -> list[int]:
    """For each prefix of `stop`, the length of its longest proper prefix that also ends it."""
    lengths = [0] * len(stop)
    for place in range(1, len(stop)):
        length = lengths[place - 1]
        while length and stop[place] != stop[length]:
            length = lengths[length - 1]
        lengths[place] = length + (stop[place] == stop[length])
    return lengths
