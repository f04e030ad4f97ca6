"""The threads that compute."""

from __future__ import annotations

import torch


def set_threads(count: int, *, pin: bool = False) -> None:
    """See `ops.SetThreads`. torch's threads are the operating system's to place: none is pinned."""
    del pin
    torch.set_num_threads(count)
