"""`PrefixIndex`: finds the blocks that already hold a prefix of a sequence.

A full block's digest is a chain hash over (digest of the block before it, its tokens); the chain
starts at a digest of adapter and salt (after vLLM's automatic prefix caching). It depends on
nothing of this process, so that it may be compared between engines. At every hit the content is
compared too: a collision is only a miss.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from collections.abc import Sequence as Tokens
from hashlib import blake2b
from typing import Protocol

from ..sequence import Sequence
from .blocks import Block

_TOKEN_BYTES = 4
_DIGEST_BYTES = 16


def root_digest(adapter: str | None, salt: str) -> bytes:
    """What the chains of one adapter and one salt start from."""
    return blake2b(repr((adapter, salt)).encode(), digest_size=_DIGEST_BYTES).digest()


def pack(tokens: Tokens[int]) -> bytes:
    """Token ids as bytes: the content of blocks, to hash and to compare."""
    return struct.pack(f"<{len(tokens)}I", *tokens)


def chain_digest(parent: bytes, content: bytes) -> bytes:
    """The digest of a block of packed tokens that follows the block of digest `parent`."""
    return blake2b(parent + content, digest_size=_DIGEST_BYTES).digest()


class Prefixes(Protocol):
    """What `BlockManager` asks of a prefix index. `queries` and `hits` count tokens."""

    queries: int
    hits: int

    def find(self, sequence: Sequence) -> list[Block]:
        """The blocks that hold a prefix of `sequence`, but never its last position to compute:
        the logits of that one are needed. None while something is wanted of every position (prompt
        log-probabilities, a mean of hidden states): they must all be computed."""

    def count(self, sequence: Sequence, hits: int) -> None:
        """`sequence` starts for the first time, with `hits` cached tokens."""

    def awaits(self, sequence: Sequence) -> bool:
        """Whether the next uncached prefix block of `sequence` is just being computed."""

    def announce(self, sequence: Sequence, count: int, step: int) -> None:
        """Plan `step` computes the next `count` positions of `sequence`."""

    def publish(self, sequence: Sequence, computed: int, blocks: list[Block]) -> None:
        """The first `computed` positions are written: let the full blocks among them be found.
        `blocks` is the pool. The first block of a content keeps the place."""

    def forget(self, block: Block) -> None:
        """The block is about to hold something else."""

    def settle(self, step: int) -> None:
        """Plan `step` computes nothing any more."""

    def sound(self) -> bool:
        """Whether every entry leads to the block that says so. Contents are compared when they
        are found."""

    def faults(self) -> Iterator[str]:
        """Where index and blocks disagree, in words; also about contents."""

    def mend(self, blocks: list[Block]) -> None:
        """Forget all entries in doubt. `blocks` is the pool."""


class PrefixIndex:
    """Digest to block, and digest to the step that is just computing such a block."""

    def __init__(self, block_size: int) -> None:
        self.queries = 0
        self.hits = 0
        self._block_size = block_size
        self._blocks: dict[bytes, Block] = {}
        self._computing: dict[bytes, int] = {}

    def find(self, sequence: Sequence) -> list[Block]:
        if sequence.gathering:
            return []
        count = self._attachable(sequence)
        self._extend_digests(sequence, count)
        found: list[Block] = []
        parent = self._root(sequence)
        contents = self._contents(sequence, 0, count)
        for digest, content in zip(sequence.digests, contents, strict=False):
            block = self._blocks.get(digest)
            if block is None or block.content != content or block.parent != parent:
                break
            found.append(block)
            parent = digest
        return found

    def count(self, sequence: Sequence, hits: int) -> None:
        if not sequence.gathering:
            self.queries += sequence.prompt_length
            self.hits += hits

    def awaits(self, sequence: Sequence) -> bool:
        # Whoever computes a block holds all blocks before it: any block of the prefix tells.
        if not self._computing or sequence.gathering:
            return False
        count = self._attachable(sequence)
        self._extend_digests(sequence, count)
        return not self._computing.keys().isdisjoint(sequence.digests[:count])

    def announce(self, sequence: Sequence, count: int, step: int) -> None:
        first = sequence.computed // self._block_size
        last = min(sequence.computed + count, len(sequence.token_ids)) // self._block_size
        self._extend_digests(sequence, last)
        for digest in sequence.digests[first:last]:
            self._computing[digest] = step

    def publish(self, sequence: Sequence, computed: int, blocks: list[Block]) -> None:
        full = computed // self._block_size
        if full <= sequence.published:
            return
        self._extend_digests(sequence, full)
        for content in self._contents(sequence, sequence.published, full):
            index = sequence.published
            digest, block = sequence.digests[index], blocks[sequence.block_table[index]]
            if digest not in self._blocks and block.digest is None:
                self._blocks[digest] = block
                block.digest, block.content = digest, content
                block.parent = sequence.digests[index - 1] if index else self._root(sequence)
            sequence.published += 1

    def forget(self, block: Block) -> None:
        if block.digest is not None:
            if self._blocks.get(block.digest) is block:
                del self._blocks[block.digest]
            block.digest, block.parent, block.content = None, b"", b""

    def settle(self, step: int) -> None:
        if self._computing:
            self._computing = {d: s for d, s in self._computing.items() if s > step}

    def sound(self) -> bool:
        return list(self._blocks) == [block.digest for block in self._blocks.values()]

    def faults(self) -> Iterator[str]:
        for digest, block in self._blocks.items():
            if not block.digest == digest == chain_digest(block.parent, block.content):
                yield f"prefix index: block {block.id} is not what it is found by"

    def mend(self, blocks: list[Block]) -> None:
        self._blocks = {
            digest: block
            for digest, block in self._blocks.items()
            if block.digest == digest == chain_digest(block.parent, block.content)
        }
        for block in blocks:
            if block.digest is not None and self._blocks.get(block.digest) is not block:
                block.digest, block.parent, block.content = None, b"", b""

    def _attachable(self, sequence: Sequence) -> int:
        """Full blocks before the last position to compute."""
        return (min(len(sequence.token_ids), sequence.end) - 1) // self._block_size

    def _root(self, sequence: Sequence) -> bytes:
        return root_digest(sequence.request.adapter, sequence.request.cache_salt)

    def _contents(self, sequence: Sequence, first: int, last: int) -> Iterator[bytes]:
        """The packed tokens of each of the full blocks first .. last - 1."""
        packed = pack(sequence.token_ids[first * self._block_size : last * self._block_size])
        size = self._block_size * _TOKEN_BYTES
        return (packed[start : start + size] for start in range(0, len(packed), size))

    def _extend_digests(self, sequence: Sequence, count: int) -> None:
        """Know the digests of the first `count` blocks."""
        digests = sequence.digests
        if count <= len(digests):
            return
        parent = digests[-1] if digests else self._root(sequence)
        for content in self._contents(sequence, len(digests), count):
            parent = chain_digest(parent, content)
            digests.append(parent)


class NoPrefixes:
    """Prefix caching switched off: nothing is ever found."""

    queries = 0
    hits = 0

    def find(self, sequence: Sequence) -> list[Block]:
        return []

    def count(self, sequence: Sequence, hits: int) -> None:
        return

    def awaits(self, sequence: Sequence) -> bool:
        return False

    def announce(self, sequence: Sequence, count: int, step: int) -> None:
        return

    def publish(self, sequence: Sequence, computed: int, blocks: list[Block]) -> None:
        return

    def forget(self, block: Block) -> None:
        return

    def settle(self, step: int) -> None:
        return

    def sound(self) -> bool:
        return True

    def faults(self) -> Iterator[str]:
        return iter(())

    def mend(self, blocks: list[Block]) -> None:
        return
