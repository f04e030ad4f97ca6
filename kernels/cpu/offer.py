"""The list of ops that exist in C++."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from .activation import silu_mul
from .attention import attend_projected, plan_attention
from .library import Library, levels, load
from .linear import pack_linear, pack_quantized
from .norm import add_rms_norm, rms_norm
from .recording import recorder
from .rows import take_rows
from .sampling import draw, gumbel_argmax
from .threads import set_threads

# Each makes an op of a library.
_MAKERS: Mapping[str, Callable[[Library], Callable[..., Any]]] = MappingProxyType(
    {
        "add_rms_norm": add_rms_norm,
        "attend_projected": attend_projected,
        "draw": draw,
        "gumbel_argmax": gumbel_argmax,
        "plan_attention": plan_attention,
        "recorder": recorder,
        "rms_norm": rms_norm,
        "set_threads": set_threads,
        "pack_linear": pack_linear,
        "pack_quantized": pack_quantized,
        "silu_mul": silu_mul,
        "take_rows": take_rows,
    }
)


def offer(level: str) -> Mapping[str, Callable[..., Any]]:
    """The ops of a level: none where the CPU lacks its instructions or it cannot be built."""
    library = load(level) if level in levels() else None
    if library is None:
        return MappingProxyType({})
    return MappingProxyType({name: make(library) for name, make in _MAKERS.items()})
