"""Every kernel compiles for sm_80 and sm_90, keeps its numbers in registers, and fits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SHARED = {80: 100 << 10, 90: 227 << 10}  # bytes a program may use


@pytest.mark.slow
@pytest.mark.parametrize("capability", SHARED)
def test_every_variant_compiles_without_a_spill(capability: int) -> None:
    # In a process of its own: kernels defined for the interpreter cannot be compiled.
    script = Path(__file__).with_name("compile_all.py")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, script, str(capability)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    variants = json.loads(done.stdout)
    assert len(variants) > 150
    for name, found in variants.items():
        assert found["stack"] == 0, f"{name} spills"
        assert found["shared"] <= SHARED[capability], name
        small = "256" in name and "fixed=True" in name  # tiles of 32 rows
        if capability == 90 and "prompt" in name and not small:
            assert found["wgmma"], f"{name} does not use the tensor cores' warp groups"
