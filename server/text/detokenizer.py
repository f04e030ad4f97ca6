"""`Detokenizer`: one choice's token ids to text, as they come."""

from __future__ import annotations

import codecs

from .tokenizer import Tokenizer


class Detokenizer:
    """Turns one choice's tokens into text; each token releases the text that is certain with it.

    A character whose bytes are spread over several tokens is held back until its last byte is
    there. What all calls return, joined, is `Tokenizer.decode(ids, continuation=True)`.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token_id: int) -> str:
        """The text that this token completes; may be empty."""
        if token_id in self._skipped:
            return ""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    @property
    def holds_back(self) -> bool:
        """Whether the bytes of an unfinished character wait for the next token."""
        return bool(self._decoder.getstate()[0])

    def finish(self) -> str:
        """What an unfinished last character becomes: U+FFFD, or nothing if there is none."""
        return self._decoder.decode(b"", final=True)
