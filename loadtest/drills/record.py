"""The file that remembers what drills found, where and with what."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

from .. import machine
from .verdict import Outcome

RESULTS = Path(__file__).resolve().parents[1] / "results"


def default_file(what: str) -> Path:
    """loadtest/results/<date>-<what>-<kind of machine>.json"""
    return RESULTS / f"{datetime.now(UTC):%Y-%m-%d}-{what}-cpu{len(os.sched_getaffinity(0))}.json"


def remember(file: Path, drill: str, outcome: Outcome, *, seconds: float, effort: str) -> None:
    """Write one drill's record into the file, in the place of an earlier one of the same name."""
    kept = json.loads(file.read_text()) if file.is_file() else {}
    record = {
        **outcome.as_json(),
        "effort": effort,
        "seconds": round(seconds, 1),
        **machine.described(),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({**kept, drill: record}, indent=1) + "\n")
