"""`TokenBound`: how few tokens a text can have at best, known without tokenizing it.

No token stands for more bytes than the longest of the vocabulary, so a text of five megabytes can
be refused as too long in no time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# NFC makes at most this many characters one, and none of ASCII.
_COMPOSED = 4
_KEEPING = frozenset(("ByteLevel", "Digits", "Metaspace", "Split", "Punctuation"))


@dataclass(frozen=True, slots=True)
class TokenBound:
    """`longest`: bytes of the longest token; 0 where a token may stand for any text."""

    longest: int
    composes: bool = False
    swallows_space: bool = False  # some token takes in all the white space beside it

    @classmethod
    def of(cls, description: Mapping[str, Any], tokens: Iterable[bytes]) -> TokenBound:
        """From a parsed tokenizer.json, and the bytes of all tokens."""
        model = description.get("model", {})
        splits = _steps(description.get("pre_tokenizer"), "pretokenizers")
        norms = _steps(description.get("normalizer"), "normalizers")
        bytewise = model.get("byte_fallback") or any(s.get("type") == "ByteLevel" for s in splits)
        if not (model.get("type") == "BPE" and bytewise and all(map(_keeps_all, splits))):
            return cls(0)
        composes = any(step.get("type") == "NFC" for step in norms)
        if not all(step.get("type") == "NFC" or _keeps_length(step) for step in norms):
            return cls(0)
        strips = any(
            token.get("lstrip") or token.get("rstrip")
            for token in description.get("added_tokens") or ()
        )
        return cls(max(map(len, tokens), default=0), composes, strips)

    def fewest(self, text: str) -> int:
        """`text` has at least so many tokens; 0 where nothing is known."""
        if not self.longest:
            return 0
        length = sum(map(len, text.split())) if self.swallows_space else len(text)
        if self.composes and not text.isascii():
            length //= _COMPOSED
        return -(-length // self.longest)


def _steps(part: Mapping[str, Any] | None, inner: str) -> list[Mapping[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, which may be a sequence of such."""
    if not part:
        return []
    return (
        [step for each in part[inner] for step in _steps(each, inner)] if inner in part else [part]
    )


def _keeps_all(split: Mapping[str, Any]) -> bool:
    return split.get("type") in _KEEPING and split.get("behavior") != "Removed"


def _keeps_length(norm: Mapping[str, Any]) -> bool:
    if norm.get("type") == "Prepend":
        return True
    pattern = norm.get("pattern", {}).get("String")
    return (
        norm.get("type") == "Replace"
        and pattern is not None
        and len(norm.get("content", "")) >= len(pattern)
    )
