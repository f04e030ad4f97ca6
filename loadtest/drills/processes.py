"""Processes as the kernel shows them: a tree, its memory and its descriptors."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


def children(pid: int) -> list[int]:
    """Of all threads of a process; none where it has ended."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in (_PROC / str(pid) / "task").iterdir():
            with contextlib.suppress(OSError):
                found += map(int, (thread / "children").read_text().split())
    return found


def tree(pid: int) -> list[int]:
    """A process and all its descendants."""
    found = [pid]
    for each in found:
        found += children(each)
    return found


def alive(pid: int) -> bool:
    """Whether it still runs or holds anything: a zombie does not."""
    try:
        stat = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def command_of(pid: int) -> str:
    try:
        return (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class Held:
    """What a process tree holds."""

    bytes: int  # resident
    descriptors: int


def held_by(pids: list[int]) -> Held:
    memory = descriptors = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in (_PROC / str(pid) / "status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    memory += int(line.split()[1]) * 1024
            descriptors += len(list((_PROC / str(pid) / "fd").iterdir()))
    return Held(memory, descriptors)
