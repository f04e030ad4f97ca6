"""What a drill found, against what must hold: a line for a person and a record for a file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

Figures = Mapping[str, float | int | str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One figure and its limit. `least`: it must be the limit or more; else the limit or less."""

    name: str
    value: float
    limit: float
    least: bool = False

    @property
    def holds(self) -> bool:
        """False also for a figure that is no number."""
        return self.value >= self.limit if self.least else self.value <= self.limit

    def __str__(self) -> str:
        relation = ">=" if self.least else "<="
        mark = "" if self.holds else "  <- FALLS SHORT"
        return f"{self.name}: {self.value:.4g} ({relation} {self.limit:.4g}){mark}"


def none(name: str, value: float) -> Check:
    """There must be none of them."""
    return Check(name=name, value=value, limit=0)


def at_most(name: str, value: float, limit: float) -> Check:
    return Check(name=name, value=value, limit=limit)


def at_least(name: str, value: float, limit: float) -> Check:
    return Check(name=name, value=value, limit=limit, least=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """All that one drill found. `figures` are worth knowing, but nothing hangs on them."""

    checks: tuple[Check, ...]
    figures: Figures = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return bool(self.checks) and all(check.holds for check in self.checks)

    def line(self, drill: str) -> str:
        """For a person."""
        verdict = "pass" if self.passed else "FALL SHORT"
        told = "; ".join(map(str, self.checks))
        return f"{drill:<12} {verdict:<10} {told}"

    def as_json(self) -> dict[str, object]:
        return {
            "passed": self.passed,
            "checks": {
                check.name: {
                    "value": check.value if math.isfinite(check.value) else str(check.value),
                    "at least" if check.least else "at most": check.limit,
                    "holds": check.holds,
                }
                for check in self.checks
            },
            "figures": dict(self.figures),
        }


def broken_off(error: BaseException) -> Outcome:
    """A drill that could not be carried through has fallen short."""
    return Outcome(
        checks=(none("drills broken off", 1),),
        figures={"error": f"{type(error).__name__}: {error}"},
    )
