"""When an engine is said to hang, and when not. No clock runs here."""

from __future__ import annotations

import pytest

from octavo.engine.heartbeat import Beat
from octavo.engine.watch import Watch


class Watched:
    """A watch, and an engine that last gave a sign of life when the watch began to look."""

    def __init__(self, *, predicted: float = 0.0) -> None:
        self.watch = Watch(patience=10.0, interval=1.0)
        self.now = 1000.0
        self.predicted = predicted
        self.completed = 5
        self.beat()
        self.look(1)

    def beat(self) -> None:
        self.last = Beat(
            completed=self.completed,
            step=6,
            at=self.now,
            predicted=self.predicted,
            in_flight=("a",) if self.predicted else (),
        )

    def look(self, seconds: float, *, awaited: bool = True, every: float = 1.0) -> bool:
        """Look for so long; whether it is found hung."""
        for _ in range(round(seconds / every)):
            self.watch.look(self.last, awaited=awaited, now=self.now)
            self.now += every
        return self.watch.hung


def test_an_engine_that_stands_still_is_found_within_its_patience() -> None:
    watched = Watched()
    assert not watched.look(9)
    assert watched.watch.stalled == 9.0
    assert watched.look(1)
    assert watched.watch.stalled == 10.0
    assert watched.watch.finding == "made no progress for 10.0 s in planning"


def test_the_time_between_its_last_sign_of_life_and_the_look_counts() -> None:
    watched = Watched()
    watched.now += 0.75
    watched.beat()
    watched.now += 0.25
    watched.look(1)
    assert watched.watch.stalled == 0.25


def test_it_is_strange_at_half_of_that() -> None:
    watched = Watched()
    watched.look(5)
    assert watched.watch.fresh
    assert watched.watch.finding == ""
    watched.look(1)
    assert not watched.watch.fresh
    assert not watched.watch.hung


def test_a_step_that_was_predicted_to_be_long_has_twenty_times_that() -> None:
    watched = Watched(predicted=3.0)
    assert not watched.look(59)
    assert watched.look(1)
    assert watched.watch.finding == "made no progress for 60.0 s in step 6"


@pytest.mark.parametrize("completed", [5, 6])
def test_a_sign_of_life_or_a_completed_step_begins_anew(completed: int) -> None:
    watched = Watched()
    watched.completed = completed
    for _ in range(5):
        assert not watched.look(9)
        watched.beat()
    assert watched.look(11)


def test_nothing_is_owed_while_nothing_is_awaited() -> None:
    watched = Watched()
    assert not watched.look(100, awaited=False)
    assert not watched.look(10)  # counted from the moment in which something was
    assert watched.look(1)


def test_a_front_end_that_was_stopped_itself_blames_nobody() -> None:
    watched = Watched()
    watched.look(3)
    watched.now += 60.0
    assert not watched.look(1)
    assert watched.watch.stalled == 5.0  # two intervals of that minute
    assert not watched.look(4)
    assert watched.look(1)  # what it then sees for itself counts
