"""`PrefixIndex`: finds the block that already holds a given stretch of tokens after a given past.

A full block's digest is a chain hash over (digest of the block before it, its tokens); the chain
starts at a digest of adapter and salt (after vLLM's automatic prefix caching). It depends on
nothing of this process, so that it may be compared between engines.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence as Tokens
from hashlib import blake2b
from typing import Protocol

from .blocks import Block

TOKEN_BYTES = 4
_DIGEST_BYTES = 16


def root_digest(adapter: str | None, salt: str) -> bytes:
    """What the chains of one adapter and one salt start from."""
    return blake2b(repr((adapter, salt)).encode(), digest_size=_DIGEST_BYTES).digest()


def pack(tokens: Tokens[int]) -> bytes:
    """Token ids as bytes, `TOKEN_BYTES` each: the content of blocks, to hash and to compare."""
    return struct.pack(f"<{len(tokens)}I", *tokens)


def chain_digest(parent: bytes, content: bytes) -> bytes:
    """The digest of a block of packed tokens that follows the block of digest `parent`."""
    return blake2b(parent + content, digest_size=_DIGEST_BYTES).digest()


class Prefixes(Protocol):
    """What `BlockManager` asks of a prefix index."""

    enabled: bool

    def find(self, digest: bytes, parent: bytes, content: bytes) -> Block | None:
        """The block that holds `content` after the past named by `parent`, or None."""

    def publish(self, block: Block, digest: bytes, parent: bytes, content: bytes) -> None:
        """Offer a full, computed block; the first block of a content keeps the place."""

    def forget(self, block: Block) -> None:
        """The block is about to hold something else."""

    def check(self) -> None:
        """Raise AssertionError unless index and blocks agree."""


class PrefixIndex:
    """Digest to block, with the content compared at every hit: a collision is only a miss."""

    enabled = True

    def __init__(self) -> None:
        self._blocks: dict[bytes, Block] = {}

    def find(self, digest: bytes, parent: bytes, content: bytes) -> Block | None:
        block = self._blocks.get(digest)
        if block is None or block.content != content or block.parent != parent:
            return None
        return block

    def publish(self, block: Block, digest: bytes, parent: bytes, content: bytes) -> None:
        if digest not in self._blocks and block.digest is None:
            self._blocks[digest] = block
            block.digest, block.parent, block.content = digest, parent, content

    def forget(self, block: Block) -> None:
        if block.digest is not None:
            del self._blocks[block.digest]
            block.digest, block.parent, block.content = None, b"", b""

    def check(self) -> None:
        for digest, block in self._blocks.items():
            assert block.digest == digest == chain_digest(block.parent, block.content), block.id


class NoPrefixes:
    """Prefix caching switched off: nothing is ever found."""

    enabled = False

    def find(self, digest: bytes, parent: bytes, content: bytes) -> Block | None:
        return None

    def publish(self, block: Block, digest: bytes, parent: bytes, content: bytes) -> None:
        return

    def forget(self, block: Block) -> None:
        return

    def check(self) -> None:
        return
