"""Linear layers: every implementation against float64, and each output the same bits in any
company."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from octavo.kernels.ops import PackedLinear
from octavo.kernels.reference.quantized import GROUPS, dequantize, quantize, round_inputs

from .providers import PROVIDERS, find

DTYPES = [torch.float32, torch.bfloat16]
CPP = [name for name in PROVIDERS if name != "reference"]
# Inputs and outputs: whole panels, parts of one, odd numbers, more steps than one block has.
SHAPES = [(384, 640), (48, 33), (1, 1), (3, 16), (33, 100), (768, 176), (4099, 70)]
ROWS = [0, 1, 2, 7, 31, 65, 200]
# Those of gated products: halves of whole panels, and such that are not.
GATED = [(384, 640), (33, 128), (1, 256), (4099, 128), (48, 66), (1, 2), (768, 192)]


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def weight_of(shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    inputs, outputs = shape
    return (normal(outputs, inputs) / inputs**0.5).to(dtype)


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Any:
    set_all(request.param)
    yield request.param
    set_all(1)


def set_all(threads: int) -> None:
    for provider in CPP:
        find(provider, "set_threads")(threads)
    torch.set_num_threads(1)


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_a_product(
    provider: str, shape: tuple[int, int], bias: bool, dtype: torch.dtype, threads: int
) -> None:
    inputs, outputs = shape
    weight = weight_of(shape, dtype)
    vector = normal(outputs, dtype=dtype, seed=1) if bias else None
    packed = find(provider, "pack_linear")(weight.clone(), vector)
    for rows in ROWS:
        x = normal(rows, inputs, dtype=dtype, seed=2)
        before = x.clone()
        expected = x.double() @ weight.double().T + (0 if vector is None else vector.double())
        got, wide = packed(x), packed.wide(x)
        assert torch.equal(x, before)
        assert (got.dtype, wide.dtype) == (dtype, torch.float32)
        rounding = 2e-5 if dtype == torch.float32 else 2.0**-7
        torch.testing.assert_close(got.double(), expected, atol=rounding, rtol=rounding)
        if provider != "reference":
            torch.testing.assert_close(wide.double(), expected, atol=2e-5, rtol=2e-5)


def packed_by(provider: str, weight: Tensor, bias: Tensor | None, bits: int | None) -> PackedLinear:
    """Of a weight that stays as it is."""
    if bits is None:
        packed: PackedLinear = find(provider, "pack_linear")(weight.clone(), bias)
    else:
        packed = find(provider, "pack_quantized")(weight.clone(), bias, bits)
    return packed


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", GATED)
def test_the_first_half_gates_the_second(
    provider: str,
    shape: tuple[int, int],
    bias: bool,
    bits: int | None,
    dtype: torch.dtype,
    threads: int,
) -> None:
    """Rounded once where the halves are whole panels: the reference rounds the product, too."""
    inputs, outputs = shape
    vector = normal(outputs, dtype=dtype, seed=1) if bias else None
    packed = packed_by(provider, 3 * weight_of(shape, dtype), vector, bits)
    silu_mul = find(provider, "silu_mul")
    for rows in ROWS:
        x = normal(rows, inputs, dtype=dtype, seed=2)
        before = x.clone()
        got = packed.gated(x, silu_mul)
        assert isinstance(got, Tensor) and got.dtype == dtype and torch.equal(x, before)
        at_once = provider != "reference" and outputs % 128 == 0
        gate, up = (packed.wide(x) if at_once else packed(x)).double().chunk(2, -1)
        rounding = 2e-6 if dtype == torch.float32 else 2.0**-8 if at_once else 2.0**-6
        expected = gate / (1 + (-gate).exp()) * up
        torch.testing.assert_close(got.double(), expected, atol=1e-30, rtol=rounding)


@pytest.mark.parametrize("provider", CPP)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gates_far_out_open_or_close(provider: str, dtype: torch.dtype) -> None:
    weight = torch.cat((torch.eye(64), torch.zeros(64, 64))).to(dtype)
    bias = torch.cat((torch.zeros(64), torch.ones(64))).to(dtype)
    packed = packed_by(provider, weight, bias, None)
    x = torch.zeros(1, 64, dtype=dtype)
    x[0, :5] = torch.tensor([-1e30, -200.0, 0.0, 200.0, 1e30])
    out = packed.gated(x, find(provider, "silu_mul"))
    assert isinstance(out, Tensor)
    assert out[0, :2].abs().max() < 1e-30 and torch.equal(out[0, 2:5], x[0, 2:5])
    x[0, 7] = torch.nan
    out = packed.gated(x, find(provider, "silu_mul"))
    assert isinstance(out, Tensor) and out.isnan().all()


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_come_out_as_they_went_in(
    provider: str, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    weight = weight_of(shape, dtype)
    packed = find(provider, "pack_linear")(weight.clone(), None)
    last = len(weight) - 1
    for ids in ([], [0], [last, 0, last // 2, last] * 5):
        assert torch.equal(packed.rows(torch.tensor(ids, dtype=torch.int64)), weight[ids])


@pytest.mark.parametrize("provider", CPP)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(768, 176), (4099, 70), (768, 384)])
@pytest.mark.parametrize("bits", [None, 8, 4])
def test_a_row_is_the_same_bits_alone_and_in_any_company(
    provider: str, shape: tuple[int, int], dtype: torch.dtype, bits: int | None
) -> None:
    """Whatever the tile, the block of inputs, and the thread."""
    packed = packed_by(provider, weight_of(shape, dtype), None, bits)
    x = normal(900, shape[0], dtype=dtype, seed=2)  # some blocks of inputs
    x[::7] *= 2.0**-130  # what comes out is subnormal, or is zero if anyone flushes it
    set_all(1)
    alone = torch.cat([packed(row.unsqueeze(0)) for row in x])
    wide = torch.cat([packed.wide(row.unsqueeze(0)) for row in x])
    silu_mul = find(provider, "silu_mul")

    def gated(x: Tensor) -> Tensor:
        out = packed.gated(x, silu_mul)
        assert isinstance(out, Tensor)
        return out

    gates = torch.cat([gated(row.unsqueeze(0)) for row in x])
    try:
        for threads in (1, 2, 5):
            set_all(threads)
            for rows in (*range(2, 14), 31, 64, 193, 400, 900):
                for first in {0, 900 - rows}:
                    some = slice(first, first + rows)
                    assert torch.equal(packed(x[some]), alone[some])
                    assert torch.equal(packed.wide(x[some]), wide[some])
                    assert torch.equal(gated(x[some]), gates[some])
    finally:
        set_all(1)


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_rounded_weights_multiply_rounded_inputs(
    provider: str, shape: tuple[int, int], bits: int, dtype: torch.dtype
) -> None:
    inputs, outputs = shape
    weight, bias = weight_of(shape, dtype), normal(outputs, dtype=dtype, seed=1)
    weight[0, : inputs // 2] = 0
    rounded = dequantize(*quantize(weight, bits), bits)
    packed = find(provider, "pack_quantized")(weight.clone(), bias, bits)
    for rows in ROWS:
        x = normal(rows, inputs, dtype=dtype, seed=2)
        x[::3, : inputs // 2] = 0
        expected = round_inputs(x, bits).double() @ rounded.double().T + bias.double()
        got, wide = packed(x), packed.wide(x)
        assert (got.dtype, wide.dtype) == (dtype, torch.float32)
        torch.testing.assert_close(wide.double(), expected, atol=2e-5, rtol=2e-5)
        assert torch.equal(got, wide.to(dtype))
    ids = torch.tensor([outputs - 1, 0, outputs // 2])
    assert torch.equal(packed.rows(ids), rounded[ids].to(dtype))


@pytest.mark.parametrize("bits", [8, 4])
def test_rounding_stays_within_half_a_step_and_keeps_the_largest(bits: int) -> None:
    weight = weight_of((130, 50), torch.float32)
    values, scales = quantize(weight, bits)
    error = (dequantize(values, scales, bits) - weight).abs()
    steps = scales.float().abs().repeat_interleave(GROUPS[bits], 1)[:, :130]
    # Of 4 bits the side without an 8 may be off by a whole step; scales have 8 bits themselves.
    assert (error <= steps * (0.51 if bits == 8 else 1.0) + weight.abs() * 2.0**-8).all()
    exact = torch.arange(-7, 8).repeat(9)[:130].float().unsqueeze(0) * 0.25
    exact[:, ::16] = -2.0 if bits == 4 else -31.75
    assert torch.equal(dequantize(*quantize(exact, bits), bits), exact)


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_rounding_hides_no_number_that_is_none(
    provider: str, bits: int, dtype: torch.dtype, bad: float
) -> None:
    packed = find(provider, "pack_quantized")(weight_of((700, 80), dtype), None, bits)
    places = (0, 7, 40, 511, 512, 639, 640, 699)
    x = normal(2 * len(places), 700, dtype=dtype, seed=2)
    for number, place in enumerate(places):
        x[2 * number, place] = bad
    out = packed(x)
    assert out[::2].isnan().all()
    assert out[1::2].isfinite().all()


@pytest.mark.parametrize("provider", CPP)
def test_numbers_that_are_none_stay_in_their_row_and_column(provider: str) -> None:
    weight = weight_of((96, 80), torch.bfloat16)
    weight[3, 5] = torch.inf
    packed = find(provider, "pack_linear")(weight.clone(), None)
    x = normal(9, 96, dtype=torch.bfloat16, seed=2).abs()
    x[2, 7] = torch.nan
    out = packed(x)
    assert out[2].isnan().all()
    others = out[[row for row in range(9) if row != 2]]
    assert (others[:, 3] == torch.inf).all()
    assert others[:, [column for column in range(80) if column != 3]].isfinite().all()


@pytest.mark.parametrize("provider", CPP)
def test_a_weight_that_needs_no_padding_is_packed_where_it_lies(provider: str) -> None:
    weight = weight_of((64, 144), torch.bfloat16)
    before = weight.clone()
    find(provider, "pack_linear")(weight, None)
    assert not torch.equal(weight, before)
    assert torch.equal(weight.flatten().sort().values, before.flatten().sort().values)


@pytest.mark.parametrize("provider", CPP)
def test_levels_agree_in_float32(provider: str) -> None:
    x, weight = normal(9, 300), weight_of((300, 90), torch.float32)
    first, here = (find(name, "pack_linear")(weight.clone(), None) for name in (CPP[0], provider))
    assert torch.equal(here(x), first(x))
