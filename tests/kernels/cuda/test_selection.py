"""Choosing without a sort, against the reference that sorts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from octavo.kernels.cuda import sampling, selection, shaping
from octavo.kernels.ops import Narrowing
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
    temperature, narrowing = narrowings(cases, device)
    ours = left_of(given, temperature, narrowing)
    theirs = reference_narrowing.narrow(given, temperature, narrowing)
    left = ours.isfinite().sum(1)
    assert torch.equal(left, theirs.isfinite().sum(1))
    assert torch.equal(ours, theirs)
    assert left[1] == 5 and left[6] == 1 and left[7] == 1
    assert torch.equal(ours[9], given[9])
    seeds = torch.arange(len(cases), device=device)
    drawn, outcomes = sampling.draw(given, temperature, seeds, seeds + 7, narrowing)
    assert torch.equal(drawn, reference.gumbel_argmax(theirs, temperature, seeds, seeds + 7))
    assert torch.equal(outcomes, drawn)  # of logits whose largest is a number
    assert ours.gather(1, drawn[:, None]).isfinite().all()


@pytest.mark.parametrize(
    "kind", ["equal", "two numbers", "both zeros", "few finite", "16 bits", "huge", "flat"]
)
def test_what_is_left_of_odd_rows(kind: str, device: torch.device) -> None:
    """Thousands of equal numbers, and cuts within them; ranges that hold most columns."""
    columns = 6000
    generator = torch.Generator().manual_seed(3)
    drawn = torch.randn(8, columns, generator=generator)
    coin = torch.rand(8, columns, generator=generator)
    given = {
        "equal": torch.full_like(drawn, -3.5),
        "two numbers": (coin < 0.3).float(),
        "both zeros": torch.where(coin < 0.5, 0.0, -0.0),
        "few finite": torch.where(coin < 0.01, drawn, float("-inf")),
        "16 bits": drawn.bfloat16().float(),
        "huge": drawn * 1e37,
        "flat": drawn * 1e-3,
    }[kind].to(device)
    cases = (  # shares that no sum of equal weights can meet exactly
        (1.0, 3000, 1.0, 0.0),
        (1.0, 1500, 0.7001, 0.0),
        (0.5, columns, 0.3337, 0.0),
        (1.0, 900, 0.6003, 0.2),
        (2.0, 1025, 1.0, 1.0),
        (1.0, columns, 0.9001, 0.9),
        (1.0, 1024, 1.0, 0.0),
        (1.0, 2, 1.0, 0.0),
    )
    temperature, narrowing = narrowings(cases, device)
    ours = left_of(given, temperature, narrowing)
    theirs = reference_narrowing.narrow(given, temperature, narrowing)
    assert torch.equal(ours.isfinite().sum(1), theirs.isfinite().sum(1))
    assert torch.equal(ours, theirs)


def test_a_row_is_narrowed_alike_alone_and_in_a_crowd(device: torch.device) -> None:
    given = logits(5, 3000, device)
    temperature, narrowing = narrowings([(1.0, 3000, 0.95, 0.0)] * 5, device)
    together = selection.narrowed(given, temperature, narrowing)
    alone = Narrowing(
        top_k=narrowing.top_k[3:4], top_p=narrowing.top_p[3:4], min_p=narrowing.min_p[3:4]
    )
    ends = selection.narrowed(given[3:4], temperature[3:4], alone)
    assert torch.equal(ends.limits, together.limits[3:4])
    assert torch.equal(ends.places, together.places[3:4])


def test_of_numbers_that_are_none_the_draw_says_so_and_chooses_some_column(
    device: torch.device,
) -> None:
    given = logits(6, 2500, device)
    given[0, 2400] = float("nan")
    given[1] = float("nan")
    given[2] = float("-inf")
    given[3, 5] = float("inf")
    cases = [(1.0, 2500, 0.9, 0.0), (1.0, 7, 0.9, 0.1)] * 3
    temperature, narrowing = narrowings(cases, device)
    zeros = torch.zeros(6, dtype=torch.int64, device=device)
    for one in (None, narrowing):
        chosen, outcomes = sampling.draw(given, temperature, zeros, zeros, one)
        assert outcomes[:4].tolist() == [-1] * 4
        assert torch.equal(outcomes[4:], chosen[4:])
        assert ((chosen >= 0) & (chosen < 2500)).all()
    values, places = selection.largest(given, 20)
    assert ((places >= 0) & (places < 2500)).all()
    assert torch.equal(values[4:], reference.largest(given[4:], 20)[0])


@pytest.mark.parametrize("columns", [1, 5, 2050])
def test_of_numbers_that_are_none_a_column_of_the_vocabulary_is_chosen(
    columns: int, device: torch.device
) -> None:
    """Also of fewer columns than a program reads, and where none of a program's is a number."""
    given = logits(4, columns, device)
    given[:2] = float("nan")
    given[2:, -1] = float("nan")
    cases = [(0.0, columns, 1.0, 0.0), (1.0, 3, 0.9, 0.1)] * 2
    temperature, narrowing = narrowings(cases, device)
    seeds = torch.arange(4, device=device)
    named = torch.arange(columns, device=device).flip(0).expand(4, -1).contiguous()
    several = [
        sampling.gumbel_argmax(given, temperature, seeds, seeds),
        sampling.gumbel_argmax(given, temperature, seeds, seeds, named),
        *(sampling.draw(given, temperature, seeds, seeds, one)[0] for one in (None, narrowing)),
        *(selection.largest(given, count)[1] for count in {1, min(columns, 4), columns}),
    ]
    for chosen in several:
        assert ((chosen >= 0) & (chosen < columns)).all()
    if columns > 1:  # numbers are chosen where there are some
        assert torch.equal(several[0][2], given[2, :-1].argmax())


def narrowings(cases: Any, device: torch.device) -> tuple[Tensor, Narrowing]:
    """Temperatures, and what narrows; a case is (temperature, top_k, top_p, min_p)."""
    temperature, top_k, top_p, min_p = (
        torch.tensor(column, device=device) for column in zip(*cases, strict=True)
    )
    return temperature, Narrowing(top_k=top_k, top_p=top_p, min_p=min_p)


def left_of(logits: Tensor, temperature: Tensor, narrowing: Narrowing) -> Tensor:
    """Logits with minus infinity where they are left out."""
    ends = selection.narrowed(logits, temperature, narrowing)
    limits, places = ends.limits[:, None], ends.places[:, None]
    column = torch.arange(logits.shape[1], device=logits.device)
    left = (logits > limits) | ((logits == limits) & (column <= places))
    return logits.masked_fill(~left, float("-inf"))


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
    assert torch.equal(shaping.penalise(*arguments), reference.penalise(*arguments))


@pytest.mark.parametrize("columns", [31, 64, 2100])
def test_masks(columns: int, device: torch.device) -> None:
    ours = logits(3, columns, device)
    theirs = ours.clone()
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(-(1 << 31), 1 << 31, (3, -(-columns // 32)), generator=generator)
    mask = words.to(device, torch.int32)
    shaping.allow_only(ours, mask)
    reference_bitmask.allow_only(theirs, mask)
    assert torch.equal(ours, theirs)
