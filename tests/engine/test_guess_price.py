"""What guesses add to a step, and how many are worth it."""

from __future__ import annotations

import random

import pytest

from octavo.engine.scheduler.guess_price import GuessPrice
from octavo.engine.scheduler.luck import Luck
from octavo.engine.step import Slice, StepPlan


def step(sequences: int, guesses: int = 0, prompt: int = 0) -> StepPlan:
    """Of sequences that decode; the first has all guesses."""
    slices = [
        Slice(sequence=i, start=100, count=1 + drafted, draft=(7,) * drafted)
        for i, drafted in enumerate([guesses] + [0] * (sequences - 1))
    ]
    if prompt:
        slices.append(Slice(sequence=99, start=0, count=prompt))
    return StepPlan(number=0, slices=tuple(slices))


def cost(sequences: int, guesses: int) -> float:
    """Seconds: a guess adds a hundredth of a plain step, guessing at all a fifth."""
    plain = 1e-3 + 1e-4 * sequences
    return plain * (1 + 0.2 * (guesses > 0) + 0.01 * guesses)


@pytest.fixture
def price() -> GuessPrice:
    """Has seen 200 steps of 8 sequences and less, 10 % noise, and now and then a hiccup."""
    draw = random.Random(1)
    learned = GuessPrice()
    for _ in range(200):
        sequences, guesses = draw.randint(1, 8), draw.choice((0, 0, 3, 8, 24))
        noise = draw.lognormvariate(0, 0.1) * (20 if draw.random() < 0.02 else 1)
        learned.observe(step(sequences, guesses), cost(sequences, guesses) * noise)
    return learned


def added(price: GuessPrice, sequences: int, guesses: int) -> float:
    step_price, each = price.of(sequences)
    return step_price + guesses * each


@pytest.mark.parametrize("guesses", [4, 16])
def test_it_learns_what_guesses_add(price: GuessPrice, guesses: int) -> None:
    for sequences in (5, 8):
        assert added(price, sequences, guesses) == pytest.approx(0.2 + 0.01 * guesses, abs=0.15)


def test_always_as_many_guesses_teach_what_so_many_add() -> None:
    """As one stream that repeats itself makes them."""
    price = GuessPrice()
    price.observe(step(1), 1e-3)
    for _ in range(100):
        price.observe(step(1, 8), 1.5e-3)
    assert added(price, 1, 8) == pytest.approx(0.5, abs=0.02)


def test_steps_with_prompts_teach_nothing() -> None:
    price = GuessPrice()
    before = price.of(4)
    for _ in range(50):
        price.observe(step(4, 0, prompt=300), 1.0)
        price.observe(step(4, 6, prompt=300), 5.0)
    assert price.of(4) == before


def test_what_one_number_of_sequences_teaches_is_not_said_of_many() -> None:
    price = GuessPrice()
    before = price.of(32)
    for sequences in (1, 2):
        price.observe(step(sequences), 1e-3)
        for _ in range(50):
            price.observe(step(sequences, 8), 1e-3)
    assert price.of(32) == before
    assert added(price, 1, 8) < 0.1


def test_a_price_that_nothing_confirms_is_forgotten() -> None:
    price = GuessPrice()
    before = price.of(4)
    price.observe(step(4), 1e-3)
    for _ in range(20):
        price.observe(step(4, 4), 9e-3)
    assert added(price, 4, 4) > 2
    for _ in range(4000):
        price.observe(step(4), 1e-3)
    assert price.of(4) == pytest.approx(before, abs=0.05)


def test_no_price_is_below_zero() -> None:
    draw = random.Random(3)
    price = GuessPrice()
    for _ in range(500):
        sequences = draw.randint(1, 64)
        price.observe(step(sequences, draw.randint(0, 9)), draw.random())
        assert min(price.of(sequences)) >= 0


class TestLuck:
    def test_nothing_known_is_even_odds(self) -> None:
        assert Luck(0.9).share == 0.5
        first, second, third = Luck(0.9).chances(0.5, 3)
        assert first == 0.5
        assert first > second > third > 0

    def test_right_guesses_give_long_hopes_and_wrong_ones_none(self) -> None:
        lucky, unlucky = Luck(0.9), Luck(0.9)
        for _ in range(20):
            lucky.see(8, 8)
            unlucky.see(0, 8)
        assert lucky.chances(0.5, 8)[-1] > 0.7
        assert unlucky.chances(0.5, 1)[0] < 0.2

    def test_what_comes_last_counts_most(self) -> None:
        luck = Luck(0.8)
        for _ in range(50):
            luck.see(8, 8)
        for _ in range(20):
            luck.see(0, 2)
        assert luck.chances(0.5, 1)[0] < 0.4

    def test_the_share_is_of_guesses_whose_forerunners_were_right(self) -> None:
        """Each is right with 7 in 10, a draft has 4."""
        draw, luck = random.Random(5), Luck(0.999)
        for _ in range(3000):
            right = 0
            while right < 4 and draw.random() < 0.7:
                right += 1
            luck.see(right, 4)
        assert luck.share == pytest.approx(0.7, abs=0.03)
