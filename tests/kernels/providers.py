"""Who offers an op on this machine: the reference, and each level of the C++ kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch

from octavo.kernels.cpu.library import levels
from octavo.kernels.cpu.offer import offer
from octavo.kernels.reference import OPS as REFERENCE

PROVIDERS = ("reference", *levels())


def find(provider: str, op: str) -> Callable[..., Any]:
    """The op of a provider; built at the first call."""
    return _offered(provider)[op]


@cache
def _offered(provider: str) -> Mapping[str, Callable[..., Any]]:
    offered = REFERENCE if provider == "reference" else offer(provider)
    if not offered:
        pytest.skip("there is no C++ compiler")
    return offered


@contextmanager
def with_threads(provider: str, count: int) -> Iterator[None]:
    """A provider computes with so many threads."""
    before = torch.get_num_threads()
    find(provider, "set_threads")(count)
    try:
        yield
    finally:
        find(provider, "set_threads")(before)
