"""On what a figure was measured: machine, versions, and how busy the machine was."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

PACKAGES = ("torch", "transformers", "numpy", "uvloop", "httptools")


def described() -> dict[str, object]:
    """For the head of a result file."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": _from_proc("cpuinfo", "model name") or platform.processor(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_gib": _memory_gib(),
            "instructions": _instructions(),
            "system": platform.platform(),
        },
        "versions": _versions(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def busy_seconds() -> float:
    """Processor time that all cores together have spent computing, for anybody, since the boot."""
    try:
        first = Path("/proc/stat").read_text().partition("\n")[0].split()[1:]
    except OSError:
        return 0.0
    user, nice, system, _, _, irq, softirq, *_ = map(int, first)
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _from_proc(file: str, key: str) -> str | None:
    try:
        text = Path("/proc", file).read_text()
    except OSError:
        return None
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return None


def _memory_gib() -> int | None:
    total = _from_proc("meminfo", "MemTotal")
    return None if total is None else round(int(total.split()[0]) / 2**20)


def _instructions() -> list[str]:
    flags = (_from_proc("cpuinfo", "flags") or "").split()
    telling = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8")
    return [flag for flag in telling if flag in flags]


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("octavo", *PACKAGES):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    commit = _commit()
    return found if commit is None else {**found, "commit": commit}


def _commit() -> str | None:
    """Of the source tree that this file is in; None where it is installed without one."""
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).resolve().parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()
