"""Choosing without a sort, against the reference that sorts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from octavo.kernels.cuda import narrowing, sampling, selection
from octavo.kernels.reference import bitmask as reference_bitmask
from octavo.kernels.reference import narrowing as reference_narrowing
from octavo.kernels.reference import sampling as reference


def logits(rows: int, columns: int, device: torch.device, *, ties: bool = False) -> Tensor:
    """Random; with ties rounded as a 16-bit model's are, and some minus infinity."""
    generator = torch.Generator().manual_seed(columns)
    drawn = 3 * torch.randn(rows, columns, generator=generator)
    if ties:
        drawn = drawn.mul(4).round().div(4)
        drawn[:, ::7] = float("-inf")
        drawn[0, :3] = torch.tensor([0.0, -0.0, 0.0])
    return drawn.to(device)


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize(("columns", "count"), [(7, 7), (5000, 1), (5000, 64), (9000, 500)])
def test_the_largest(columns: int, count: int, ties: bool, device: torch.device) -> None:
    values = logits(3, columns, device, ties=ties)
    ours, theirs = selection.largest(values, count), reference.largest(values, count)
    assert torch.equal(ours[1], theirs[1])
    assert torch.equal(ours[0], theirs[0])
    chosen = theirs[1][:, count // 2].contiguous()
    assert torch.equal(selection.rank(values, chosen), reference.rank(values, chosen))
    assert selection.rank(values, chosen).tolist() == [count // 2 + 1] * 3


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("columns", [40, 5000])
def test_what_is_left_and_what_is_drawn_of_it(
    columns: int, ties: bool, device: torch.device
) -> None:
    off = columns
    cases = (  # temperature, top_k, top_p, min_p
        (1.0, off, 1.0, 0.0),
        (1.0, 5, 1.0, 0.0),
        (0.7, off, 0.9, 0.0),
        (1.3, 20, 0.8, 0.0),
        (1.0, off, 1.0, 0.1),
        (2.0, 30, 0.95, 0.05),
        (1.0, 1, 0.5, 0.0),
        (1.0, off, 1e-6, 0.0),
        (1e-4, 10, 0.9, 0.2),
        (0.0, 3, 0.5, 0.5),
    )
    given = logits(len(cases), columns, device, ties=ties)
    temperature, top_k, top_p, min_p = (
        torch.tensor(column, device=device) for column in zip(*cases, strict=True)
    )
    ours, theirs = given.clone(), given.clone()
    narrowing.narrow(ours, temperature, top_k, top_p, min_p)
    reference_narrowing.narrow(theirs, temperature, top_k, top_p, min_p)
    left = ours.isfinite().sum(1)
    assert torch.equal(left, theirs.isfinite().sum(1))
    assert torch.equal(ours, theirs)
    assert left[1] == 5 and left[6] == 1 and left[7] == 1
    assert torch.equal(ours[9], given[9])
    seeds = torch.arange(len(cases), device=device)
    drawn = sampling.gumbel_argmax(ours, temperature, seeds, seeds + 7)
    assert torch.equal(drawn, reference.gumbel_argmax(theirs, temperature, seeds, seeds + 7))
    assert ours.gather(1, drawn[:, None]).isfinite().all()


def test_penalties(device: torch.device) -> None:
    given = logits(4, 1500, device)
    generator = torch.Generator().manual_seed(0)
    seen = (torch.rand(4, 1500, generator=generator) < 0.3).to(device)
    counts = torch.randint(0, 4, (4, 1500), generator=generator, dtype=torch.int32).to(device)
    presence, frequency, repetition = (
        torch.tensor(column, device=device)
        for column in ((0.0, 0.5, -1.0, 2.0), (0.0, 0.3, 0.7, -0.4), (1.0, 1.3, 0.7, 1.1))
    )
    arguments = (given, seen, counts, presence, frequency, repetition)
    assert torch.equal(narrowing.penalise(*arguments), reference.penalise(*arguments))


@pytest.mark.parametrize("columns", [31, 64, 2100])
def test_masks(columns: int, device: torch.device) -> None:
    ours = logits(3, columns, device)
    theirs = ours.clone()
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(-(1 << 31), 1 << 31, (3, -(-columns // 32)), generator=generator)
    mask = words.to(device, torch.int32)
    narrowing.allow_only(ours, mask)
    reference_bitmask.allow_only(theirs, mask)
    assert torch.equal(ours, theirs)
