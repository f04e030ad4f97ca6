"""How long prompts and answers are, as a flag or a scenario file writes it:

128              always 128 tokens
64..256          each length from 64 to 256 equally often
512~0.8          log-normal, median 512, sigma 0.8, as people's texts are
512~0.8<4096     the same, none longer than 4096
128*3,2..64*1    one of several, the first three times as often
"""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Uniform:
    """Each length from `low` to `high`, both included; low = high is a fixed length."""

    low: int
    high: int

    def draw(self, source: random.Random) -> int:
        return source.randint(self.low, self.high)

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}..{self.high}"


@dataclass(frozen=True, slots=True)
class LogNormal:
    """Most lengths near the median, a few much longer; none above `highest`."""

    median: int
    sigma: float
    highest: int | None = None

    def draw(self, source: random.Random) -> int:
        length = max(1, round(self.median * source.lognormvariate(0.0, self.sigma)))
        return length if self.highest is None else min(length, self.highest)

    def __str__(self) -> str:
        return f"{self.median}~{self.sigma:g}" + (f"<{self.highest}" if self.highest else "")


@dataclass(frozen=True, slots=True)
class Mix:
    """One of several kinds, each with its weight."""

    parts: tuple[tuple[Uniform | LogNormal, float], ...]

    def draw(self, source: random.Random) -> int:
        kinds, weights = zip(*self.parts, strict=True)
        chosen: Uniform | LogNormal = source.choices(kinds, weights)[0]
        return chosen.draw(source)

    def __str__(self) -> str:
        return ",".join(f"{kind}*{weight:g}" for kind, weight in self.parts)


Lengths = Uniform | LogNormal | Mix


def fixed(tokens: int) -> Lengths:
    return Uniform(tokens, tokens)


def lengths(text: str | int) -> Lengths:
    """Read one of the forms above. Raises ValueError, which names the text and the forms."""
    try:
        parts = [_weighted(part) for part in str(text).split(",")]
    except ValueError:
        raise ValueError(
            f"{text!r} is no length: write 128, 64..256, 512~0.8, 512~0.8<4096 or 128*3,2..64*1"
        ) from None
    return parts[0][0] if len(parts) == 1 else Mix(tuple(parts))


def _weighted(text: str) -> tuple[Uniform | LogNormal, float]:
    kind, _, weight = text.partition("*")
    return _one(kind), float(weight or 1)


def _one(text: str) -> Uniform | LogNormal:
    if "~" in text:
        median, _, rest = text.partition("~")
        sigma, _, highest = rest.partition("<")
        if int(median) < 1 or float(sigma) < 0:
            raise ValueError
        return LogNormal(int(median), float(sigma), int(highest) if highest else None)
    low, dots, high = text.partition("..")
    chosen = Uniform(int(low), int(high if dots else low))
    if not 1 <= chosen.low <= chosen.high:
        raise ValueError
    return chosen
