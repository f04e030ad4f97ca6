"""When an engine is said to hang, and when not. No clock runs here."""

from __future__ import annotations

from octavo.engine.heartbeat import Beat
from octavo.engine.watch import Watch


class Watched:
    """A watch, and an engine that beats when told to."""

    def __init__(self, *, predicted: float = 0.0) -> None:
        self.watch = Watch(patience=10.0)
        self.beat = Beat(completed=5, step=6, at=1.0, predicted=predicted, in_flight=("a",))
        self.now = 1000.0

    def look(self, seconds: int, *, awaited: bool = True, every: float = 1.0) -> bool:
        """Look for so long; whether it was found hung."""
        for _ in range(round(seconds / every)):
            self.now += every
            self.watch.look(self.beat, awaited=awaited, now=self.now)
        return self.watch.hung


def test_an_engine_that_stands_still_is_found_after_its_patience() -> None:
    watched = Watched()
    assert not watched.look(11)  # the first look begins
    assert watched.look(1)
    assert watched.watch.finding == "made no progress for 11 s in step 6"


def test_it_is_strange_at_half_of_that() -> None:
    watched = Watched()
    watched.look(6)
    assert watched.watch.fresh
    assert watched.watch.finding == ""
    watched.look(1)
    assert not watched.watch.fresh
    assert not watched.watch.hung


def test_a_step_that_was_predicted_to_be_long_has_twenty_times_that() -> None:
    watched = Watched(predicted=3.0)
    assert not watched.look(61)
    assert watched.look(1)


def test_a_sign_of_life_or_a_completed_step_begins_anew() -> None:
    watched = Watched()
    for beat in (Beat(completed=5, at=2.0), Beat(completed=6, at=2.0)):
        assert not watched.look(10)
        watched.beat = beat
    assert not watched.look(11)
    assert watched.watch.finding == "made no progress for 10 s in planning"


def test_nothing_is_owed_while_nothing_is_awaited() -> None:
    watched = Watched()
    assert not watched.look(100, awaited=False)
    assert not watched.look(11)  # counted from the moment in which something was
    assert watched.look(1)


def test_a_front_end_that_was_stopped_itself_blames_nobody() -> None:
    watched = Watched()
    watched.look(3)
    assert not watched.look(60, every=60.0)
    assert watched.watch.stalled == 4.0
    assert watched.look(8)  # yet what it then sees for itself counts
