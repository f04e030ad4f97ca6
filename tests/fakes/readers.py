"""`Readers`: which cells the plans in flight may still touch, so that nobody else is given them.

A device that overlaps steps, swaps beside them, or computes one again after a failure, reads a
block for as long as a plan that names it has not been committed. So a block that is given away
earlier has been freed before its last reader, whether or not harm came of it this time. Moves are
done in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from octavo.engine.step import Slice, StepPlan

Cell = tuple[int, int]  # (block, offset)


@dataclass(slots=True)
class _Uses:
    """What one plan touches."""

    cells: dict[int, set[Cell]] = field(default_factory=dict)  # read or written, by sequence
    blocks: set[int] = field(default_factory=set)  # of which any cell is, by slices or moves
    hosts: set[int] = field(default_factory=set)


class Readers:
    """Watches the plans that are submitted. `complain` is called with a sentence for each block
    that is given away too early."""

    def __init__(self, block_size: int, complain: Callable[[str], None]) -> None:
        self._size = block_size
        self._complain = complain
        self._tables: dict[int, list[int]] = {}  # as the newest plan has them, by sequence
        self._flying: deque[_Uses] = deque()
        self.overlapped = 0  # plans submitted while another was in flight

    def submit(self, plan: StepPlan) -> None:
        self.overlapped += bool(self._flying)
        for sequence in plan.retired:
            self._tables.pop(sequence, None)
        uses = _Uses()
        moves = plan.moves
        fresh = {device for _, device in (*moves.swap_in, *moves.copies)}
        for number in fresh & self._touched():
            self._complain(f"plan {plan.number} moves into block {number} under a reader's eyes")
        for _, host in moves.swap_out:
            if any(host in earlier.hosts for earlier in self._flying):
                self._complain(f"plan {plan.number} swaps out into host block {host}, still read")
        uses.blocks |= (
            fresh  # not what it moves away: that is done when the next plan's moves begin
        )
        uses.hosts = {host for _, host in moves.swap_out} | {host for host, _ in moves.swap_in}
        for piece in plan.slices:
            self._slice(plan, piece, uses)
        self._flying.append(uses)

    def collect(self) -> None:
        """The oldest plan is done."""
        self._flying.popleft()

    def _touched(self) -> set[int]:
        return {block for uses in self._flying for block in uses.blocks}

    def _slice(self, plan: StepPlan, piece: Slice, uses: _Uses) -> None:
        table = self._tables.setdefault(piece.sequence, [])
        if piece.history is not None:
            table.clear()
        if piece.blocks:
            table[piece.first_block :] = piece.blocks
        stop = piece.start + piece.count
        cells = [(table[at // self._size], at % self._size) for at in range(stop)]
        written = set(cells[piece.start :])
        for earlier in self._flying:
            for sequence, theirs in earlier.cells.items():
                if sequence != piece.sequence and not written.isdisjoint(theirs):
                    self._complain(
                        f"plan {plan.number} writes cells of sequence {sequence}, in flight, for "
                        f"sequence {piece.sequence}"
                    )
        uses.cells[piece.sequence] = set(cells)
        uses.blocks |= {block for block, _ in cells}
