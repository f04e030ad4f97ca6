"""Detokenizer: whole characters only, and joined it is the plain decoding."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.server.text.detokenizer import Detokenizer
from octavo.server.text.tokenizer import Tokenizer

from .vocabularies import FAMILIES, byte_level, sentencepiece

Family = Callable[[], Tokenizer]
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
every_family = pytest.mark.parametrize("family", FAMILIES)


def byte_tokens(tokenizer: Tokenizer) -> dict[int, int]:
    """byte -> the token that stands for this byte alone."""
    found = {}
    for token_id in range(tokenizer.vocab_size):
        token = tokenizer.token_bytes(token_id)
        if len(token) == 1:
            found.setdefault(token[0], token_id)
    return found


@every_family
@given(data=st.data(), skip=st.booleans())
def test_any_tokens_joined_are_the_plain_decoding(
    family: Family, data: st.DataObject, skip: bool
) -> None:
    tokenizer = family()
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1)))
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip)
    joined = "".join(map(detokenizer.feed, ids)) + detokenizer.finish()
    assert joined == tokenizer.decode(ids, skip_special_tokens=skip, continuation=True)


@pytest.mark.parametrize("family", [byte_level, sentencepiece])
@given(text=TEXTS)
def test_a_character_comes_out_with_its_last_byte_and_not_before(family: Family, text: str) -> None:
    tokenizer = family()
    of_byte = byte_tokens(tokenizer)
    detokenizer = Detokenizer(tokenizer)
    for character in text:
        *early, last = (of_byte[byte] for byte in character.encode())
        for token_id in early:
            assert detokenizer.feed(token_id) == ""
            assert detokenizer.holds_back
        assert detokenizer.feed(last) == character
        assert not detokenizer.holds_back
    assert detokenizer.finish() == ""


def test_an_unfinished_character_becomes_a_replacement_at_the_end() -> None:
    tokenizer = byte_level()
    of_byte = byte_tokens(tokenizer)
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.feed(of_byte[byte]) for byte in "狐".encode()[:2]] == ["", ""]
    assert detokenizer.finish() == "\ufffd"


def test_special_tokens_between_two_halves_of_a_character_do_no_harm() -> None:
    tokenizer = byte_level()
    of_byte = byte_tokens(tokenizer)
    first, second = (of_byte[byte] for byte in "é".encode())
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.feed(i) for i in (first, 3, second)] == ["", "", "é"]
