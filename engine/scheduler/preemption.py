"""`Preemption`: how a running sequence gives its blocks back: by recompute, or by swap.

Recompute drops the blocks and computes the history again later; swap copies them to host memory
and back. Per victim the cheaper one is taken, at the prices the executor measured at its start
(the trade-off of section 4.5 of Kwon et al. 2023, "PagedAttention").
"""

from __future__ import annotations

from ..cache.manager import BlockManager
from ..errors import ConfigError
from ..executor.base import Capacity
from ..sequence import Sequence, Status

_MODES = ("auto", "recompute", "swap")


class Preemption:
    """Takes the blocks of one sequence away; the sequence must wait again after that."""

    def __init__(self, mode: str, capacity: Capacity, blocks: BlockManager) -> None:
        if mode not in _MODES:
            raise ConfigError(f"preemption must be one of {list(_MODES)}, not {mode!r}.")
        self._mode = mode
        self._capacity = capacity
        self._blocks = blocks
        self.recomputed = 0  # counter
        self.swapped = 0  # counter

    def choose(self, running: list[Sequence], planned: int) -> Sequence | None:
        """The sequence that gives way: the last of `running`, which is in policy order, unless
        it is among the first `planned`, whose slices are already in the plan."""
        return running[-1] if len(running) > planned else None

    def apply(self, victim: Sequence) -> None:
        """Take the victim's blocks; it is WAITING or SWAPPED afterwards."""
        if self._swaps(victim) and self._blocks.swap_out(victim):
            victim.status = Status.SWAPPED
            self.swapped += 1
        else:
            self.drop(victim)
            self.recomputed += 1
        victim.preemptions += 1

    def drop(self, sequence: Sequence) -> None:
        """Free all that a running or swapped sequence holds; it will be computed again."""
        self._blocks.free(sequence)
        sequence.status = Status.WAITING

    def _swaps(self, victim: Sequence) -> bool:
        if self._mode != "auto":
            return self._mode == "swap"
        there_and_back = 2 * self._capacity.swap_seconds_per_block
        swap_seconds = there_and_back * self._blocks.held_alone(victim)
        return swap_seconds < self._capacity.recompute_seconds_per_token * victim.computed
