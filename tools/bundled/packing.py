"""Packed token files and the order in which training reads them.

A stream is a flat file of `uint16` token ids, documents end to end. Training cuts it into windows
and visits them in an order that is a function of (seed, stream, window length, epoch) alone, so a
resumed run needs no generator state, and no window comes twice before all have come once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

Tokens = npt.NDArray[np.uint16]

ENCODE_AT_ONCE = 256


def pack(texts: Iterable[str], tokenizer: Tokenizer, path: Path) -> int:
    """Writes the ids of all `texts`, end to end, atomically; returns how many there are."""
    total = 0
    remaining = iter(texts)
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        while group := list(islice(remaining, ENCODE_AT_ONCE)):
            for encoding in tokenizer.encode_batch(group, add_special_tokens=False):
                file.write(np.asarray(encoding.ids, dtype=np.uint16).tobytes())
                total += len(encoding.ids)
    temporary.replace(path)
    return total


def open_packed(path: Path) -> Tokens:
    """Maps a packed file into memory, read only."""
    return np.memmap(path, dtype=np.uint16, mode="r")


@dataclass(frozen=True, slots=True)
class Mixture:
    """What share of the windows each stream gives (the shares add up to 1), and how long one is."""

    shares: tuple[float, ...]
    length: int


class Windows:
    """Draws the windows of any step from a list of streams, as a function of (seed, step)."""

    def __init__(self, streams: Sequence[Tokens], *, seed: int, tokens_per_step: int) -> None:
        self._streams = list(streams)
        self._seed = seed
        self._tokens_per_step = tokens_per_step
        self._order = lru_cache(maxsize=16)(self._shuffled)

    def step(self, step: int, mixture: Mixture) -> npt.NDArray[np.int64]:
        """The windows of one step, each with the token after it: [windows, length + 1]."""
        count = self._tokens_per_step // mixture.length
        rows = []
        below = 0.0
        for stream, share in enumerate(mixture.shares):
            # Cumulative shares, rounded down, so that the parts of each step add up to `count`
            # and the long-run share of every stream is exact.
            first = self._drawn(step, count, below, below + share)
            last = self._drawn(step + 1, count, below, below + share)
            rows += [self._window(stream, mixture.length, index) for index in range(first, last)]
            below += share
        return np.stack(rows).astype(np.int64)

    @staticmethod
    def _drawn(step: int, count: int, low: float, high: float) -> int:
        """How many windows a stream with the shares [low, high) has given before `step`."""
        return math.floor(step * count * high + 1e-6) - math.floor(step * count * low + 1e-6)

    def _window(self, stream: int, length: int, index: int) -> Tokens:
        tokens = self._streams[stream]
        count = (len(tokens) - 1) // length
        epoch, index = divmod(index, count)
        start = int(self._order(stream, length, epoch)[index]) * length
        return np.asarray(tokens[start : start + length + 1])

    def _shuffled(self, stream: int, length: int, epoch: int) -> npt.NDArray[np.int64]:
        key = np.random.SeedSequence([self._seed, stream, length, epoch])
        count = (len(self._streams[stream]) - 1) // length
        return np.random.Generator(np.random.Philox(key)).permutation(count)
