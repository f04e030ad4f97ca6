"""How much of everything a drill does."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """Of a whole run; each drill reads what concerns it."""

    kills: int = 50
    freezes: int = 3
    malformed_bodies: int = 10_000
    disconnects: int = 1_000
    overload_seconds: float = 60.0
    soak_seconds: float = 1800.0
    seed: int = 0


FULL = Effort()
QUICK = Effort(
    kills=3, freezes=1, malformed_bodies=300, disconnects=40, overload_seconds=12, soak_seconds=60
)
