"""Where and in which number format to compute, with how many threads, and what memory is free."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from .errors import ConfigError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def pick_device(name: str) -> torch.device:
    """The device called `name`: "cpu", or "auto" for the best there is."""
    if name not in ("auto", "cpu"):
        raise ConfigError(f"--device {name} is not known; it must be auto or cpu.")
    return torch.device("cpu")


def pick_dtype(name: str, stored: str) -> torch.dtype:
    """The number format called `name`; "auto" keeps that of the checkpoint (`stored`).

    A float16 checkpoint becomes bfloat16, because CPUs compute float16 slowly if at all: it stays
    as small, and keeps the range of its numbers but 8 of their 11 bits. --dtype float32 keeps all.
    """
    if name == "auto":
        name = "bfloat16" if stored == "float16" else stored
    if name not in _DTYPES:
        raise ConfigError(f"--dtype {name} is not known; it must be auto, bfloat16 or float32.")
    return _DTYPES[name]


def available_cores() -> int:
    """Cores this process may use: its affinity, and the container's quota (cgroup v2 or v1)."""
    cores = len(os.sched_getaffinity(0))
    quota = _cpu_quota()
    return max(1, min(cores, int(quota))) if quota else cores


def _cpu_quota() -> float | None:
    v2 = _words("/sys/fs/cgroup/cpu.max")
    if len(v2) == 2 and v2[0] != "max":
        return int(v2[0]) / int(v2[1])
    quota = _words("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
    period = _words("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
    if quota and period and int(quota[0]) > 0:
        return int(quota[0]) / int(period[0])
    return None


def available_memory() -> int:
    """Bytes of host memory this process may still take: the machine's and the container's limit."""
    available = [_meminfo("MemAvailable")]
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        most, now = _words(limit), _words(used)
        if most and now and most[0] != "max":
            available.append(int(most[0]) - int(now[0]) + _reclaimable(Path(limit).parent))
    return max(0, min(available))


def _reclaimable(group: Path) -> int:
    """Bytes of page cache a container is charged for but gives back when asked."""
    words = _words(str(group / "memory.stat"))
    counted = dict(zip(words[::2], words[1::2], strict=False))
    return int(counted.get("inactive_file", 0))


def _meminfo(name: str) -> int:
    words = _words("/proc/meminfo")
    return int(words[words.index(f"{name}:") + 1]) * 1024


def _words(file: str) -> list[str]:
    """The words of a small file of the operating system's; none where there is no such file."""
    try:
        return Path(file).read_text("ascii").split()
    except OSError:
        return []
