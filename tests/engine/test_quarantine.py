"""Who ends the engine: every poison is convicted, no innocent is, in few deaths."""

from __future__ import annotations

import math
import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.engine.quarantine import Quarantine, Verdict

# A busy machine takes its time.
slowly = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


class House:
    """An engine that dies of poisons, and a front end that gives it what the quarantine admits.

    In a step some requests are in flight, those that have been here longest. If a poison is among
    them the engine dies; perhaps some innocents had gained a token before (a poison of which the
    engine dies after a long prompt). Else all of them gain one.
    """

    def __init__(
        self, names: list[str], poisons: set[str], draw: random.Random, places: int
    ) -> None:
        self.quarantine = Quarantine()
        self.live = names.copy()
        self.poisons = poisons
        self.draw = draw
        self.places = places
        self.given: list[str] = []
        self.finished: list[str] = []
        self.convicted: list[str] = []
        self.deaths = 0

    def step(self) -> Verdict | None:
        """One step of the engine; the verdict where it died in it."""
        self.given += [n for n in self.live if n not in self.given and self.quarantine.admits(n)]
        in_flight = sorted(self.given, key=self.live.index)[: self.places]
        deadly = any(name in self.poisons for name in in_flight)
        for name in in_flight:
            if name not in self.poisons and (not deadly or self.draw.random() < 0.2):
                self.quarantine.gained(name)
        if deadly:
            return self.die(in_flight)
        for name in in_flight:
            if self.draw.random() < 0.3:
                self.end(name)
        return None

    def end(self, name: str) -> None:
        self.quarantine.ended(name)
        self.live.remove(name)
        self.given.remove(name)
        self.finished.append(name)

    def die(self, in_flight: list[str]) -> Verdict:
        self.deaths += 1
        self.given.clear()
        verdict = self.quarantine.died(in_flight)
        if verdict.convicted is not None:
            self.live.remove(verdict.convicted)
            self.convicted.append(verdict.convicted)
        return verdict


@st.composite
def houses(draw: st.DrawFn) -> House:
    names = [f"r{i}" for i in range(draw(st.integers(1, 40)))]
    poisons = set(draw(st.lists(st.sampled_from(names), max_size=5)))
    places = draw(st.integers(1, 40))
    return House(names, poisons, random.Random(draw(st.integers())), places)


@slowly
@given(houses())
def test_every_poison_is_convicted_and_nobody_else_in_few_deaths(house: House) -> None:
    names, poisons = len(house.live), house.poisons
    for _ in range(10_000):
        if not house.live:
            break
        house.step()
    assert set(house.convicted) == poisons
    assert len(house.finished) == names - len(poisons)
    assert house.deaths <= len(poisons) * (math.ceil(math.log2(names)) + 4)
    assert not house.quarantine.searching


@slowly
@given(houses())
def test_kills_from_outside_convict_nobody_who_gains_tokens(house: House) -> None:
    """At any moment, whoever stands in flight, as long as each gains a token now and then."""
    house.poisons = set()
    barren: dict[str, int] = {}  # deaths in a row that a request stood in without a token
    for _ in range(60):
        house.given = [name for name in house.live if house.quarantine.admits(name)]
        in_flight = house.given[: house.places]
        for name in in_flight:
            if barren.get(name, 0) >= 2 or house.draw.random() < 0.5:
                house.quarantine.gained(name)
                barren[name] = 0
            else:
                barren[name] = barren.get(name, 0) + 1
        assert house.die(in_flight).convicted is None


@slowly
@given(houses(), st.integers(0, 3))
def test_a_poison_is_convicted_although_somebody_kills_the_engine(house: House, every: int) -> None:
    """Every few steps the engine is killed after all in flight have gained, but for poisons."""
    poisons = house.poisons
    for step in range(10_000):
        if not house.live:
            break
        verdict = house.step()
        if verdict is None and every and step % every == 0:
            house.die([name for name in house.given if name in house.live])
    assert set(house.convicted) == poisons


def test_one_alone_is_given_up_after_two_deaths_that_made_it_suspect_and_two_alone() -> None:
    quarantine = Quarantine()
    verdicts = [quarantine.died(["a"]) for _ in range(4)]
    assert verdicts[:2] == [Verdict(), Verdict()]
    assert verdicts[2] == Verdict(narrowed=True)
    assert verdicts[3] == Verdict(narrowed=True, convicted="a", deaths=4)
    assert not quarantine.searching


def test_a_token_clears_a_suspect() -> None:
    quarantine = Quarantine()
    for _ in range(3):
        quarantine.died(["a"])
    quarantine.gained("a")
    assert not quarantine.searching
    assert all(quarantine.died(["a"]).convicted is None for _ in range(3))


def test_while_half_of_the_suspects_are_on_probation_everybody_else_waits() -> None:
    quarantine = Quarantine()
    for _ in range(2):
        quarantine.died(["a", "b", "c", "d"])

    def admitted() -> str:
        return "".join(filter(quarantine.admits, "abcdxy"))

    assert admitted() == "ab"
    quarantine.gained("a")
    assert admitted() == "ab"
    quarantine.gained("b")
    assert admitted() == "abcd"
    quarantine.died(["a", "b", "c", "d"])  # the first two had gained tokens, and are innocent
    assert admitted() == "c"
    quarantine.ended("c")
    assert admitted() == "d"
    quarantine.ended("d")
    assert admitted() == "abcdxy"


def test_when_a_probation_takes_long_the_others_go_on_but_for_other_suspects() -> None:
    quarantine = Quarantine()
    for _ in range(2):
        quarantine.died(["a", "b"])
    quarantine.relent()
    assert [name for name in "abx" if quarantine.admits(name)] == ["a", "x"]


def test_a_death_in_which_others_stood_too_convicts_nobody_and_asks_for_more_patience() -> None:
    quarantine = Quarantine()
    quarantine.died(["a"])
    quarantine.died(["a"])
    patience = quarantine.patience
    for new in "xyz":
        quarantine.relent()
        assert quarantine.died(["a", new]).convicted is None
    assert quarantine.patience == 8 * patience
    quarantine.died(["a"])
    assert quarantine.died(["a"]).convicted == "a"
