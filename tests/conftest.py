"""For all tests: how long an example of hypothesis takes says something of the machine only, and
without a GPU Triton interprets its kernels."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import settings

if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, by whomever

settings.register_profile("octavo", deadline=None)
settings.load_profile("octavo")
