"""Every op in pure torch: runs on any device, and is what other kernels are tested against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from ..ops import Ops
from .activation import silu_mul
from .attention import plan_attention
from .bitmask import allow_only
from .cache import copy_blocks
from .float8 import add_rms_norm_float8, pack_float8, silu_mul_float8
from .linear import pack_linear
from .narrowing import draw
from .norm import add_rms_norm, rms_norm
from .projected import attend_projected
from .quantized import pack_quantized
from .recording import recorder
from .rope import rotate
from .rows import take_rows
from .sampling import gumbel_argmax, largest, penalise, rank
from .step import build_step, verify
from .threads import set_threads

# Spelled as Ops so that the type checker compares each function with its contract.
REFERENCE = Ops(
    set_threads=set_threads,
    recorder=recorder,
    take_rows=take_rows,
    rms_norm=rms_norm,
    add_rms_norm=add_rms_norm,
    add_rms_norm_float8=add_rms_norm_float8,
    rotate=rotate,
    silu_mul=silu_mul,
    silu_mul_float8=silu_mul_float8,
    pack_linear=pack_linear,
    pack_quantized=pack_quantized,
    pack_float8=pack_float8,
    plan_attention=plan_attention,
    attend_projected=attend_projected,
    build_step=build_step,
    verify=verify,
    copy_blocks=copy_blocks,
    gumbel_argmax=gumbel_argmax,
    draw=draw,
    largest=largest,
    rank=rank,
    penalise=penalise,
    allow_only=allow_only,
)
OPS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {name: getattr(REFERENCE, name) for name in Ops.__dataclass_fields__}
)
