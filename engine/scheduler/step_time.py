"""`StepTime`: how long a step will take, learned from the steps that were.

The seconds of a step are taken to be a sum of four prices: of the step itself, of each sequence, of
each token, and of each pair of a query and a cell it attends to. They are fitted while the engine
runs by least squares over relative errors with exponential forgetting (recursive least squares,
Plackett 1950), one sweep of coordinate descent a step, none of them ever below zero. Directions the
recent steps say nothing about, such as the price of pairs while all contexts are short, stay where
they were.
"""

from __future__ import annotations

from collections.abc import Collection
from math import sqrt

from ..step import StepPlan

_MEMORY = 0.98  # weight of a step when the next one has been seen
_SURPRISE = (
    4.0  # a step counts for at most this many times what was predicted: a hiccup is no price
)
_SWEEPS = 2
_FEATURES = 4  # of a step: 1, sequences, tokens, pairs


class StepTime:
    """Prices of a step's parts, in seconds. `token_seconds` is where they begin."""

    def __init__(self, token_seconds: float) -> None:
        self._prices = [0.0, 0.0, token_seconds, 0.0]
        self._products = [[0.0] * _FEATURES for _ in range(_FEATURES)]  # of features, weighted
        self._targets = [0.0] * _FEATURES  # features times seconds, weighted

    @property
    def token_seconds(self) -> float:
        """What one more prompt token costs, whatever it attends to."""
        return self._prices[2]

    def predict(self, plan: StepPlan) -> float:
        """Seconds that computing the plan will take."""
        return self._cost(1.0, *plan.size)

    def predict_decoding(self, streams: Collection[tuple[int, int]]) -> float:
        """Seconds of a step that computes, for each of these, so many tokens from a position on
        (start, count)."""
        tokens = sum([count for _, count in streams])
        pairs = sum([n * (start + (n + 1) / 2) for start, n in streams])  # `_pairs`, every step
        return self._cost(1.0, len(streams), tokens, pairs)

    def price(self, start: int, count: int) -> float:
        """Seconds that `count` tokens of a sequence, from position `start` on, add to a step."""
        return self._cost(0.0, 1.0, count, _pairs(start, count))

    def tokens_within(self, seconds: float, start: int) -> int:
        """How many tokens of one more sequence, from position `start` on, cost at most that."""
        _, sequence, token, pair = self._prices
        left = seconds - sequence
        if left <= 0:
            return 0
        each = token + pair * start  # n tokens cost n * each + n^2 / 2 * pair
        if pair > 0:
            return int((sqrt(each * each + 2 * pair * left) - each) / pair)
        return int(min(left / each, 1e9)) if each > 0 else 10**9

    def observe(self, plan: StepPlan, seconds: float) -> None:
        """A step that took so long has been computed."""
        if seconds <= 0 or not plan.slices:
            return
        features = (1.0, *plan.size)
        predicted = self._cost(*features)
        if predicted > 0 and any(map(any, self._products)):
            seconds = min(seconds, _SURPRISE * predicted)
        scaled = [value / seconds for value in features]  # an error counts by its share
        for row, by in zip(self._products, scaled, strict=True):
            for column, value in enumerate(scaled):
                row[column] = _MEMORY * row[column] + by * value
        for at, value in enumerate(scaled):
            self._targets[at] = _MEMORY * self._targets[at] + value
        for _ in range(_SWEEPS):
            self._descend()

    def _descend(self) -> None:
        prices = self._prices
        for at, row in enumerate(self._products):
            if row[at] > 0:
                others = sum(map(float.__mul__, row, prices)) - row[at] * prices[at]
                prices[at] = max(0.0, (self._targets[at] - others) / row[at])

    def _cost(self, step: float, sequences: float, tokens: float, pairs: float) -> float:
        prices = self._prices
        return prices[0] * step + prices[1] * sequences + prices[2] * tokens + prices[3] * pairs


def _pairs(start: int, count: int) -> float:
    """As `StepPlan.size` counts them."""
    return count * (start + (count + 1) / 2)
