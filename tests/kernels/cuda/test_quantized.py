"""Products with weights of few bits, against the reference."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from octavo.kernels.cuda import quantized
from octavo.kernels.reference import quantized as reference

# Of results of about 10; what is stored as bfloat16 is cut off, not rounded, in the interpreter.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1.5e-1}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs", "biased"),
    [(1, 512, 96, False), (19, 200, 70, True), (5, 1300, 40, False)],
)
def test_it_is_the_references_product(
    bits: int,
    rows: int,
    inputs: int,
    outputs: int,
    biased: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    generator = torch.Generator().manual_seed(bits)
    x, weight = (
        torch.randn(count, inputs, generator=generator).to(device, dtype)
        for count in (rows, outputs)
    )
    x[-1, : reference.GROUPS[bits]] = 0.0  # a group without anything
    bias = torch.randn(outputs, generator=generator).to(device, dtype) if biased else None
    ours = quantized.pack_quantized(weight, bias, bits)
    theirs = reference.pack_quantized(weight, bias, bits)
    wide = theirs.wide(x)
    torch.testing.assert_close(ours.wide(x), wide, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.addend(x), wide, atol=1e-4, rtol=1e-4)
    got = ours(x)
    assert got.dtype == dtype
    torch.testing.assert_close(got, theirs(x), atol=TOLERANCE[dtype], rtol=1e-2)
    ids = torch.tensor([outputs - 1, 0, 3], device=device)
    assert torch.equal(ours.rows(ids), theirs.rows(ids))
    assert ours(x[:0]).shape == (0, outputs)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_row_gives_the_same_bits_alone_and_in_any_batch(bits: int, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(40, 768, generator=generator).to(device)
    linear = quantized.pack_quantized(
        torch.randn(64, 768, generator=generator).to(device), None, bits
    )
    together = linear.wide(x)
    for row in (0, 17, 39):
        assert torch.equal(linear.wide(x[row : row + 1])[0], together[row])
