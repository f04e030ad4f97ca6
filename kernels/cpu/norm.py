"""Root-mean-square norms."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import AddRmsNorm, RmsNorm
from .library import COUNT, FLOAT, POINTER, Library, dense


def rms_norm(library: Library) -> RmsNorm:
    functions = library.functions("rms_norm", POINTER, POINTER, POINTER, COUNT, COUNT, FLOAT)

    def run(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        x = dense(x)
        out = library.empty(x.shape, x.dtype)
        size = x.shape[-1]
        functions[x.dtype](
            x.data_ptr(), weight.data_ptr(), out.data_ptr(), x.numel() // size, size, epsilon
        )
        return out

    return run


def add_rms_norm(library: Library) -> AddRmsNorm:
    arguments = (POINTER, POINTER, POINTER, POINTER, COUNT, COUNT, FLOAT)
    alike = library.functions("add_rms_norm", *arguments)
    functions = {(dtype, dtype): function for dtype, function in alike.items()}
    wide = library.function("add_rms_norm_wide_bf16", *arguments)
    functions[torch.float32, torch.bfloat16] = wide

    def run(x: Tensor, residual: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        x = dense(x)
        out = library.empty(x.shape, weight.dtype)
        functions[x.dtype, weight.dtype](
            x.data_ptr(),
            residual.data_ptr(),
            weight.data_ptr(),
            out.data_ptr(),
            *x.shape,
            epsilon,
        )
        return out

    return run
