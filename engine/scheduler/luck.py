"""`Luck`: how often guesses were right, and what that lets hope for.

A draft is a row of trials that ends with the first failure. Its chances are those of the rule of
succession (Laplace 1814) with a prior: right guesses make the next one likelier, those of the same
draft, too, so that who was right often gets long drafts.
"""

from __future__ import annotations

from dataclasses import dataclass

_PRIOR = 4.0  # guesses that what others had counts for


@dataclass(slots=True)
class Luck:
    """Of guesses of late; those of long ago count for less."""

    memory: float  # weight of a draft when the next one has been seen
    right: float = 0.0
    wrong: float = 0.0

    @property
    def share(self) -> float:
        """How many are right, of those whose forerunners were; 1/2 before there are any."""
        return (self.right + 1) / (self.right + self.wrong + 2)

    def see(self, right: int, count: int) -> None:
        """Of a draft of `count` tokens the first `right` were right."""
        self.right = self.memory * self.right + right
        self.wrong = self.memory * self.wrong + (right < count)

    def chances(self, others: float, count: int) -> list[float]:
        """Of each of the next `count` guesses, that it and all before it are right, where with
        others a share of `others` is."""
        right = self.right + _PRIOR * others
        seen = self.right + self.wrong + _PRIOR
        chance, chances = 1.0, []
        for place in range(count):
            chance *= (right + place) / (seen + place)
            chances.append(chance)
        return chances
