"""`ControlTokens`: a vocabulary's special tokens, found where a text spells them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping

import tokenizers


class ControlTokens:
    """Finding a vocabulary's special tokens in a text, in time that does not grow with their
    number."""

    def __init__(self, tokens: Mapping[str, tokenizers.AddedToken]) -> None:
        self._tokens = tokens
        self._any = re.compile(_any_of(tokens) if tokens else "(?!)")
        # What a text may end or begin with that becomes a token when put beside another text.
        self._beginnings = {name[:k] for name in tokens for k in range(1, len(name))}
        self._endings = {name[k:] for name in tokens for k in range(1, len(name))}
        self._longest = max(map(len, tokens), default=0)

    def occur_in(self, text: str) -> bool:
        return self._any.search(text) is not None

    def break_up(self, text: str, mark: str) -> str:
        sizes = range(1, self._longest)
        open_start = any(text[:size] in self._endings for size in sizes)
        open_end = any(text[-size:] in self._beginnings for size in sizes)
        broken = self._any.sub(lambda found: found[0][:1] + mark + found[0][1:], text)
        return (mark if open_start else "") + broken + (mark if open_end else "")

    def halved(self, text: str) -> list[str]:
        """`text` cut behind the first character of every control token."""
        starts = [found.start() + 1 for found in self._any.finditer(text)]
        return [text[i:j] for i, j in itertools.pairwise([0, *starts, len(text)])]

    def split(self, text: str) -> Iterator[tuple[str, bool]]:
        """(piece, whether it is a control token), in order, without empty pieces."""
        end = 0
        for found in self._any.finditer(text):
            token = self._tokens[found[0]]
            before = text[end : found.start()]
            if token.lstrip:  # it swallows the white space beside it
                before = before.rstrip()
            if before:
                yield before, False
            yield found[0], True
            end = found.end()
            if token.rstrip and (space := _WHITE_SPACE.match(text, end)):
                end = space.end()
        if end < len(text):
            yield text[end:], False


_WHITE_SPACE = re.compile(r"\s*")


def _any_of(names: Iterable[str]) -> str:
    """A pattern for the longest of `names` that matches: their trie, written as a pattern."""
    followers: dict[str, list[str]] = {}
    for name in names:
        followers.setdefault(name[:1], []).append(name[1:])
    ends_here = followers.pop("", None) is not None
    branches = [re.escape(first) + _any_of(rest) for first, rest in sorted(followers.items())]
    if not branches:
        return ""
    if len(branches) == 1 and not ends_here:
        return branches[0]
    return f"(?:{'|'.join(branches)}){'?' if ends_here else ''}"
