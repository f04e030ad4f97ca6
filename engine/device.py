"""Where and in which number format to compute, with how many threads, and what memory is free."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Iterator
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
            raise ConfigError(
                f"The checkpoint's weights are stored as {stored}, which octavo does not compute "
                f"in; choose --dtype bfloat16 or float32."
            )
    if name not in _DTYPES:
        raise ConfigError(f"--dtype {name} is not known; it must be auto, bfloat16 or float32.")
    return _DTYPES[name]


def inter_token_target(device: torch.device) -> float:
    """Seconds between two tokens of a stream that suit a reader and that the device can hold."""
    return 0.1 if device.type == "cpu" else 0.03


def available_cores() -> int:
    """Cores this process may use: its affinity, and the quotas of its control groups."""
    cores = len(os.sched_getaffinity(0))
    return max(1, min([cores, *map(int, _cpu_quotas())]))


def available_memory() -> int:
    """Bytes of host memory this process may still take: what the machine has available, and what
    its control groups leave, page cache that they would give back included."""
    words = _words("/proc/meminfo")
    available = int(words[words.index("MemAvailable:") + 1]) * 1024
    return max(0, min([available, *_memory_left()]))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory is missing, of the host or of the device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # torch's CPU allocator and oneDNN have no class of their own for it.
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _OUT_OF_MEMORY)


def release_memory() -> None:
    """Give back what is held without need: cycles of dead objects, the allocator's caches."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc")
_CGROUP = "/sys/fs/cgroup"


def _groups() -> list[str]:
    """Folders of the control groups this process is in, version 2, from its own to the root."""
    own = next((w[3:] for w in _words("/proc/self/cgroup") if w.startswith("0::/")), "/")
    return [f"{_CGROUP}{path}".rstrip("/") for path in (own, *map(str, Path(own).parents))]


def _cpu_quotas() -> Iterator[float]:
    for group in _groups():
        match _words(f"{group}/cpu.max"):
            case [quota, period] if quota != "max":
                yield int(quota) / int(period)
    match _words(f"{_CGROUP}/cpu/cpu.cfs_quota_us") + _words(f"{_CGROUP}/cpu/cpu.cfs_period_us"):
        case [quota, period] if quota != "-1":
            yield int(quota) / int(period)


def _memory_left() -> Iterator[int]:
    groups = [(f"{group}/memory.max", f"{group}/memory.current", group) for group in _groups()]
    old = f"{_CGROUP}/memory"
    groups.append((f"{old}/memory.limit_in_bytes", f"{old}/memory.usage_in_bytes", old))
    for limit, used, group in groups:
        match _words(limit) + _words(used):
            case [most, now] if most != "max":
                statistics = _words(f"{group}/memory.stat")
                counted = dict(zip(statistics[::2], statistics[1::2], strict=False))
                yield int(most) - int(now) + int(counted.get("inactive_file", 0))


def _words(file: str) -> list[str]:
    """The words of a small file of the operating system's; none where there is no such file."""
    try:
        return Path(file).read_text("ascii").split()
    except OSError:
        return []
