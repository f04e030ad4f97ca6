"""The C++ kernels under AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from octavo.kernels.cpu import build
from octavo.kernels.cpu.library import levels

SCRIPT = Path(__file__).with_name("sanitized.py")
FLAGS = ("-std=c++17", "-O1", "-g", "-fPIC", "-ffp-contract=off", "-pthread")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
@pytest.mark.skipif(not levels(), reason="this CPU has none of the levels")
def test_no_kernel_leaves_its_memory(tmp_path: Path) -> None:
    library = tmp_path / "kernels.so"
    flags = (*FLAGS, *SANITIZERS, *build.LEVELS[levels()[0]])
    build.compile_sources("g++", sorted(build.SOURCES.glob("*.cpp")), flags, library)
    runtime = subprocess.run(
        ["g++", "-print-file-name=libasan.so"], check=True, capture_output=True, text=True
    ).stdout.strip()

    def run(what: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(SCRIPT), str(library), what],
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, "LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0"},
        )

    clean = run("edges")
    assert clean.returncode == 0, clean.stderr[-3000:]
    noticed = run("beyond")
    assert noticed.returncode != 0 and "heap-buffer-overflow" in noticed.stderr
