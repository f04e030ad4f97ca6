"""`Block` and `BlockPool`: who holds which block, and which one is given out next.

Free blocks form a doubly linked list through the blocks themselves, so that a cached block that
is wanted again leaves the middle of it in O(1). Its head is given out first. What holds a
published prefix goes to the tail when it is freed (least recently used first out), what holds
nothing of use goes to the head. Contents are forgotten only when the block is given out (lazily).
"""

from __future__ import annotations

from collections import deque


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
        return block

    def hold(self, block: Block) -> None:
        """Add a holder, also to a block that is free but still has its content."""
        if block.listed:
            self._unlink(block)
        elif block.fence is not None:
            block.fence = None
            self.behind -= 1
        block.references += 1

    def release(self, block: Block, fence: int | None) -> None:
        """Drop a holder; after the last one the block is free once step `fence` is settled."""
        if block.references <= 0:
            raise AssertionError(f"block {block.id} is released more often than held")
        block.references -= 1
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

    def check(self) -> None:
        """Raise AssertionError unless list, fence and counts agree."""
        listed = 0
        block = self._ring.next
        while block is not self._ring:
            assert block.listed and not block.references and block.fence is None, block.id
            assert block.next.prev is block, block.id
            listed += 1
            block = block.next
        behind = sum(block.fence is not None for block in self.blocks)
        used = sum(block.references > 0 for block in self.blocks)
        assert (listed, behind, used) == (self.free, self.behind, self.used)

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
