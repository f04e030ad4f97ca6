"""`Policy`: who goes first. Whoever goes first is also the last to give way."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from ..errors import ConfigError
from ..sequence import Sequence


class Policy(Protocol):
    """An order over sequences, running or waiting; total, so that two runs agree."""

    def order(self, sequences: Iterable[Sequence], now: float) -> list[Sequence]:
        """First to run first. `now` is time.monotonic() seconds."""


class FirstComeFirstServed:
    """By arrival: whatever is oldest always makes progress, so nothing starves."""

    def order(self, sequences: Iterable[Sequence], now: float) -> list[Sequence]:
        return sorted(sequences, key=lambda s: (s.request.arrival, s.id))


class ByPriority:
    """By the request's priority (lower first), then by arrival."""

    def order(self, sequences: Iterable[Sequence], now: float) -> list[Sequence]:
        return sorted(sequences, key=lambda s: (s.request.priority, s.request.arrival, s.id))


def policy_named(name: str) -> Policy:
    """The policy of `EngineConfig.scheduling_policy`.

    Raises:
        ConfigError: there is none of that name.
    """
    policies: dict[str, Policy] = {"fcfs": FirstComeFirstServed(), "priority": ByPriority()}
    if name not in policies:
        raise ConfigError(f"scheduling_policy must be one of {sorted(policies)}, not {name!r}.")
    return policies[name]
