"""Norms, rotation, activation, linear maps and block copies against their formulas in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from octavo.kernels.ops import AddRmsNorm, RmsNorm
from octavo.kernels.reference import cache, rope

from .providers import PROVIDERS, find

DTYPES = [torch.float32, torch.bfloat16]
ROWS = [1, 2, 33]


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_near(got: Tensor, expected: Tensor) -> None:
    """Within what rounding to `got`'s dtype allows: two roundings for a product of rounded ones."""
    tolerance = 1e-6 if got.dtype == torch.float32 else 2.0**-7
    torch.testing.assert_close(got.double(), expected, atol=4 * tolerance, rtol=4 * tolerance)


def rms(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    x = x.double()
    return x / (x.pow(2).mean(-1, keepdim=True) + epsilon).sqrt() * weight.double()


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 8), (33, 384), (5, 6, 64), (700, 50), (0, 16)])
def test_rms_norm(provider: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    rms_norm: RmsNorm = find(provider, "rms_norm")
    x, weight = normal(*shape, dtype=dtype), normal(shape[-1], dtype=dtype, seed=1)
    before = x.clone()
    assert_near(rms_norm(x, weight, 1e-5), rms(before, weight, 1e-5))
    assert torch.equal(x, before)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_rms_norm_of_small_and_large_numbers(provider: str) -> None:
    rms_norm: RmsNorm = find(provider, "rms_norm")
    weight = torch.ones(64)
    for scale in (0.0, 1e-8, 1e8):
        x = normal(3, 64) * scale
        assert_near(rms_norm(x, weight, 1e-6), rms(x, weight, 1e-6))


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wide", [False, True], ids=["alike", "wide"])
@pytest.mark.parametrize("rows", [*ROWS, 900])
def test_add_rms_norm_adds_in_place(
    provider: str, rows: int, wide: bool, dtype: torch.dtype
) -> None:
    add_rms_norm: AddRmsNorm = find(provider, "add_rms_norm")
    x = normal(rows, 48, dtype=torch.float32 if wide else dtype)
    residual, weight = normal(rows, 48, seed=1), normal(48, dtype=dtype, seed=2)
    x_before, total = x.clone(), x.float() + residual
    got = add_rms_norm(x, residual, weight, 1e-5)
    assert got.dtype == dtype
    assert_near(got, rms(total, weight, 1e-5))
    assert torch.equal(residual, total)
    assert torch.equal(x, x_before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("rotary", [16, 8])
def test_rotate_turns_each_pair_by_its_angle(rows: int, rotary: int, dtype: torch.dtype) -> None:
    x = normal(rows, 3, 16, dtype=dtype)
    angles = normal(rows, 1, rotary // 2, seed=1)
    cosine = torch.cat((angles.cos(), angles.cos()), -1).to(dtype)
    sine = torch.cat((-angles.sin(), angles.sin()), -1).to(dtype)
    before = x.clone()
    got = rope.rotate(x, cosine, sine)
    assert torch.equal(x, before)
    pairs = torch.complex(
        x[..., : rotary // 2].double(), x[..., rotary // 2 : rotary].double()
    ) * torch.exp(1j * angles.double())
    expected = torch.cat((pairs.real, pairs.imag, x[..., rotary:].double()), -1)
    assert_near(got, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 24), (1, 1), (1, 24), (2, 16), (33, 47), (600, 100)])
@pytest.mark.parametrize("provider", PROVIDERS)
def test_silu_mul(provider: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    rows, size = shape
    gate_up = 3 * normal(rows, 2 * size, dtype=dtype)
    gate, up = gate_up.double().chunk(2, -1)
    before = gate_up.clone()
    assert_near(find(provider, "silu_mul")(gate_up), gate / (1 + (-gate).exp()) * up)
    assert torch.equal(gate_up, before)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_silu_mul_of_numbers_far_out(provider: str) -> None:
    gate = torch.tensor([[-1e38, -200.0, -89.0, -0.0, 89.0, 1e38, math.inf, math.nan]])
    out = find(provider, "silu_mul")(torch.cat((gate, torch.ones_like(gate)), -1))
    expected = torch.tensor([[0.0, 0.0, 0.0, 0.0, 89.0, 1e38, math.inf, math.nan]])
    torch.testing.assert_close(out, expected, equal_nan=True)


def test_copy_blocks_reads_all_before_it_writes_any() -> None:
    blocks = normal(5, 2, 4, 1, 3)
    before = blocks.clone()
    cache.copy_blocks(blocks, blocks, torch.tensor([[0, 1], [1, 2], [4, 0]]))
    assert torch.equal(blocks, before[[4, 0, 1, 3, 4]])


def test_copy_blocks_between_caches() -> None:
    source, target = normal(5, 2, 4, 1, 3), normal(3, 2, 4, 1, 3, seed=1)
    before = target.clone()
    cache.copy_blocks(source, target, torch.tensor([[4, 0], [2, 2]]))
    assert torch.equal(target, torch.stack((source[4], before[1], source[2])))
