"""How few tokens a text can have: never more than it has, and useful where it says anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers

from octavo.engine.bundled import TARGET
from octavo.server.text.tokenizer import Tokenizer

from .vocabularies import FAMILIES, byte_level, sentencepiece, sentencepiece_first

BUNDLED = Tokenizer.from_folder(TARGET)


def changed(**parts: Any) -> Tokenizer:
    """byte_level() with other parts in its tokenizer.json."""
    return Tokenizer(json.dumps({**json.loads(byte_level()._description), **parts}))


def described(part: Any) -> Any:
    """A normalizer or pre-tokenizer as tokenizer.json has it."""
    library = tokenizers.Tokenizer(models.BPE())
    library.decoder = decoders.ByteLevel()
    kind = "normalizer" if isinstance(part, normalizers.Normalizer) else "pre_tokenizer"
    setattr(library, kind, part)
    return json.loads(library.to_str())[kind]


def bytewise_after(split: pre_tokenizers.PreTokenizer) -> Any:
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return described(pre_tokenizers.Sequence([split, bytewise]))


def swallowing() -> Tokenizer:
    added = json.loads(byte_level()._description)["added_tokens"]
    return changed(added_tokens=[{**token, "rstrip": True} for token in added])


ALL: list[Callable[[], Tokenizer]] = [
    *FAMILIES,
    lambda: BUNDLED,
    swallowing,
    lambda: changed(normalizer=described(normalizers.NFC())),
    lambda: changed(normalizer=described(normalizers.NFKC())),
    lambda: changed(normalizer=described(normalizers.Strip())),
    lambda: changed(normalizer=described(normalizers.Replace("aa", ""))),
    lambda: changed(pre_tokenizer=bytewise_after(pre_tokenizers.WhitespaceSplit())),
    lambda: changed(pre_tokenizer=bytewise_after(pre_tokenizers.Split("a", "removed"))),
]
TEXTS = st.lists(
    st.sampled_from(["once upon a time", " ", "aaaa", "  \n\n", "<s>", "é", "e\u0301", "狐", "ﬃ"])
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
).map("".join)


@pytest.mark.parametrize("number", range(len(ALL)))
@given(text=TEXTS)
def test_a_text_never_has_fewer_tokens(number: int, text: str) -> None:
    tokenizer = ALL[number]()
    for special in (False, True):
        ids = tokenizer.encode(text, add_special_tokens=False, parse_special=special)
        assert tokenizer.fewest_tokens(text) <= len(ids)


@pytest.mark.parametrize("family", [byte_level, sentencepiece, sentencepiece_first])
def test_a_long_text_is_known_to_be_long(family: Callable[[], Tokenizer]) -> None:
    tokenizer = family()
    longest = max(len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size))
    assert tokenizer.fewest_tokens("a" * 1000 * longest) == 1000
    assert tokenizer.fewest_tokens("") == 0


def test_the_bundled_model_and_its_like_are_known() -> None:
    assert BUNDLED.fewest_tokens("word " * 10_000) > 2_000
    qwen = changed(normalizer=described(normalizers.NFC()))
    assert qwen.fewest_tokens("word " * 10_000) == byte_level().fewest_tokens("word " * 10_000)


def test_white_space_that_a_token_takes_in_is_not_counted() -> None:
    assert swallowing().fewest_tokens("<s>" + " " * 100_000) == 1
