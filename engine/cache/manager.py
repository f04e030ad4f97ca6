"""`BlockManager`: every sequence's block table, and the block traffic that keeps it true.

It decides; the compute wing carries out. What it decides about KV contents leaves as `Moves`
(`take_moves`), which the compute wing performs before the step's compute, in the order swaps out,
swaps in, copies. Therefore a block that was swapped out may be given out again within the same
step, while a host block that is being read may not: it waits behind the fence for its step.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from ..sequence import NOWHERE, Sequence
from ..step import Moves
from .audit import Audit, Mended
from .blocks import Block, BlockPool
from .prefix import NoPrefixes, Prefixes, PrefixIndex


class Usage(NamedTuple):
    """Blocks now, and counters since the start. Cached blocks without a holder are not used."""

    blocks_used: int
    host_blocks_used: int
    prefix_queries: int  # tokens
    prefix_hits: int  # tokens
    blocks_swapped_out: int
    blocks_swapped_in: int
    blocks_copied: int


class BlockManager:
    """Block tables of all sequences over one device pool and one host pool.

    Between two calls a sequence's table covers exactly its computed positions:
    `len(block_table) == ceil(computed / block_size)`. `reserve` is the one exception: the caller
    raises `computed` by what it reserved at once.
    """

    def __init__(
        self, *, num_blocks: int, num_host_blocks: int, block_size: int, prefix_caching: bool
    ) -> None:
        self.size = num_blocks
        self.block_size = block_size
        self._pool = BlockPool(num_blocks)
        self._host = BlockPool(num_host_blocks)
        self._prefixes: Prefixes = PrefixIndex(block_size) if prefix_caching else NoPrefixes()
        self._audit = Audit(self._pool, self._host, self._prefixes)
        self._swap_out: list[tuple[int, int]] = []
        self._swap_in: list[tuple[int, int]] = []
        self._copies: list[tuple[int, int]] = []
        self._step = 0  # of the plan being made
        self._settled = -1  # the newest committed step
        self._blocks_swapped_out = self._blocks_swapped_in = self._blocks_copied = 0

    # --- the life of a table -------------------------------------------------------------------

    def awaits(self, sequence: Sequence) -> bool:
        """Whether the next uncached prefix block of `sequence` is just being computed."""
        return self._prefixes.awaits(sequence)

    def announce(self, sequence: Sequence, count: int) -> None:
        """The plan being made computes the next `count` positions of `sequence`: others that
        want the same blocks may wait for them (`awaits`)."""
        self._prefixes.announce(sequence, count, self._step)

    def attach(self, sequence: Sequence) -> bool:
        """Start `sequence` on the blocks that hold a prefix of it, if all it has pending would
        then fit too. False, and no effect, when it would not."""
        cached = self._prefixes.find(sequence)
        missing = self._blocks_for(sequence.computed + sequence.pending) - len(cached)
        if missing > self._pool.free - sum(block.listed for block in cached):
            return False
        for block in cached:
            self._pool.hold(block)
        sequence.block_table = [block.id for block in cached]
        sequence.published = len(cached)
        sequence.computed = len(cached) * self.block_size
        if sequence.cached_tokens is None:
            sequence.cached_tokens = min(sequence.computed, sequence.prompt_length)
            self._prefixes.count(sequence, sequence.cached_tokens)
        return True

    def reserve(self, sequence: Sequence, count: int) -> bool:
        """Give `sequence` blocks of its own to write its next `count` positions to.

        A tail block that others hold too is copied on write. False, and no effect, when there
        are not enough free blocks.
        """
        held = len(sequence.block_table) * self.block_size
        if sequence.computed + count <= held and not sequence.forked:
            return True  # as at most steps of a stream: its tail is its own
        missing, shared = self._missing(sequence, count)
        if not (missing or shared):
            return True
        if missing + shared > self._pool.free:
            return False
        table = sequence.block_table
        if shared:
            source, target = table[-1], self._take().id
            self._pool.release(self._pool.blocks[source], None)  # others hold it: never the last
            self._copies.append((source, target))
            self._blocks_copied += 1
            table[-1] = target
            sequence.told_blocks = min(sequence.told_blocks, len(table) - 1)
        for _ in range(missing):
            table.append(self._take().id)
        return True

    def shortage(self, sequence: Sequence, count: int) -> int:
        """How many more blocks must be free for `reserve(sequence, count)`; 0 or less is enough."""
        return sum(self._missing(sequence, count)) - self._pool.free

    def publish(self, sequence: Sequence, computed: int) -> None:
        """A committed step has written the first `computed` positions: let the full blocks among
        them be found."""
        if computed // self.block_size > sequence.published:
            self._prefixes.publish(sequence, computed, self._pool.blocks)

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Let `child`, a copy of `parent`'s history, share all of its blocks."""
        for block in parent.block_table:
            self._pool.hold(self._pool.blocks[block])
        child.block_table = parent.block_table.copy()
        child.forked = parent.forked = True
        child.computed = parent.computed
        child.published = parent.published
        child.digests = parent.digests.copy()

    def trim(self, sequence: Sequence, computed: int) -> None:
        """Take back all positions from `computed` on (rejected drafts)."""
        if not sequence.published * self.block_size <= computed <= sequence.computed:
            raise AssertionError(f"sequence {sequence.id} cannot be trimmed to {computed}")
        sequence.computed = computed
        keep = self._blocks_for(computed)
        for block in reversed(sequence.block_table[keep:]):
            self._pool.release(self._pool.blocks[block], self._fence)
        del sequence.block_table[keep:]
        sequence.told_blocks = min(sequence.told_blocks, keep)

    def free(self, sequence: Sequence) -> None:
        """Drop everything `sequence` holds; its computed count falls to 0."""
        # Backwards: of a cached prefix the end is given out before the beginning.
        for block in reversed(sequence.block_table):
            if block != NOWHERE:
                self._pool.release(self._pool.blocks[block], self._fence)
        hosts = [block for block in sequence.host_table if block != NOWHERE]
        for block in hosts:
            self._host.release(self._host.blocks[block], self._fence)
        if hosts and self._swap_out:  # swaps decided but not yet in a plan have no reader left
            self._swap_out = [move for move in self._swap_out if move[1] not in hosts]
        sequence.block_table = []
        sequence.host_table = []
        sequence.computed = sequence.published = 0

    # --- swapping ------------------------------------------------------------------------------

    def held_alone(self, sequence: Sequence) -> int:
        """Blocks that swapping `sequence` out would copy."""
        blocks = self._pool.blocks
        return sum(
            block != NOWHERE and blocks[block].references == 1 for block in sequence.block_table
        )

    def swap_out(self, sequence: Sequence) -> bool:
        """Move the blocks `sequence` holds alone to host memory; of shared ones it keeps its
        reference. False, and no effect, when host memory has no room."""
        if self.held_alone(sequence) > self._host.free:
            return False
        sequence.host_table = [NOWHERE] * len(sequence.block_table)
        for index in reversed(range(len(sequence.block_table))):
            block = self._pool.blocks[sequence.block_table[index]]
            if block.references > 1:
                continue
            host = self._host.take()
            self._swap_out.append((block.id, host.id))
            self._blocks_swapped_out += 1
            self._pool.release(block, self._fence)
            sequence.block_table[index] = NOWHERE
            sequence.host_table[index] = host.id
        sequence.published = 0
        return True

    def swap_in(self, sequence: Sequence) -> bool:
        """Bring `sequence` back to the device, if all it has pending would then fit too.

        False, and no effect, when it would not.
        """
        returning = len(sequence.host_table) - sequence.host_table.count(NOWHERE)
        tail_shared = (
            sequence.computed % self.block_size
            and sequence.block_table[-1] != NOWHERE
            and self._pool.blocks[sequence.block_table[-1]].references > 1
        )
        growth = self._blocks_for(sequence.computed + sequence.pending) - len(sequence.block_table)
        if returning + growth + bool(tail_shared) > self._pool.free:
            return False
        for index, number in enumerate(sequence.host_table):
            if number == NOWHERE:
                continue
            block = self._take()
            self._swap_in.append((number, block.id))
            self._blocks_swapped_in += 1
            self._host.release(self._host.blocks[number], self._step)
            sequence.block_table[index] = block.id
        sequence.host_table = []
        return True

    # --- steps ---------------------------------------------------------------------------------

    def take_moves(self, step: int) -> Moves:
        """The moves decided since the last call; they go into plan `step`, which is now made."""
        self._step = step + 1
        if not (self._swap_out or self._swap_in or self._copies):
            return _NO_MOVES
        moves = Moves(
            swap_out=tuple(self._swap_out),
            swap_in=tuple(self._swap_in),
            copies=tuple(self._copies),
        )
        self._swap_out, self._swap_in, self._copies = [], [], []
        return moves

    def settle(self, step: int) -> None:
        """Plan `step` is committed, or has failed: what only it named may be given out again."""
        self._settled = step
        self._pool.settle(step)
        self._host.settle(step)
        self._prefixes.settle(step)

    @property
    def behind_fence(self) -> int:
        """Device blocks that will be free when the plans in flight are committed."""
        return self._pool.behind

    @property
    def usage(self) -> Usage:
        return Usage(
            blocks_used=self._pool.used,
            host_blocks_used=self._host.used,
            prefix_queries=self._prefixes.queries,
            prefix_hits=self._prefixes.hits,
            blocks_swapped_out=self._blocks_swapped_out,
            blocks_swapped_in=self._blocks_swapped_in,
            blocks_copied=self._blocks_copied,
        )

    def audit(self, sequences: Collection[Sequence], *, thoroughly: bool) -> Mended | None:
        """Hold the books against the tables of all live `sequences`, and mend them if they are
        wrong. None when nothing was.

        Not `thoroughly` it compares sums only, which tells of any block that was lost or freed
        twice since the last time.
        """
        right = self._audit.balanced(sequences) and (not thoroughly or self._audit.sound(sequences))
        return None if right else self._audit.mend(sequences, self._fence)

    def check(self, sequences: Collection[Sequence]) -> None:
        """Raise AssertionError unless the tables of all live `sequences` account for every
        reference, and cover what they have computed."""
        faults = self._audit.faults(sequences)
        assert not faults, faults
        assert self._audit.balanced(sequences) and self._audit.sound(sequences)
        for sequence in sequences:
            assert len(sequence.block_table) == self._blocks_for(sequence.computed), sequence
            if sequence.computed and not sequence.host_table:
                assert sequence.forked or not self._missing(sequence, 1)[1], sequence
            if sequence.host_table:
                pairs = zip(sequence.block_table, sequence.host_table, strict=True)
                assert all((a == NOWHERE) != (b == NOWHERE) for a, b in pairs), sequence

    # --- inside --------------------------------------------------------------------------------

    @property
    def _fence(self) -> int | None:
        """The step that a block freed now must wait for: the newest in flight, if any."""
        newest = self._step - 1
        return newest if newest > self._settled else None

    def _missing(self, sequence: Sequence, count: int) -> tuple[int, bool]:
        """Blocks that the next `count` positions need beyond the table, and whether its tail, to
        be written to, is held by others too."""
        table, start, size = sequence.block_table, sequence.computed, self.block_size
        shared = start % size != 0 and self._pool.blocks[table[-1]].references > 1
        return (start + count + size - 1) // size - len(table), shared

    def _blocks_for(self, tokens: int) -> int:
        return (tokens + self.block_size - 1) // self.block_size

    def _take(self) -> Block:
        block = self._pool.take()
        self._prefixes.forget(block)
        return block


_NO_MOVES = Moves()
