"""What the machine can do at most: bytes per second read from memory, operations per second.

Measured in a process of its own with torch, which this package does not import, with one thread
and with all. Where a peer is missing, octavo's share of these stands in for the ratio.
"""

from __future__ import annotations

import json
import subprocess
import sys

_SECONDS = 300.0
_PROGRAM = """
import json, os, time, torch
def best(work, seconds=1.5):
    work(); found, end = 1e9, time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter(); work(); found = min(found, time.perf_counter() - began)
    return found
figures = {}
for threads in sorted({1, len(os.sched_getaffinity(0))}):
    torch.set_num_threads(threads)
    memory = torch.ones(1 << 27)  # 512 MiB: larger than any cache
    figures[f"read GB/s, {threads} threads"] = memory.nbytes / best(memory.sum) / 1e9
    del memory
    for name, kind in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        a, b = torch.randn(1024, 2048).to(kind), torch.randn(2048, 2048).to(kind)
        work = 2 * 1024 * 2048 * 2048 / best(lambda: a @ b) / 1e9
        figures[f"{name} GFLOP/s, {threads} threads"] = work
print(json.dumps(figures))
"""


def ceilings() -> dict[str, float]:
    """Figures by their name; empty where torch is not installed."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM],
            capture_output=True,
            text=True,
            check=True,
            timeout=_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return {name: float(value) for name, value in json.loads(done.stdout).items()}


def decode_share(
    ceiling: dict[str, float], *, seconds_per_token: float, weight_bytes: float
) -> float | None:
    """The share of the memory's best that reading all weights once a token makes, at batch 1."""
    read = max((v for k, v in ceiling.items() if k.startswith("read")), default=0.0)
    if not read or not seconds_per_token:
        return None
    return weight_bytes / seconds_per_token / 1e9 / read


def compute_share(
    ceiling: dict[str, float], *, tokens_per_second: float, parameters: float
) -> float | None:
    """The share of the best bf16 product that two operations a parameter and token make."""
    peak = max((v for k, v in ceiling.items() if k.startswith("bf16")), default=0.0)
    return 2 * parameters * tokens_per_second / 1e9 / peak if peak else None
