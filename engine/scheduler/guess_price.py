"""`GuessPrice`: what guesses add to a step, as a share of what it takes without any.

Measured by comparison: steps that only decode, with guesses and without, of the same number of
sequences. (`StepTime` cannot tell: in steady decoding tokens are as many as sequences, and what one
costs more the other costs less.) The share is taken to be a price of guessing at all, for a step
that verifies is drawn from in another way, and one of each guess. It depends on the number of
sequences, so each power of two of these has prices of its own, by least squares that forget, from
an estimate that a lack of news brings back: then guesses are tried anew.
"""

from __future__ import annotations

from collections import defaultdict

from ..step import StepPlan

_GUESSED = 0.95  # weight of a step when the next with guesses has been seen ...
_PLAIN, _FEW = 0.97, 16  # ... or so many without
_FOLLOWED = 0.1  # share of a plain step's news that is believed
_FIRST_STEP, _FIRST_GUESSES = 0.1, 0.25  # estimates: of guessing, of as many guesses as sequences
_NOTHING = 0.01  # steps: so much evidence is none
_SURPRISE = 1.0  # a step counts for at most so much more than was expected: a hiccup is no price


class GuessPrice:
    """Prices of guesses, in steps."""

    def __init__(self) -> None:
        self._plain: dict[int, float] = {}  # seconds of a step without guesses, by sequences
        self._fits: defaultdict[int, _Fit] = defaultdict(_Fit)  # by powers of two of sequences

    def of(self, sequences: int) -> tuple[float, float]:
        """Of guessing at all in a step of so many sequences, and of each guess."""
        step, all_guesses = self._fits[sequences.bit_length()].prices
        return step, all_guesses / sequences

    def observe(self, plan: StepPlan, seconds: float) -> None:
        """A step that took so long has been computed."""
        sequences = len(plan.slices)
        guesses = sum([len(piece.draft) for piece in plan.slices])
        if seconds <= 0 or plan.token_count != sequences + guesses:
            return
        plain = self._plain.get(sequences)
        fit = self._fits[sequences.bit_length()]
        if guesses and plain is not None:
            fit.see(guesses / sequences, seconds / plain - 1)
        elif not guesses:
            fit.see_none()
            news = seconds if plain is None else min(seconds, (1 + _SURPRISE) * plain)
            plain = news if plain is None else plain
            self._plain[sequences] = plain + _FOLLOWED * (news - plain)


class _Fit:
    """share = step + rate * guesses by least squares, from estimates of both that count for one
    observation, neither ever below zero."""

    def __init__(self) -> None:
        self.prices = _FIRST_STEP, _FIRST_GUESSES
        self._plain = 0  # steps without guesses
        self._sums = [0.0] * 5  # of 1, guesses, guesses^2, share, share * guesses: weighted

    def see_none(self) -> None:
        self._plain += 1
        if self._plain % _FEW == 0 and self._sums[0] > _NOTHING:
            self._fade(_PLAIN)
            self._solve()

    def see(self, guesses: float, share: float) -> None:
        step, rate = self.prices
        share = min(share, step + rate * guesses + _SURPRISE)
        self._fade(_GUESSED)
        news = (1.0, guesses, guesses * guesses, share, share * guesses)
        self._sums = [value + new for value, new in zip(self._sums, news, strict=True)]
        self._solve()

    def _fade(self, weight: float) -> None:
        self._sums = [weight * value for value in self._sums]

    def _solve(self) -> None:
        count, first, second, share, product = self._sums
        count, share = count + 1, share + _FIRST_STEP
        second, product = second + 1, product + _FIRST_GUESSES
        rate = (count * product - first * share) / (count * second - first * first)
        step = (share - rate * first) / count
        if step < 0:
            step, rate = 0.0, product / second
        elif rate < 0:
            step, rate = share / count, 0.0
        self.prices = max(0.0, step), max(0.0, rate)
