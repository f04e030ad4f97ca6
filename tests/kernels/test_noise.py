"""The noise of the sampler: exact, finite, Gumbel-distributed, independent in every direction."""

from __future__ import annotations

import math

import pytest
import torch

from octavo.kernels.ops import Draw, GumbelArgmax
from octavo.kernels.reference.sampling import gumbel, gumbel_argmax

from .providers import PROVIDERS, find

MASK = (1 << 64) - 1


def noise_in_pure_python(seed: int, position: int, token_id: int) -> float:
    """The definition in `gumbel`'s docstring, with Python's unbounded integers and doubles."""

    def finalise(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
        return x ^ (x >> 31)

    key = finalise((finalise(seed & MASK) + position * 0x9E3779B97F4A7C15) & MASK)
    x = token_id ^ (key & 0xFFFFFFFF)
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & 0xFFFFFFFF
    x ^= key >> 32
    x = ((x ^ (x >> 15)) * 0xD35A2D97) & 0xFFFFFFFF
    x ^= x >> 15
    uniform = min((torch.tensor(x >> 1).float().item() + 0.5) * 2.0**-31, 1 - 2.0**-24)
    return -math.log(-math.log1p(-uniform))


def test_noise_is_the_documented_function_of_seed_position_and_token() -> None:
    seeds = [0, 1, -1, 12345, (1 << 63) - 1, -(1 << 63)]
    positions = [0, 1, 2, 1000, 131071, 5]
    ids = [0, 1, 2, 4095, 151935]
    got = gumbel(torch.tensor(seeds), torch.tensor(positions), torch.tensor(ids))
    for row, (seed, position) in enumerate(zip(seeds, positions, strict=True)):
        for column, token_id in enumerate(ids):
            expected = noise_in_pure_python(seed, position, token_id)
            assert got[row, column].item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_noise_never_changes_between_releases() -> None:
    """A stream that is resumed by a newer daemon must go on with the same tokens."""
    logits = torch.zeros(6, 4096)
    drawn = gumbel_argmax(
        logits, torch.ones(6), torch.tensor([0, 0, 1, 1, -1, 1 << 62]), torch.arange(6)
    )
    assert drawn.tolist() == [
        max(range(4096), key=lambda t, s=seed, p=position: noise_in_pure_python(s, p, t))  # type: ignore[misc]
        for position, seed in enumerate([0, 0, 1, 1, -1, 1 << 62])
    ]


def test_noise_is_finite_where_the_uniform_is_extreme() -> None:
    noise = gumbel(torch.arange(200), torch.arange(200), torch.arange(20_000))
    assert bool(noise.isfinite().all())
    assert noise.min() > -3.0
    assert noise.max() < 22.3


def test_noise_is_a_row_and_column_matter_only() -> None:
    """Bitwise the same alone, in a batch, and for gathered token ids in any order."""
    seeds, positions = torch.arange(33) * 7919, torch.arange(33) + 5
    ids = torch.randperm(4099, generator=torch.Generator().manual_seed(1))
    full = gumbel(seeds, positions, torch.arange(4099))
    for row in (0, 1, 17, 32):
        alone = gumbel(seeds[row : row + 1], positions[row : row + 1], ids[None, :1237])
        assert torch.equal(alone[0], full[row, ids[:1237]])


def uniforms(seeds: torch.Tensor, positions: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The noise through its own distribution function: uniform on 0..1 if it is Gumbel."""
    return torch.exp(-torch.exp(-gumbel(seeds, positions, ids).double()))


def chi_square_z(counts: torch.Tensor, expected: float) -> float:
    """Chi-square as a standard normal deviate (Wilson and Hilferty 1931)."""
    degrees = counts.numel() - 1
    statistic = ((counts.double() - expected) ** 2 / expected).sum().item()
    return ((statistic / degrees) ** (1 / 3) - (1 - 2 / (9 * degrees))) / math.sqrt(
        2 / (9 * degrees)
    )


CELLS = 16
GRIDS = {
    # what varies from one draw to its neighbour: (seeds, positions, ids of it, of the neighbour)
    "token ids": lambda r: ((r, 7), (r, 7), 0, 1),
    "positions": lambda r: ((r, 7), (r, 8), 0, 0),
    "seeds": lambda r: ((r, 7), (r + 1, 7), 0, 0),
    "seed and position in step": lambda r: ((r, r), (r + 1, r - 1), 0, 0),
    "high halves of seeds": lambda r: ((r << 32, 7), ((r + 1) << 32, 7), 0, 0),
    "token ids far apart": lambda r: ((r, 7), (r, 7), 0, 4096),
}


@pytest.mark.parametrize("varied", GRIDS)
def test_neighbours_are_jointly_uniform(varied: str) -> None:
    rows = torch.arange(1, 2001)
    (seed, position), (near_seed, near_position), shift, near_shift = GRIDS[varied](rows)
    ids = torch.arange(0, 256, 2)

    def column(value: object) -> torch.Tensor:
        return value if isinstance(value, torch.Tensor) else torch.full_like(rows, int(str(value)))

    here = uniforms(column(seed), column(position), ids + shift)
    there = uniforms(column(near_seed), column(near_position), ids + near_shift)
    cell = (here * CELLS).long().clamp(0, CELLS - 1) * CELLS
    cell += (there * CELLS).long().clamp(0, CELLS - 1)
    counts = torch.bincount(cell.flatten(), minlength=CELLS**2)
    assert abs(chi_square_z(counts, here.numel() / CELLS**2)) < 4.5


def test_tail_that_wins_has_the_right_frequency() -> None:
    """Noise above 11 happens with probability 1 - exp(-exp(-11)): once in 60 000 draws."""
    draws = gumbel(torch.arange(500), torch.arange(500), torch.arange(40_000))
    expected = draws.numel() * -math.expm1(-math.exp(-11))
    assert abs((draws > 11).sum().item() - expected) < 5 * math.sqrt(expected)


def test_draws_follow_the_probabilities_over_positions() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -3.0, float("-inf")])
    temperature = 0.7
    draws = 60_000
    drawn = gumbel_argmax(
        logits.expand(draws, -1),
        torch.full((draws,), temperature),
        torch.full((draws,), 42),
        torch.arange(draws),
    )
    counts = torch.bincount(drawn, minlength=6)
    expected = (logits / temperature).softmax(-1).double() * draws
    assert counts[5] == 0
    statistic = ((counts - expected)[:5] ** 2 / expected[:5]).sum().item()
    assert statistic < 23.5  # chi-square, 4 degrees of freedom, p = 0.0001


def test_argmax_takes_the_first_of_equals() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0, 3.0]])
    assert gumbel_argmax(
        logits, torch.zeros(1), torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    ).tolist() == [1]


@pytest.mark.parametrize("provider", [p for p in PROVIDERS if p != "reference"])
@pytest.mark.parametrize("columns", [1, 15, 16, 17, 64, 4099])
def test_every_provider_draws_the_column_that_the_reference_draws(
    provider: str, columns: int
) -> None:
    draw: GumbelArgmax = find(provider, "gumbel_argmax")
    generator = torch.Generator().manual_seed(columns)
    seeds = torch.randint(-(2**62), 2**62, (33,), generator=generator)
    positions = torch.randint(0, 1 << 17, (33,), generator=generator)
    temperature = torch.rand(33, generator=generator) * 2
    temperature[::5], temperature[1], temperature[2] = 0, 1e-3, 50
    for scale in (0.0, 1e-6, 1.0, 20.0):
        logits = torch.randn(33, columns, generator=generator) * scale
        some_gone = logits.clone()
        some_gone[:, ::3] = -math.inf
        rounded = logits.round()  # equal ones: the first
        for values in (logits, some_gone, rounded):
            ids = torch.randperm(3 * columns, generator=generator)[:columns].expand(33, columns)
            for token_ids in (None, ids):
                drawn = draw(values, temperature, seeds, positions, token_ids)
                expected = gumbel_argmax(values, temperature, seeds, positions, token_ids)
                assert torch.equal(drawn, expected)


@pytest.mark.parametrize("provider", [p for p in PROVIDERS if p != "reference"])
def test_columns_too_close_to_tell_are_told_apart_by_the_definition(provider: str) -> None:
    """The logit that makes the second best as good as the best, and its neighbours."""
    draw: GumbelArgmax = find(provider, "gumbel_argmax")
    seeds, positions, temperature = torch.arange(200), torch.arange(200), torch.ones(200)
    noise = gumbel(seeds, positions, torch.arange(2))
    even = torch.stack((torch.zeros(200), noise[:, 0] - noise[:, 1]), dim=1)
    for nudge in (-1e-5, -1e-6, 0.0, 1e-6, 1e-5):
        logits = even + torch.tensor([0.0, nudge])
        expected = gumbel_argmax(logits, temperature, seeds, positions)
        assert torch.equal(draw(logits, temperature, seeds, positions), expected)


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_draw_tells_where_the_largest_logit_is_not_finite(
    provider: str, temperature: float
) -> None:
    draw: Draw = find(provider, "draw")
    infinity, nan = float("inf"), float("nan")
    for columns in (1, 3, 16, 517):
        logits = torch.randn(6, columns, generator=torch.Generator().manual_seed(columns))
        logits[1, columns // 2] = nan
        logits[2, :] = -infinity
        logits[3, columns - 1] = infinity
        logits[4, 1:] = -infinity
        logits[5, :] = nan
        numbers = (torch.full((6,), temperature), torch.arange(6), torch.arange(6) * 3)
        chosen, outcomes = draw(logits, *numbers)
        sound = logits.amax(-1).isfinite()
        assert sound.tolist() == [True, False, False, False, True, False]
        assert torch.equal(outcomes, torch.where(sound, chosen, -1))
        expected = find(provider, "gumbel_argmax")(logits, *numbers)
        assert chosen[sound].tolist() == expected[sound].tolist()
        assert ((chosen >= 0) & (chosen < columns)).all()


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_draw_between_columns_that_are_too_near_is_decided_by_the_definition(
    provider: str,
) -> None:
    seeds, positions = torch.arange(400), torch.arange(400)
    temperature = torch.ones(400)
    noise = gumbel(seeds, positions, torch.arange(2))
    logits = noise.flip(1) - noise.amin(1, keepdim=True)  # both columns come to the same
    logits[::7] = torch.inf
    logits[1::7, 0] = torch.nan
    chosen, outcomes = find(provider, "draw")(logits, temperature, seeds, positions)
    sound = logits.amax(-1).isfinite()
    expected = gumbel_argmax(logits, temperature, seeds, positions)
    assert torch.equal(chosen[sound], expected[sound])
    assert torch.equal(outcomes, torch.where(sound, expected, -1))
