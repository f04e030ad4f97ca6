"""Kernels in Triton, for NVIDIA GPUs: the same file names as in `reference`.

Importing this package imports Triton: the registry does so for a GPU only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from . import (
    activation,
    attention,
    cache,
    float8,
    norm,
    projected,
    quantized,
    rope,
    sampling,
    selection,
    shaping,
    step,
)

OPS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "rms_norm": norm.rms_norm,
        "add_rms_norm": norm.add_rms_norm,
        "add_rms_norm_float8": norm.add_rms_norm_float8,
        "rotate": rope.rotate,
        "silu_mul": activation.silu_mul,
        "silu_mul_float8": activation.silu_mul_float8,
        "pack_float8": float8.pack_float8,
        "pack_quantized": quantized.pack_quantized,
        "plan_attention": attention.plan_attention,
        "attend_projected": projected.attend_projected,
        "build_step": step.build_step,
        "verify": step.verify,
        "copy_blocks": cache.copy_blocks,
        "gumbel_argmax": sampling.gumbel_argmax,
        "draw": sampling.draw,
        "largest": selection.largest,
        "rank": selection.rank,
        "penalise": shaping.penalise,
        "allow_only": shaping.allow_only,
    }
)
