"""Ops of `--deterministic`: a row gives the same bits alone and in any batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from octavo.kernels.cuda import deterministic, norm
from octavo.kernels.reference import float8 as reference_float8
from octavo.kernels.reference import quantized

TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def _drawn(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(device, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs", "biased"),
    [(1, 64, 128, False), (5, 72, 200, True), (70, 130, 40, False), (130, 64, 16, True)],
)
def test_it_is_a_product(
    rows: int, inputs: int, outputs: int, biased: bool, dtype: torch.dtype, device: torch.device
) -> None:
    x = _drawn(rows, inputs, dtype=dtype, device=device)
    weight = _drawn(outputs, inputs, dtype=dtype, device=device)
    bias = _drawn(outputs, dtype=dtype, device=device) if biased else None
    linear = deterministic.OPS["pack_linear"](weight, bias)
    expected = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    near = TOLERANCE[dtype]
    got = linear(x)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), expected, atol=near, rtol=near)
    wide = linear.wide(x)
    assert wide.dtype == torch.float32
    torch.testing.assert_close(wide.double(), expected, atol=2e-5, rtol=2e-5)
    ids = torch.tensor([outputs - 1, 0], device=device)
    assert torch.equal(linear.rows(ids), weight[ids])


@pytest.mark.usefixtures("even_products")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_product_is_bitwise_the_same_alone_and_in_any_batch(
    dtype: torch.dtype, device: torch.device
) -> None:
    x = _drawn(150, 160, dtype=dtype, device=device)
    linear = deterministic.OPS["pack_linear"](_drawn(30, 160, dtype=dtype, device=device), None)
    together = linear(x)  # tiles of 128 rows
    for first, last in ((0, 1), (149, 150), (17, 40), (60, 124), (3, 140)):
        assert torch.equal(linear(x[first:last]), together[first:last])
    shuffled = torch.randperm(150, generator=torch.Generator().manual_seed(0)).to(device)
    assert torch.equal(linear(x[shuffled]), together[shuffled])


@pytest.mark.usefixtures("even_products")
@pytest.mark.parametrize("kind", ["int8", "int4", "fp8"])
def test_weights_of_few_bits_keep_the_bits_of_a_row(kind: str, device: torch.device) -> None:
    x = _drawn(70, 96, dtype=torch.float32, device=device)
    weight = _drawn(32, 96, dtype=torch.float32, device=device)
    bias = _drawn(32, dtype=torch.float32, device=device)
    if kind == "fp8":
        arguments = (weight, bias, None, torch.float32)
        linear = deterministic.OPS["pack_float8"](*arguments)
        expected = reference_float8.pack_float8(*arguments)(x)
    else:
        bits = int(kind.removeprefix("int"))
        linear = deterministic.OPS["pack_quantized"](weight, bias, bits)
        expected = quantized.pack_quantized(weight, bias, bits)(x)
    together = linear(x)
    torch.testing.assert_close(together, expected, atol=1e-4, rtol=1e-4)
    for first, last in ((0, 1), (69, 70), (3, 60)):
        assert torch.equal(linear(x[first:last]), together[first:last])


def test_a_norm_is_bitwise_the_same_alone_and_in_any_batch(device: torch.device) -> None:
    x = _drawn(9, 200, dtype=torch.float32, device=device)
    weight = _drawn(200, dtype=torch.float32, device=device)
    together = norm.rms_norm(x, weight, 1e-5)
    summed = x.clone()
    added = norm.add_rms_norm(x, summed, weight, 1e-5)
    for row in range(9):
        one = x[row : row + 1]
        assert torch.equal(norm.rms_norm(one, weight, 1e-5)[0], together[row])
        residual = one.clone()
        assert torch.equal(norm.add_rms_norm(one, residual, weight, 1e-5)[0], added[row])
