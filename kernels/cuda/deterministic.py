"""Ops whose sums depend on nothing else in the step, where those of `cuda` do: `--deterministic`.

The others' already are of one row each, taken by one program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from .attention import plan_attention
from .matmul import pack_linear

OPS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "pack_linear": pack_linear,
        "plan_attention": partial(plan_attention, fixed=True),
    }
)
