"""Where and with what a drill was held, and the file that remembers it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from .verdict import Outcome

RESULTS = Path(__file__).resolve().parents[1] / "results"
_PACKAGES = ("octavo", "torch", "uvicorn", "llguidance")


def default_file(what: str) -> Path:
    """loadtest/results/<date>-<what>-<kind of machine>.json"""
    return RESULTS / f"{datetime.now(UTC):%Y-%m-%d}-{what}-{machine_kind()}.json"


def machine_kind() -> str:
    return f"cpu{len(os.sched_getaffinity(0))}"


def remember(file: Path, drill: str, outcome: Outcome, *, seconds: float, effort: str) -> None:
    """Write one drill's record into the file, in the place of an earlier one of the same name."""
    kept = json.loads(file.read_text()) if file.is_file() else {}
    record = {
        **outcome.as_json(),
        "effort": effort,
        "seconds": round(seconds, 1),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "load average": [round(value, 2) for value in os.getloadavg()],
        "versions": _versions(),
    }
    drills = {**kept.get("drills", {}), drill: record}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"machine": _machine(), "drills": drills}, indent=1) + "\n")


def _machine() -> dict[str, object]:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(pages / 2**30),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
        versions["commit"] = done.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        pass  # installed without its repository
    return versions
