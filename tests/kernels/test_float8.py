"""Weights and inputs of 8-bit floats, against the product of what they stand for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from octavo.kernels.ops import AddRmsNorm, AddRmsNormFloat8, Float8Rows, PackFloat8, SiluMulFloat8
from octavo.kernels.reference import activation, cache, norm
from octavo.kernels.reference import float8 as reference


def _gpu_round_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    pytest.importorskip("triton")
    from octavo.kernels.cuda import float8

    return float8.round_rows(x)


def _gpu_pack(*arguments: object) -> object:
    pytest.importorskip("triton")
    from octavo.kernels.cuda import float8

    return float8.pack_float8(*arguments)  # type: ignore[arg-type]


ROUND = pytest.mark.parametrize("round_rows", [reference.round_rows, _gpu_round_rows])
PACK = pytest.mark.parametrize("pack", [reference.pack_float8, _gpu_pack], ids=["torch", "cuda"])


def _drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(11)).to(dtype)


@ROUND
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_are_rounded_by_their_own_largest_number(
    round_rows: Callable[[Tensor], tuple[Tensor, Tensor]], dtype: torch.dtype
) -> None:
    x = _drawn(5, 100, dtype=dtype) * torch.tensor([[1.0], [1e4], [1e-5], [0.0], [3.0]]).to(dtype)
    numbers, scales = round_rows(x)
    assert numbers.dtype == torch.float8_e4m3fn and scales.shape == (5, 1)
    stood_for = numbers.float() * scales
    largest = x.float().abs().amax(1, keepdim=True)
    assert ((stood_for - x.float()).abs() <= largest / 28 + 1e-30).all()  # half a step of 3 bits
    assert torch.equal(stood_for[3], torch.zeros(100))
    ours, theirs = (numbers, scales), reference.round_rows(x)
    assert torch.equal(ours[1], theirs[1])
    assert torch.equal(ours[0].view(torch.uint8), theirs[0].view(torch.uint8))


@PACK
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 48), (100, 7)])
@pytest.mark.parametrize("biased", [False, True], ids=["", "bias"])
def test_the_product(
    pack: PackFloat8, biased: bool, inputs: int, outputs: int, dtype: torch.dtype
) -> None:
    weight = _drawn(outputs, inputs, dtype=dtype)
    bias = _drawn(outputs, dtype=dtype) if biased else None
    x = _drawn(9, inputs, dtype=dtype)
    numbers, scales = reference.round_rows(weight)
    rounded = numbers.double() * scales.double()
    taken = x.double()
    if inputs % 16 == 0:
        seen, by = reference.round_rows(x)
        taken = seen.double() * by.double()
    expected = taken @ rounded.T + (0 if bias is None else bias.double())
    for linear in (pack(weight.clone(), bias, None, dtype), pack(numbers, bias, scales, dtype)):
        wide = linear.wide(x)
        assert wide.dtype == torch.float32
        torch.testing.assert_close(wide.double(), expected, atol=2e-4, rtol=1e-5)
        got = linear(x)
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), expected, atol=0.02, rtol=0.01)
        assert linear(x[:0]).shape == (0, outputs)
        already = reference.round_rows(x)
        of_rounded = linear(already)
        assert of_rounded.dtype == dtype
        if inputs % 16 == 0:
            assert torch.equal(of_rounded, got)
            assert torch.equal(linear.addend(already), linear.addend(x))
        else:
            torch.testing.assert_close(of_rounded.double(), expected, atol=1.0, rtol=0.1)
        none = Float8Rows(already.numbers[:0], already.scales[:0])
        assert linear(none).shape == (0, outputs)
        ids = torch.tensor([outputs - 1, 0])
        assert torch.equal(linear.rows(ids), rounded[ids].to(dtype))


@PACK
def test_a_cpu_is_asked_for_no_scales_of_rows(
    pack: PackFloat8, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch 2.11 has none there."""
    product = torch._scaled_mm

    def older(*matrices: Tensor, scale_a: Tensor, scale_b: Tensor, **how: torch.dtype) -> Tensor:
        assert matrices[0].is_cuda or scale_a.numel() == scale_b.numel() == 1
        return product(*matrices, scale_a=scale_a, scale_b=scale_b, **how)

    monkeypatch.setattr(torch, "_scaled_mm", older)
    linear = pack(_drawn(32, 64), None, None, torch.float32)
    assert linear(_drawn(3, 64)).shape == (3, 32)


def _gpu_norm(*arguments: Tensor | float) -> Float8Rows:
    pytest.importorskip("triton")
    from octavo.kernels.cuda import norm

    return norm.add_rms_norm_float8(*arguments)  # type: ignore[arg-type]


def _gpu_silu(gate_up: Tensor) -> Float8Rows:
    pytest.importorskip("triton")
    from octavo.kernels.cuda import activation

    return activation.silu_mul_float8(gate_up)


@pytest.mark.parametrize("fused", [reference.add_rms_norm_float8, _gpu_norm], ids=["torch", "cuda"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [16, 100, 1000])
def test_a_norm_rounded_at_once(fused: AddRmsNormFloat8, size: int, dtype: torch.dtype) -> None:
    weight, x = _drawn(size, dtype=dtype), _drawn(4, size, dtype=dtype) * 3
    x[2] = 0.0
    before = _drawn(4, size)
    before[2] = 0.0
    ours, theirs = before.clone(), before.clone()
    plain: AddRmsNorm = norm.add_rms_norm
    expected = plain(x, theirs, weight.float(), 1e-5)
    _assert_rounds(fused(x, ours, weight, 1e-5), expected)
    torch.testing.assert_close(ours, theirs)
    assert len(fused(x[:0], ours[:0], weight, 1e-5).numbers) == 0


@pytest.mark.parametrize("fused", [reference.silu_mul_float8, _gpu_silu], ids=["torch", "cuda"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [16, 100, 20000])  # in one piece, and in several
def test_a_gate_rounded_at_once(fused: SiluMulFloat8, size: int, dtype: torch.dtype) -> None:
    gate_up = _drawn(3, 2 * size, dtype=dtype) * 4
    gate_up[1] = 0.0
    _assert_rounds(fused(gate_up), activation.silu_mul(gate_up.float()))
    assert len(fused(gate_up[:0]).numbers) == 0


def _assert_rounds(got: Float8Rows, expected: Tensor) -> None:
    """What was rounded may differ by a float32's last bits, and what it becomes by a step of it."""
    theirs = reference.round_rows(expected)
    torch.testing.assert_close(got.scales, theirs.scales, rtol=1e-5, atol=0.0)
    ours, meant = got.numbers.float(), theirs.numbers.float()
    assert got.numbers.shape == meant.shape
    assert (ours != meant).float().mean() < 0.01
    assert ((ours - meant).abs() <= meant.abs() / 8 + 2.0**-9).all()


def test_blocks_of_8_bits_are_copied() -> None:
    blocks = _drawn(4, 2, 8, 1, 4).to(torch.float8_e4m3fn)
    before = blocks.float()
    cache.copy_blocks(blocks, blocks, torch.tensor([[0, 3], [3, 1]]))
    assert torch.equal(blocks.float()[[3, 1]], before[[0, 3]])
