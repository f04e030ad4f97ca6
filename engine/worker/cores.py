"""`Cores`: how many of them compute, and when the front end gets one for itself.

Kernels gain from every core, as long as nobody else wants it. A front end that is busy with many
streams does: with all cores computing it waits for each of its turns, and what it has to say, be it
a token or a refusal, comes late. So it is measured what it uses. Results do not depend on how many
threads compute, and a step may have more of them than the one before.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

_LOOK_SECONDS = 0.5
# Shares of one core. With fewer threads there are fewer tokens and a less busy front end: the two
# lie far enough apart for it not to get its core and lose it again all the time.
_BUSY, _QUIET = 0.3, 0.1
_CPU_CLOCK_OF_PROCESS = 2  # CPUCLOCK_SCHED, see clock_getcpuclockid(3)

Seconds = Callable[[], float]


class Cores:
    """Begins with `most` threads that compute; where the front end is busy, there are `least`."""

    def __init__(
        self,
        *,
        least: int,
        most: int,
        front_end: Seconds,
        set_threads: Callable[[int], None],
        clock: Seconds = time.monotonic,
    ) -> None:
        """`front_end` tells the CPU time that the front end has used since it began."""
        self._least, self._most = least, most
        self._front_end = front_end
        self._set_threads = set_threads
        self._clock = clock
        self._looked, self._used = clock(), front_end()
        self._busy = False
        set_threads(most)

    def look(self) -> None:
        """Before a step. Costs next to nothing."""
        now = self._clock()
        seconds = now - self._looked
        if self._least == self._most or seconds < _LOOK_SECONDS:
            return
        used = self._front_end()
        share = (used - self._used) / seconds
        self._looked, self._used = now, used
        if share < _QUIET if self._busy else share > _BUSY:
            self._busy = not self._busy
            self._set_threads(self._least if self._busy else self._most)


def cpu_seconds_of(process: int) -> Seconds:
    """Tells the CPU time used by a process; 0 where the system does not say."""
    clock = ~process << 3 | _CPU_CLOCK_OF_PROCESS

    def seconds() -> float:
        with contextlib.suppress(OSError):
            return time.clock_gettime(clock)
        return 0.0

    return seconds
