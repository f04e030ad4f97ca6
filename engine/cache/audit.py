"""The books of the block pools, held against the tables of the living sequences, which are right.

`balanced` is cheap enough for every step: it compares sums, and sees what went wrong since the
last one. `sound` looks at every block, `faults` says what is wrong with them, and `mend` makes the
books agree with the tables again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from ..sequence import NOWHERE, Sequence
from .blocks import BlockPool
from .prefix import Prefixes


@dataclass(frozen=True, slots=True, kw_only=True)
class Mended:
    """What was wrong, in words, and the sequences whose cells may have been overwritten: one of
    their blocks had fewer holders in the books than in truth, and could be given to others."""

    faults: tuple[str, ...]
    doubtful: tuple[Sequence, ...]


class Audit:
    """Over the pools of one block manager."""

    def __init__(self, device: BlockPool, host: BlockPool, prefixes: Prefixes) -> None:
        self._device = device
        self._host = host
        self._prefixes = prefixes

    def balanced(self, sequences: Collection[Sequence]) -> bool:
        """Whether there are as many holders of blocks as entries of tables."""
        device = host = 0
        for sequence in sequences:
            device += len(sequence.block_table)
            if sequence.host_table:
                elsewhere = sequence.block_table.count(NOWHERE)
                device -= elsewhere
                host += elsewhere
        return (
            device == self._device.held
            and host == self._host.held
            and not self._device.overdrawn
            and not self._host.overdrawn
        )

    def sound(self, sequences: Collection[Sequence]) -> bool:
        """Whether each block has as many holders as tables it stands in."""
        device, host = _holders(sequences)
        return self._device.sound(device) and self._host.sound(host) and self._prefixes.sound()

    def faults(self, sequences: Collection[Sequence]) -> list[str]:
        """Everything that is wrong, in words."""
        device, host = _holders(sequences)
        return [
            *(f"device {fault}" for fault in self._device.faults(device)),
            *(f"host {fault}" for fault in self._host.faults(host)),
            *self._prefixes.faults(),
        ]

    def mend(self, sequences: Collection[Sequence], fence: int | None) -> Mended:
        """Make the books agree with the tables.

        Args:
            fence: the newest step in flight, which may still use what turns out to be free.
        """
        faults = self.faults(sequences)
        device, host = _holders(sequences)
        lost = self._device.mend(device, fence)
        for block in lost:
            self._prefixes.forget(self._device.blocks[block])
        lost_host = self._host.mend(host, fence)
        self._prefixes.mend(self._device.blocks)
        doubtful = [
            s
            for s in sequences
            if not lost.isdisjoint(s.block_table) or not lost_host.isdisjoint(s.host_table)
        ]
        return Mended(faults=tuple(faults), doubtful=tuple(doubtful))


def _holders(sequences: Collection[Sequence]) -> tuple[Counter[int], Counter[int]]:
    """How often each device block and each host block stands in a table."""
    device: Counter[int] = Counter()
    host: Counter[int] = Counter()
    for sequence in sequences:
        device.update(sequence.block_table)
        host.update(sequence.host_table)
    del device[NOWHERE], host[NOWHERE]
    return device, host
