"""`Families`: metrics that carry octavo's prefix and the labels which every core metric has.

Buckets are those of vLLM's dashboards. Some have finer first ones, because a first bucket of 0.3 s
shows nothing of a fast server.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

PREFIX = "octavo:"

STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
STEP_SEQUENCES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10),
    *(20, 40, 80, 160, 640, 2560),
)
BETWEEN_TOKENS = (
    *(0.001, 0.0025, 0.005),  # finer than vLLM's first, 0.01
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10),
    *(20, 40, 80),
)
WHOLE_REQUEST = (
    *(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2),  # finer than vLLM's first, 0.3
    *(0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960),
    *(1920, 7680),
)
STEP_SECONDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1),
    *(2.5, 5, 10),
)
HTTP_SECONDS = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 60)
CHOICES = (1, 2, 5, 10, 20)


def lengths(longest: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20, 50 ... up to `longest`."""
    return tuple(_one_two_five(longest)) or (1,)


def _one_two_five(longest: int) -> Iterator[float]:
    power = 1
    while True:
        for digit in (1, 2, 5):
            if digit * power > longest:
                return
            yield digit * power
        power *= 10


class UnlockedHistogram(Collector):
    """A histogram that is told something for each token or step, by one event loop.

    An observation takes a third of the time of the library's own, which is locked.
    """

    def __init__(
        self, name: str, text: str, buckets: Sequence[float], labels: Mapping[str, str]
    ) -> None:
        self._name, self._text, self._labels = name, text, labels
        self._bounds = [*map(float, buckets), math.inf]
        self._counts = [0] * len(self._bounds)
        self._sum = 0.0
        self._created = time.time()

    def observe(self, value: float, times: int = 1) -> None:
        """The same value, so many times."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def collect(self) -> Iterable[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._text, labels=tuple(self._labels))
        buckets = zip(map(floatToGoString, self._bounds), accumulate(self._counts), strict=True)
        family.add_metric(tuple(self._labels.values()), list(buckets), self._sum)
        family.add_sample(f"{self._name}_created", dict(self._labels), self._created)
        yield family


class Families:
    """Makes the metrics of one model and one engine, in a registry of their own."""

    def __init__(self, *, model_name: str, engine: str) -> None:
        self.registry = CollectorRegistry()
        self._core = {"model_name": model_name, "engine": engine}

    def gauge(self, name: str, text: str) -> Gauge:
        family = Gauge(PREFIX + name, text, tuple(self._core), registry=self.registry)
        return family.labels(**self._core)

    def gauges(self, name: str, text: str, label: str, values: Sequence[str]) -> dict[str, Gauge]:
        """One gauge for each value of a further label; all exist from the start."""
        names = (*self._core, label)
        family = Gauge(PREFIX + name, text, names, registry=self.registry)
        return {value: family.labels(**self._core, **{label: value}) for value in values}

    def counter(self, name: str, text: str) -> Counter:
        """`name` without `_total`, which exposition appends."""
        family = Counter(PREFIX + name, text, tuple(self._core), registry=self.registry)
        return family.labels(**self._core)

    def counters(
        self, name: str, text: str, label: str, values: Sequence[str]
    ) -> dict[str, Counter]:
        """One counter for each value of a further label; all exist from the start."""
        names = (*self._core, label)
        family = Counter(PREFIX + name, text, names, registry=self.registry)
        return {value: family.labels(**self._core, **{label: value}) for value in values}

    def histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        family = Histogram(
            PREFIX + name, text, tuple(self._core), buckets=buckets, registry=self.registry
        )
        return family.labels(**self._core)

    def unlocked_histogram(
        self, name: str, text: str, buckets: Sequence[float]
    ) -> UnlockedHistogram:
        family = UnlockedHistogram(PREFIX + name, text, buckets, self._core)
        self.registry.register(family)
        return family
