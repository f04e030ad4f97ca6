"""The threads that compute."""

from __future__ import annotations

import os

import torch

from ..ops import SetThreads
from .library import COUNT, POINTER, Library


def set_threads(library: Library) -> SetThreads:
    resize = library.function("set_threads", COUNT, POINTER, COUNT)

    def run(count: int, *, pin: bool = False) -> None:
        # What is left to torch is small: two pools would only be in each other's way, and threads
        # of OpenMP spin between operations in the time of whoever shares their core.
        torch.set_num_threads(1)
        cores = sorted(os.sched_getaffinity(0)) if pin else []
        resize(count, (COUNT * len(cores))(*cores), len(cores))

    return run
