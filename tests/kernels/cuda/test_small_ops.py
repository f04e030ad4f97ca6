"""Norms, rotation, activation, noise and block moves against the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from octavo.kernels.cuda import activation, cache, norm, rope, sampling
from octavo.kernels.reference import activation as reference_activation
from octavo.kernels.reference import cache as reference_cache
from octavo.kernels.reference import norm as reference_norm
from octavo.kernels.reference import rope as reference_rope
from octavo.kernels.reference import sampling as reference_sampling

TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))


class Draw:
    """Random tensors on the device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._generator = torch.Generator().manual_seed(7)

    def __call__(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=self._generator).to(self._device, dtype)


@pytest.fixture
def draw(device: torch.device) -> Draw:
    return Draw(device)


def close(got: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCE[got.dtype]
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


@DTYPES
@pytest.mark.parametrize("size", [1, 64, 96, 1000])
def test_norms(draw: Draw, dtype: torch.dtype, size: int) -> None:
    x, weight, residual = draw(5, size, dtype=dtype), draw(size, dtype=dtype), draw(5, size)
    close(norm.rms_norm(x, weight, 1e-5), reference_norm.rms_norm(x, weight, 1e-5))
    heads = x.view(5, 1, size).expand(5, 3, size)
    close(norm.rms_norm(heads, weight, 1e-5), reference_norm.rms_norm(heads, weight, 1e-5))
    for added in (x, draw(5, size)):
        ours, theirs = residual.clone(), residual.clone()
        got = norm.add_rms_norm(added, ours, weight, 1e-5)
        close(got, reference_norm.add_rms_norm(added, theirs, weight, 1e-5))
        close(ours, theirs)


@DTYPES
@pytest.mark.parametrize(("head_dim", "rotary"), [(64, 64), (80, 80), (80, 32), (128, 128)])
def test_rotation(draw: Draw, dtype: torch.dtype, head_dim: int, rotary: int) -> None:
    x = draw(4, 9, head_dim, dtype=dtype)
    cosine, sine = draw(4, 1, rotary, dtype=dtype), draw(4, 1, rotary, dtype=dtype)
    for part in (x, x[:, 2:7]):  # queries are a view of the product with keys and values
        close(rope.rotate(part, cosine, sine), reference_rope.rotate(part, cosine, sine))


@DTYPES
@pytest.mark.parametrize("size", [1, 100, 1500])
def test_activation(draw: Draw, dtype: torch.dtype, size: int) -> None:
    gate_up = 3 * draw(3, 2 * size, dtype=dtype)
    close(activation.silu_mul(gate_up), reference_activation.silu_mul(gate_up))


def test_nothing_to_do(draw: Draw) -> None:
    assert norm.rms_norm(draw(0, 8), draw(8), 1e-5).shape == (0, 8)
    assert rope.rotate(draw(0, 2, 8), draw(0, 1, 8), draw(0, 1, 8)).shape == (0, 2, 8)
    assert activation.silu_mul(draw(0, 8)).shape == (0, 4)


@pytest.mark.parametrize("columns", [7, 2048, 5000])
def test_the_noise_chooses_the_same_tokens(draw: Draw, columns: int) -> None:
    logits = draw(6, columns)
    device = logits.device
    temperature = torch.tensor([0.0, 1.0, 0.7, 1.0, 2.0, 1e-3], device=device)
    seeds = torch.tensor([1, -5, 7, 1 << 62, 0, -(1 << 63)], device=device)
    positions = torch.tensor([0, 3, 100_000, 7, 9, 131_071], device=device)
    arguments = (logits, temperature, seeds, positions)
    assert torch.equal(
        sampling.gumbel_argmax(*arguments), reference_sampling.gumbel_argmax(*arguments)
    )
    names = torch.stack([torch.randperm(columns) for _ in range(6)]).to(device) * 29
    assert torch.equal(
        sampling.gumbel_argmax(*arguments, names),
        reference_sampling.gumbel_argmax(*arguments, names),
    )


def test_of_equal_logits_the_first_is_drawn_and_minus_infinity_never(draw: Draw) -> None:
    logits = torch.full((2, 4500), float("-inf"), device=draw(1).device)
    logits[0, [2100, 4400]] = 1.0
    logits[1, 3] = -1e30
    zeros = torch.zeros(2, dtype=torch.int64, device=logits.device)
    heat = torch.tensor([0.0, 1.0], device=logits.device)
    assert sampling.gumbel_argmax(logits, heat, zeros, zeros).tolist() == [2100, 3]


@DTYPES
def test_blocks_move(draw: Draw, dtype: torch.dtype) -> None:
    source, target = draw(6, 2, 16, 2, 8, dtype=dtype), draw(5, 2, 16, 2, 8, dtype=dtype)
    expected = target.clone()
    pairs = torch.tensor([[0, 4], [5, 1]])
    cache.copy_blocks(source, target, pairs)
    reference_cache.copy_blocks(source, expected, pairs)
    assert torch.equal(target, expected)
    swapped = source.clone()  # all are read before the first is written
    cache.copy_blocks(swapped, swapped, torch.tensor([[2, 3], [3, 2]]))
    assert torch.equal(swapped[[2, 3]], source[[3, 2]])
