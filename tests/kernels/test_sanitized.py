"""The kernels' own tests once more, in a library that watches every access to memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from octavo.kernels.cpu.library import levels

FILES = ("test_attention.py", "test_linear.py", "test_noise.py", "test_small_ops.py")
RUN = """
import sys
from pathlib import Path
import pytest
from octavo.kernels.cpu import build, library

sanitizers = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
build._FLAGS = (*build._FLAGS, "-O1", "-g", *sanitizers)  # -O3 with checks compiles for minutes
build.BUILT = build.CACHE = Path(sys.argv[2])
library.levels = lambda: (sys.argv[1],)
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *sys.argv[3:]]))
"""


def _runtimes() -> str:
    """The sanitizers' libraries, which must be there before everything else is."""
    found = [
        subprocess.run(
            ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    if not all(Path(file).is_absolute() for file in found):
        pytest.skip("g++ has no sanitizers here")
    return " ".join(found)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
@pytest.mark.parametrize("level", levels())
def test_no_kernel_leaves_its_memory_or_does_what_is_undefined(level: str, tmp_path: Path) -> None:
    here = Path(__file__).parent
    files = [str(here / name) for name in FILES]
    environment = {
        **os.environ,
        "LD_PRELOAD": _runtimes(),
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter's own
    }
    done = subprocess.run(
        [sys.executable, "-c", RUN, level, str(tmp_path), *files],
        cwd=here.parent.parent,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
