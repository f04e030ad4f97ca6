"""`Watch`: whether an engine from which tokens are awaited makes progress."""

from __future__ import annotations

from .heartbeat import Beat

LOOK_SECONDS = 1.0  # between two looks
HANG_SECONDS = 10.0  # that any step may take
_SLACK = 20  # times the predicted time of a step


class Watch:
    """Judges one incarnation from looks at its heartbeat.

    Of the time between two looks two intervals count at most: a front end that was itself stopped,
    or too busy to look, blames nobody for the rest. An engine from which nothing is awaited owes
    no progress.

    Args:
        patience: seconds that any step may take, whatever was predicted.
        interval: seconds between two looks, more or less.
    """

    def __init__(self, *, patience: float, interval: float = LOOK_SECONDS) -> None:
        self._patience = patience
        self._interval = interval
        self._beat = Beat()
        self._looked: float | None = None  # when; None while nothing is awaited
        self.stalled = 0.0  # seconds without progress

    def look(self, beat: Beat, *, awaited: bool, now: float) -> None:
        """`awaited`: somebody waits for what the engine is to bring."""
        if self._looked is None or not awaited:
            self.stalled = 0.0
        else:
            moved = (beat.at, beat.completed) != (self._beat.at, self._beat.completed)
            before = 0.0 if moved else self.stalled
            since = max(self._looked, beat.at) if moved else self._looked
            self.stalled = before + min(max(0.0, now - since), 2 * self._interval)
        self._looked = now if awaited else None
        self._beat = beat

    @property
    def limit(self) -> float:
        """Seconds without progress that are too many."""
        return max(self._patience, _SLACK * self._beat.predicted)

    @property
    def hung(self) -> bool:
        """Whether the next look would come too late."""
        return self.stalled > self.limit - self._interval

    @property
    def fresh(self) -> bool:
        """Whether nothing is strange yet: half of the limit is."""
        return self.stalled <= self.limit / 2

    @property
    def finding(self) -> str:
        """What is strange, in words; empty while nothing is."""
        if self.fresh:
            return ""
        where = f"step {self._beat.step}" if self._beat.in_flight else "planning"
        return f"made no progress for {self.stalled:.1f} s in {where}"
