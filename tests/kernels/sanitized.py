"""Run by test_sanitizers.py, in a process of its own: `python sanitized.py LIBRARY edges | beyond`.

Calls a library that was compiled with sanitizers with shapes that end where nothing else ends; or,
to see that they would notice, with a row that the matrix does not have.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from octavo.kernels.cpu.activation import silu_mul
from octavo.kernels.cpu.library import Library
from octavo.kernels.cpu.linear import pack_linear, pack_quantized
from octavo.kernels.cpu.threads import set_threads


def edges(library: Library) -> None:
    set_threads(library)(3)
    for dtype in (torch.float32, torch.bfloat16):
        for inputs, outputs in [(33, 100), (1, 1), (130, 70), (4099, 17), (33, 128), (130, 384)]:
            weight, bias = torch.randn(outputs, inputs).to(dtype), torch.randn(outputs).to(dtype)
            for packed in (
                pack_linear(library)(weight.clone(), bias),
                pack_quantized(library)(weight, bias, 8),
                pack_quantized(library)(weight, bias, 4),
            ):
                for rows in (0, 1, 5, 8, 40):
                    packed(torch.randn(rows, inputs).to(dtype))
                    packed.wide(torch.randn(rows, inputs).to(dtype))
                    if outputs % 2 == 0:
                        packed.gated(torch.randn(rows, inputs).to(dtype), silu_mul(library))
                packed.rows(torch.tensor([0, outputs - 1]))
        for rows, size in [(0, 3), (1, 1), (5, 47)]:
            silu_mul(library)(torch.randn(rows, 2 * size).to(dtype))


def beyond(library: Library) -> None:
    pack_linear(library)(torch.randn(64, 64), None).rows(torch.tensor([64]))


if __name__ == "__main__":
    {"edges": edges, "beyond": beyond}[sys.argv[2]](Library(Path(sys.argv[1])))
