"""`Tokenizer`: text to token ids and back, from a checkpoint's `tokenizer.json`.

A thin layer over the `tokenizers` library that adds what a server needs: text which merely looks
like a control token stays text, and every token's exact bytes are known, so that streams can be
put together byte by byte (`detokenizer.py`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from octavo.engine.errors import BrokenCheckpoint

from .alphabet import Alphabet
from .control_tokens import ControlTokens
from .token_bound import TokenBound

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token")


class Tokenizer:
    """One checkpoint's tokenizer. Safe to use from several threads."""

    def __init__(self, description: str, config: Mapping[str, Any] | None = None) -> None:
        """`description` is the text of tokenizer.json, `config` is tokenizer_config.json.

        Raises:
            BrokenCheckpoint: the description is not one that this server can read.
        """
        self.config: Mapping[str, Any] = config or {}
        self._description = description
        self._library = _load(description)
        parsed = json.loads(description)
        self._alphabet = Alphabet.of(parsed)
        self._continues_bare = _prepends_space_at_start_only(parsed.get("pre_tokenizer"))
        self._added = self._library.get_added_tokens_decoder()
        special = {i: token for i, token in self._added.items() if token.special}
        self.special_ids: frozenset[int] = frozenset(special)
        self._control = ControlTokens({token.content: token for token in special.values()})
        # A Unigram model makes control tokens of text by itself, if they are among its pieces.
        self._break_literals = parsed.get("model", {}).get("type") == "Unigram"
        self.special_tokens: Mapping[str, str] = _named_tokens(self.config)
        self._bytes = self._token_table()
        self._bound = TokenBound.of(parsed, self._bytes)

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Raises BrokenCheckpoint: there is no tokenizer.json, or it cannot be read."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise BrokenCheckpoint(_why_not(folder))
        return cls(path.read_text("utf-8"), read_json(folder / "tokenizer_config.json"))

    @property
    def vocab_size(self) -> int:
        """Ids are 0 .. vocab_size - 1; the checkpoint's embedding may have more rows than that."""
        return len(self._bytes)

    @property
    def bos_token_id(self) -> int | None:
        return self.token_id(self.special_tokens.get("bos_token"))

    @property
    def eos_token_id(self) -> int | None:
        return self.token_id(self.special_tokens.get("eos_token"))

    def token_id(self, token: str | None) -> int | None:
        """The id of a token by its exact name in the vocabulary."""
        return None if token is None else self._library.token_to_id(token)

    def encode(
        self, text: str, *, add_special_tokens: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Token ids of `text`.

        `add_special_tokens` frames it as the checkpoint asks (usually a leading BOS).
        `parse_special`: whether control tokens written out in the text are control tokens (a
        prompt whose author formats it by hand) or just text (words of an end user).
        """
        if parse_special or not self._control.occur_in(text):
            return _encoded(self._library, text, add_special_tokens).ids
        encoding = tokenizers.Encoding.merge(self._literally(text, continuation=False), True)
        framed = self._library.post_process(encoding, add_special_tokens=add_special_tokens)
        return list(framed.ids)

    def fewest_tokens(self, text: str) -> int:
        """`text` has at least so many tokens, found out in no time; 0 where nothing is known."""
        return self._bound.fewest(text)

    def encode_marked(self, text: str, *, mark: str) -> list[int]:
        """Ids of a rendered prompt in which `mark` breaks up what must not be a control token.

        Control tokens without a mark inside are control tokens, everything else is text, and
        the marks themselves vanish. Nothing is added in front or behind.
        """
        ids: list[int] = []
        for piece, control_token in self._control.split(text):
            if control_token:
                found = self._library.token_to_id(piece)
                assert found is not None, f"{piece!r} was listed by the tokenizer itself"
                ids.append(found)
            elif words := piece.replace(mark, ""):
                for encoding in self._literally(words, continuation=bool(ids)):
                    ids += encoding.ids
        return ids

    def _literally(self, text: str, *, continuation: bool) -> list[tokenizers.Encoding]:
        """`text` in parts, every control token in it read as the text it is written with."""
        parts = self._control.halved(text) if self._break_literals else [text]
        encoders = [self._literal_continuation if continuation else self._literal]
        encoders += [self._literal_continuation] * (len(parts) - 1)
        return [
            _encoded(encoder, part, False) for encoder, part in zip(encoders, parts, strict=True)
        ]

    def marked(self, text: str, *, mark: str) -> str:
        """`text` with a `mark` inside everything that is, begins or ends a control token."""
        return self._control.break_up(text, mark)

    def decode(
        self,
        ids: Iterable[int],
        *,
        skip_special_tokens: bool = True,
        continuation: bool = False,
    ) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD.

        `continuation`: the ids follow other text, so that a leading space which sentencepiece
        tokenizers only use to mark a text's beginning is kept.
        """
        skipped = self.special_ids if skip_special_tokens else frozenset()
        joined = b"".join(self.token_bytes(i) for i in ids if i not in skipped)
        if self._alphabet.leading_space and not continuation:
            joined = joined.removeprefix(b" ")
        return joined.decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for within a text; empty for an id that has no token."""
        return self._bytes[token_id] if 0 <= token_id < len(self._bytes) else b""

    def token_text(self, token_id: int) -> str:
        """The token as a text of its own; bytes that are no UTF-8 become U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def _token_table(self) -> list[bytes]:
        vocabulary = self._library.get_vocab(with_added_tokens=True)
        table = [b""] * (1 + max(vocabulary.values(), default=-1))
        for token, token_id in vocabulary.items():
            table[token_id] = self._alphabet.token_bytes(token)
        for token_id, added in self._added.items():
            table[token_id] = added.content.encode()
        return table

    # The encoders below are built the first time a user writes something like a control token.

    @cached_property
    def _literal(self) -> tokenizers.Tokenizer:
        """Reads control tokens as the text they are written with."""
        library = _load(self._description)
        library.encode_special_tokens = True
        return library

    @cached_property
    def _literal_continuation(self) -> tokenizers.Tokenizer:
        """The same, for a piece of text with other tokens in front."""
        if not self._continues_bare:
            return self._literal
        parsed = json.loads(self._description)
        _never_prepend_space(parsed["pre_tokenizer"])
        library = _load(json.dumps(parsed))
        library.encode_special_tokens = True
        return library


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a checkpoint; empty when there is no such file.

    Raises:
        BrokenCheckpoint: the file is not a JSON object.
    """
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise BrokenCheckpoint(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise BrokenCheckpoint(f"{path} should hold a JSON object, not a {type(value).__name__}.")
    return value


def _load(description: str) -> tokenizers.Tokenizer:
    # Each text in the thread that asks: the library's own threads would let a long one block all.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        library = tokenizers.Tokenizer.from_str(description)
    except Exception as error:  # the library raises plain Exception for whatever it cannot read
        raise BrokenCheckpoint(f"tokenizer.json cannot be read: {error}.") from None
    library.no_truncation()
    library.no_padding()
    return library


def _encoded(
    library: tokenizers.Tokenizer, text: str, add_special_tokens: bool
) -> tokenizers.Encoding:
    """Lets other threads run meanwhile, as the library does for batches only."""
    (encoding,) = library.encode_batch_fast([text], add_special_tokens=add_special_tokens)
    return encoding


def _named_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """bos_token and the like, by name; each is a string or an object with `content`."""
    tokens = {}
    for name in _NAMED_TOKENS:
        token = config.get(name)
        if isinstance(token, Mapping):
            token = token.get("content")
        if isinstance(token, str):
            tokens[name] = token
    return tokens


def _steps(pre_tokenizer: Mapping[str, Any] | None) -> Sequence[Any]:
    if not pre_tokenizer:
        return ()
    return pre_tokenizer.get("pretokenizers", (pre_tokenizer,))  # type: ignore[no-any-return]


def _prepends_space_at_start_only(pre_tokenizer: Mapping[str, Any] | None) -> bool:
    return any(step.get("prepend_scheme") == "first" for step in _steps(pre_tokenizer))


def _never_prepend_space(pre_tokenizer: Mapping[str, Any]) -> None:
    for step in _steps(pre_tokenizer):
        if step.get("prepend_scheme") == "first":
            step["prepend_scheme"] = "never"


def _why_not(folder: Path) -> str:
    others = ("tokenizer.model", "tiktoken.model", "vocab.json", "vocab.txt", "spiece.model")
    found = [name for name in others if (folder / name).is_file()]
    if not found:
        return f"{folder} has no tokenizer.json, and no other tokenizer file either."
    return (
        f"{folder} has no tokenizer.json, only {' and '.join(found)}; convert it once with "
        f"transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)."
    )
