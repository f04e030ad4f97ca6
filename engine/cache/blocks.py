"""`Block` and `BlockPool`: who holds which block, and which one is given out next.

Free blocks form a doubly linked list through the blocks themselves, so that a cached block that
is wanted again leaves the middle of it in O(1). Its head is given out first. What holds a
published prefix goes to the tail when it is freed (least recently used first out), what holds
nothing of use goes to the head. Contents are forgotten only when the block is given out (lazily).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from operator import and_


class Block:
    """One block of the KV cache. `digest` names its content while the prefix index knows it."""

    __slots__ = (
        "content",
        "digest",
        "fence",
        "id",
        "listed",
        "next",
        "parent",
        "prev",
        "references",
    )

    def __init__(self, number: int) -> None:
        self.id = number
        self.references = 0
        self.digest: bytes | None = None
        self.parent: bytes = b""  # the digest of the block before it
        self.content: bytes = b""  # the tokens that the digest claims, to be verified
        self.fence: int | None = None  # the step it waits for, when free but not yet to be reused
        self.listed = False  # in the free list
        self.prev: Block = self
        self.next: Block = self


class BlockPool:
    """A fixed array of blocks with reference counts, a free list, and the step fence.

    The fence: a block freed while plans in flight may name it enters the free list only when the
    newest of those plans has been committed.
    """

    def __init__(self, size: int) -> None:
        self.blocks = [Block(number) for number in range(size)]
        self.free = 0  # blocks in the free list
        self.behind = 0  # blocks behind the fence
        self.held = 0  # references to all blocks together
        self.overdrawn = 0  # releases of blocks that nobody held; an audit mends that
        self._fenced: deque[tuple[int, Block]] = deque()
        self._ring = Block(-1)  # sentinel: next is the list's head, prev its tail
        for block in self.blocks:
            self._link(block, self._ring.prev)

    @property
    def used(self) -> int:
        """Blocks with a holder."""
        return len(self.blocks) - self.free - self.behind

    def take(self) -> Block:
        """The least useful free block, held once. Its old content is the caller's to forget.

        Raises:
            IndexError: no block is free.
        """
        block = self._ring.next
        if block is self._ring:
            raise IndexError("no block is free")
        self._unlink(block)
        block.references = 1
        self.held += 1
        return block

    def hold(self, block: Block) -> None:
        """Add a holder, also to a block that is free but still has its content."""
        if block.listed:
            self._unlink(block)
        elif block.fence is not None:
            block.fence = None
            self.behind -= 1
        block.references += 1
        self.held += 1

    def release(self, block: Block, fence: int | None) -> None:
        """Drop a holder; after the last one the block is free once step `fence` is settled."""
        if block.references <= 0:
            self.overdrawn += 1
            return
        block.references -= 1
        self.held -= 1
        if block.references:
            return
        if fence is None:
            self._list(block)
        else:
            block.fence = fence
            self.behind += 1
            self._fenced.append((fence, block))

    def settle(self, step: int) -> None:
        """Step `step` and all before it are done: what waited for them is free."""
        fenced = self._fenced
        while fenced and fenced[0][0] <= step:
            fence, block = fenced.popleft()
            if block.fence == fence:  # else it found a new holder meanwhile
                block.fence = None
                self.behind -= 1
                self._list(block)

    def sound(self, holders: Counter[int]) -> bool:
        """Whether `faults` would find nothing: a few passes over all blocks, quick ones."""
        true = [0] * len(self.blocks)
        for number, count in holders.items():
            true[number] = count
        references = [block.references for block in self.blocks]
        fenced = [block.fence is not None for block in self.blocks]
        listed = [block.listed for block in self.blocks]
        free = [not (held or waits) for held, waits in zip(true, fenced, strict=True)]
        return (
            references == true
            and listed == free
            and not any(map(and_, fenced, map(bool, true)))
            and self.free == sum(listed) == len(self._listed())
            and (self.behind, self.held, self.overdrawn) == (sum(fenced), sum(true), 0)
        )

    def faults(self, holders: Counter[int]) -> Iterator[str]:
        """What disagrees with the true number of holders of each block, in words."""
        for block in self.blocks:
            number, true = block.id, holders[block.id]
            if block.references != true:
                yield f"block {number} counts {block.references} holders and has {true}"
            if block.listed != (block.references == 0 and block.fence is None):
                yield f"block {number} is {'' if block.listed else 'not '}in the free list"
            if block.fence is not None and block.references:
                yield f"block {number} is held and waits to be free"
        listed = len(self._listed())
        behind = sum(block.fence is not None for block in self.blocks)
        held = sum(block.references for block in self.blocks)
        for name, counted, true in (
            ("in the free list", self.free, listed),
            ("behind the fence", self.behind, behind),
            ("holders", self.held, held),
            ("marked as listed", sum(block.listed for block in self.blocks), listed),
            ("releases too many", self.overdrawn, 0),
        ):
            if counted != true:
                yield f"blocks: {counted} {name} rather than {true}"

    def mend(self, holders: Counter[int], fence: int | None) -> set[int]:
        """Make all of it agree with the true number of holders of each block.

        What is free without having counted as free waits for step `fence`. Returns the blocks
        that had more holders than they counted: they may have been given to somebody else.
        """
        order = self._listed()  # in which they would have been given out
        lost = {block.id for block in self.blocks if block.references < holders[block.id]}
        for block in self.blocks:
            surplus = block.references > 0
            block.references = holders[block.id]
            if block.references:
                block.fence = None
            elif surplus and fence is not None:
                block.fence = fence
        self.held = holders.total()
        self.overdrawn = 0
        waiting = [(b.fence, b) for b in self.blocks if b.fence is not None]
        self.behind = len(waiting)
        self._fenced = deque(sorted(waiting, key=lambda entry: entry[0]))
        self.free = 0
        self._ring.prev = self._ring.next = self._ring
        for block in self.blocks:
            block.listed = False
        for block in [b for b in order if not b.references and b.fence is None]:
            self._link(block, self._ring.prev)
        for block in self.blocks:
            if not (block.references or block.listed) and block.fence is None:
                self._list(block)
        return lost

    def _listed(self) -> list[Block]:
        """The free list from its head on, as far as it is one."""
        found: list[Block] = []
        block = self._ring.next
        while block is not self._ring and len(found) < len(self.blocks):
            found.append(block)
            if block.next.prev is not block:
                break
            block = block.next
        return found

    def _list(self, block: Block) -> None:
        self._link(block, self._ring if block.digest is None else self._ring.prev)

    def _link(self, block: Block, after: Block) -> None:
        block.prev, block.next = after, after.next
        after.next.prev = block
        after.next = block
        block.listed = True
        self.free += 1

    def _unlink(self, block: Block) -> None:
        block.prev.next = block.next
        block.next.prev = block.prev
        block.listed = False
        self.free -= 1
