"""What this machine is capable of, and how long work takes on it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """Measured: bytes a second of a copy, read and written; bfloat16 operations a second."""

    bandwidth: float
    flops: float


def wait(device: torch.device) -> None:
    """Until the device has done all it was given."""
    if device.type != "cpu":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device, *, budget: float = 0.3) -> float:
    """The median time of one call, after a warm-up, of as many calls as fit the budget.

    On a GPU events in its own stream are timed, with a cache's worth of memory written in between:
    the inputs come from memory, as they do in a model.
    """
    work()
    wait(device)
    began = time.perf_counter()
    work()
    wait(device)
    times = max(3, min(200, int(budget / max(1e-6, time.perf_counter() - began))))
    if device.type == "cpu":
        return statistics.median(_on_host(work) for _ in range(min(times, 5)))
    flushed = torch.empty(256 << 20, dtype=torch.int8, device=device)
    event = partial(torch.cuda.Event, enable_timing=True)
    events = [(event(), event()) for _ in range(times)]
    for begin, end in events:
        flushed.zero_()
        begin.record()
        work()
        end.record()
    wait(device)
    took: list[float] = [begin.elapsed_time(end) for begin, end in events]
    return statistics.median(took) / 1e3


def measure(device: torch.device, *, small: bool) -> Ceilings:
    size = (8 << 20) if small else (2 << 30)
    source = torch.zeros(size, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    copying = seconds(lambda: target.copy_(source), device)
    side = 128 if small else 8192
    left = torch.randn(side, side, device=device).bfloat16()
    multiplying = seconds(lambda: left @ left, device)
    return Ceilings(bandwidth=2 * size / copying, flops=2 * side**3 / multiplying)


def _on_host(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
