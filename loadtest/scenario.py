"""Scenarios: named sets of workloads, as files. `scenarios/` holds those that octavo is judged by.

title = "Chat"
[[workload]]
name = "turns"
requests = 64
concurrency = 8
prompt = "256~0.8<1024"
output = "64..256"
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from .lengths import lengths
from .workload import Workload

FOLDER = Path(__file__).parent / "scenarios"
_LENGTHS = {"prompt": "prompt_tokens", "output": "output_tokens"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Workloads that run side by side. The first one is what a sweep varies the rate of.

    Where a workload `disturbs` another, the gaps of the other's streams are reported for the time
    between its first request and its first token.
    """

    name: str
    title: str
    workloads: tuple[Workload, ...]
    disturbs: tuple[str, str] | None = None  # names: the one that does, the one that suffers

    @property
    def requests(self) -> int:
        return sum(workload.requests for workload in self.workloads)

    def seeded(self, seed: int) -> Scenario:
        """The same with other prompts, which no cache has seen."""
        return replace(
            self,
            workloads=tuple(
                replace(workload, seed=1000 * seed + number)
                for number, workload in enumerate(self.workloads)
            ),
        )

    def at_rate(self, rate: float) -> Scenario:
        """The first workload as an open loop."""
        first, *rest = self.workloads
        return replace(self, workloads=(replace(first, rate=rate), *rest))


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name: str) -> Scenario:
    """A scenario by its name, or from a file. Raises ValueError, which says what is wrong."""
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name.lower()}.toml"
    if not path.is_file():
        raise ValueError(f"there is no scenario {name}; there are {', '.join(names())}")
    try:
        content = tomllib.loads(path.read_text("utf-8"))
        workloads = tuple(_workload(each) for each in content.pop("workload"))
        disturbs = content.pop("disturbs", None)
        return Scenario(
            name=path.stem,
            workloads=workloads,
            disturbs=None if disturbs is None else (disturbs[0], disturbs[1]),
            **content,
        )
    except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _workload(content: dict[str, Any]) -> Workload:
    known = {field.name for field in fields(Workload)}
    values = {_LENGTHS.get(key, key): value for key, value in content.items()}
    for key in _LENGTHS.values():
        values[key] = lengths(values[key])
    if unknown := values.keys() - known:
        raise ValueError(f"a workload has no {', '.join(sorted(unknown))}")
    return Workload(**values)
