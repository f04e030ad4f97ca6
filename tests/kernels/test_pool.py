"""The threads of the C++ kernels: any number of them, from any caller, with the same results."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from octavo.kernels.cpu.library import levels

from .providers import find

LEVEL = next(iter(levels()), None)
pytestmark = pytest.mark.skipif(LEVEL is None, reason="this CPU has none of the levels")


def numbers(rows: int) -> torch.Tensor:
    return torch.randn(rows, 2 * 300, generator=torch.Generator().manual_seed(rows))


@pytest.mark.parametrize("pin", [False, True])
def test_any_number_of_threads_gives_the_same_bits(pin: bool) -> None:
    set_threads, silu_mul = find(str(LEVEL), "set_threads"), find(str(LEVEL), "silu_mul")
    set_threads(1)
    inputs = [numbers(rows) for rows in (1, 40, 55, 1000)]
    expected = [silu_mul(x) for x in inputs]
    try:
        for count in (2, 5, 3, 16, 1):
            set_threads(count, pin=pin)
            for _ in range(20):
                assert all(map(torch.equal, map(silu_mul, inputs), expected))
    finally:
        set_threads(1)


def test_several_callers_at_a_time() -> None:
    set_threads, silu_mul = find(str(LEVEL), "set_threads"), find(str(LEVEL), "silu_mul")
    inputs = [numbers(rows) for rows in range(100, 900, 100)]
    expected = [silu_mul(x) for x in inputs]
    try:
        set_threads(3)
        with ThreadPoolExecutor(len(inputs)) as callers:
            for _ in range(20):
                assert all(map(torch.equal, callers.map(silu_mul, inputs), expected))
    finally:
        set_threads(1)


_IDLE = """
import time, torch
from octavo.kernels.cpu.offer import offer
ops = offer({level!r})
ops["set_threads"](4)
x = torch.randn(2000, 600)
ops["silu_mul"](x)
time.sleep(0.1)  # past the time to spin
began = time.process_time()
time.sleep(0.5)
print(time.process_time() - began)
"""


def test_threads_without_work_sleep() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _IDLE.format(level=LEVEL)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_WAIT_POLICY": "passive"},
    )
    # Three threads that spun would have used as much as the machine gives them: 0.5 s at least.
    assert float(done.stdout) < 0.1
