"""`make drills` and `make soak`: hold drills, one after the other, and tell what was found."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..run import run
from .crash import crash, freeze
from .culprits import batchmate, poison
from .disconnects import disconnects
from .effort import FULL, QUICK, Effort
from .endings import drain, orphans
from .malformed import malformed
from .overload import overload
from .record import default_file, remember
from .soak import soak
from .verdict import Outcome, broken_off

Drill = Callable[[Effort], Coroutine[Any, Any, Outcome]]
DRILLS: Mapping[str, Drill] = {
    "crash": crash,
    "poison": poison,
    "freeze": freeze,
    "orphans": orphans,
    "malformed": malformed,
    "disconnects": disconnects,
    "overload": overload,
    "drain": drain,
    "batchmate": batchmate,
}
_ALL: Mapping[str, Drill] = {**DRILLS, "soak": soak}


def main(words: Sequence[str]) -> int:
    """The exit status: 0 when every drill has passed."""
    parser = argparse.ArgumentParser(
        prog="make drills ARGS=...", description=__doc__, allow_abbrev=False
    )
    parser.add_argument(
        "drill", nargs="*", help=f"{', '.join(_ALL)}; none named: all but soak", metavar="DRILL"
    )
    parser.add_argument("--quick", action="store_true", help="less of everything, to try it out")
    parser.add_argument("--minutes", type=float, help="of the soak")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where records go")
    chosen = parser.parse_args(words)
    unknown = [name for name in chosen.drill if name not in _ALL]
    if unknown:
        parser.error(f"there is no drill {unknown[0]}; there are {', '.join(_ALL)}")
    effort = replace(QUICK if chosen.quick else FULL, seed=chosen.seed)
    if chosen.minutes is not None:
        effort = replace(effort, soak_seconds=60 * chosen.minutes)
    names = chosen.drill or list(DRILLS)
    file = chosen.json or default_file("soak" if names == ["soak"] else "drills")
    passed = [_hold(name, effort, file, "quick" if chosen.quick else "full") for name in names]
    sys.stdout.write(f"{sum(passed)} of {len(passed)} passed; records in {file}\n")
    return 0 if all(passed) else 1


def _hold(name: str, effort: Effort, file: Path, told: str) -> bool:
    began = time.perf_counter()
    try:
        outcome = run(_ALL[name](effort))
    except Exception as error:  # the other drills are held all the same
        outcome = broken_off(error)
    remember(file, name, outcome, seconds=time.perf_counter() - began, effort=told)
    sys.stdout.write(outcome.line(name) + "\n")
    sys.stdout.flush()
    return outcome.passed
