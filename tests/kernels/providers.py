"""Who offers an op on this machine: the reference, and each level of the C++ kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch

from octavo.kernels.cpu.library import levels
from octavo.kernels.cpu.offer import offer
from octavo.kernels.reference import OPS as REFERENCE

PROVIDERS = ("reference", *levels())


@cache
def find(provider: str, op: str) -> Callable[..., Any]:
    """The op of a provider; built at the first call."""
    offered = REFERENCE if provider == "reference" else offer(provider)
    if provider != "reference" and not offered:
        pytest.skip("there is no C++ compiler")
    return offered[op]


@contextmanager
def with_threads(provider: str, count: int) -> Iterator[None]:
    """A provider computes with so many threads."""
    before = torch.get_num_threads()
    find(provider, "set_threads")(count)
    try:
        yield
    finally:
        find(provider, "set_threads")(before)
