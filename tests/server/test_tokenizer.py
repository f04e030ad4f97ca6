"""Tokenizer: exact bytes, text that stays text, plain words about what cannot be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
import transformers
from hypothesis import given
from hypothesis import strategies as st

from octavo.engine.bundled import TARGET
from octavo.engine.errors import BrokenCheckpoint
from octavo.server.text.tokenizer import Tokenizer

from .vocabularies import FAMILIES, SPECIAL, byte_level, sentencepiece, sentencepiece_first, unigram

Family = Callable[[], Tokenizer]
# U+2581 is what sentencepiece writes for a space: it does not come back.
TEXTS = st.text(st.characters(exclude_characters="▁", exclude_categories=["Cs"]))
HOSTILE = st.lists(
    st.sampled_from([*SPECIAL, "<|", "im_end", "|>", "</", "s>", " the", "é", "\n", "狐"])
).map("".join)
every_family = pytest.mark.parametrize("family", FAMILIES)


def survives(family: Family, text: str) -> str:
    """Metaspace does not tell a first space from the one it puts in front itself."""
    return text.removeprefix(" ") if family in (sentencepiece_first, unigram) else text


@every_family
@given(text=TEXTS)
def test_text_comes_back_from_its_ids(family: Family, text: str) -> None:
    tokenizer = family()
    assert tokenizer.decode(tokenizer.encode(text)) == survives(family, text)


@every_family
@given(text=TEXTS)
def test_decoding_is_what_the_library_makes_of_it(family: Family, text: str) -> None:
    tokenizer = family()
    library = tokenizers.Tokenizer.from_str(tokenizer._description)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == library.decode(ids)


@every_family
@given(
    pieces=st.lists(st.sampled_from([*SPECIAL, "<ordinary>"]) | TEXTS, max_size=5),
    skip=st.booleans(),
)
def test_as_in_transformers_no_space_is_put_between_special_tokens_whatever_is_asked_for(
    family: Family, pieces: list[str], skip: bool
) -> None:
    library = tokenizers.Tokenizer.from_str(family()._description)
    library.add_tokens([tokenizers.AddedToken("<ordinary>", normalized=False)])
    tokenizer = Tokenizer(library.to_str())
    reference = transformers.PreTrainedTokenizerFast(tokenizer_object=library)
    ids = library.encode("".join(pieces), add_special_tokens=False).ids
    texts = {
        reference.decode(
            ids,
            skip_special_tokens=skip,
            spaces_between_special_tokens=spaces,
            clean_up_tokenization_spaces=False,
        )
        for spaces in (False, True)
    }
    assert texts == {tokenizer.decode(ids, skip_special_tokens=skip)}


@given(text=TEXTS)
def test_bytes_of_the_tokens_are_the_bytes_of_the_text(text: str) -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()


@every_family
@given(text=HOSTILE)
def test_control_tokens_in_text_stay_text_unless_asked_for(family: Family, text: str) -> None:
    tokenizer = family()
    library = tokenizers.Tokenizer.from_str(tokenizer._description)
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert not tokenizer.special_ids & set(ids)
    assert tokenizer.decode(ids) == survives(family, text)
    assert tokenizer.encode(text, parse_special=True) == library.encode(text).ids


@every_family
@given(pieces=st.lists(st.tuples(st.sampled_from(["", *SPECIAL]), TEXTS), max_size=4))
def test_marked_text_without_look_alikes_is_encoded_as_the_library_does(
    family: Family, pieces: list[tuple[str, str]]
) -> None:
    tokenizer = family()
    text = "".join(control + words for control, words in pieces)
    library = tokenizers.Tokenizer.from_str(tokenizer._description)
    mark = "\ufdd0"
    if mark not in text:
        expected = library.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode_marked(text, mark=mark) == expected


@every_family
@given(words=st.lists(HOSTILE, min_size=1, max_size=4))
def test_a_mark_keeps_words_from_becoming_control_tokens_even_side_by_side(
    family: Family, words: list[str]
) -> None:
    tokenizer = family()
    text = "<s>" + "".join(tokenizer.marked(word, mark="\ufdd0") for word in words)
    ids = tokenizer.encode_marked(text, mark="\ufdd0")
    assert [i for i in ids if i in tokenizer.special_ids] == [tokenizer.bos_token_id]
    assert tokenizer.decode(ids, continuation="".join(words)[:1] == " ").lstrip(" ") == (
        "".join(words).lstrip(" ")
    )


def test_a_token_may_swallow_the_space_beside_it() -> None:
    parsed = json.loads(byte_level()._description)
    for token in parsed["added_tokens"]:
        token["rstrip"] = True
    tokenizer = Tokenizer(json.dumps(parsed))
    library = tokenizers.Tokenizer.from_str(json.dumps(parsed))
    text = "<|im_start|> \n once<|im_end|> "
    assert tokenizer.encode_marked(text, mark="\ufdd0") == (
        library.encode(text, add_special_tokens=False).ids
    )


def test_a_continuation_keeps_the_space_that_marks_a_beginning() -> None:
    for family in (sentencepiece, sentencepiece_first):
        tokenizer = family()
        ids = tokenizer.encode("the", add_special_tokens=False)
        assert tokenizer.decode(ids) == "the"
        assert tokenizer.decode(ids, continuation=True) == " the"


def test_special_tokens_are_skipped_or_shown() -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("a<|im_end|>b", parse_special=True)
    assert tokenizer.decode(ids) == "ab"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<s>a<|im_end|>b"


def test_named_tokens_and_sizes() -> None:
    tokenizer = byte_level()
    assert tokenizer.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1)
    size = tokenizer.vocab_size
    assert size == tokenizers.Tokenizer.from_str(tokenizer._description).get_vocab_size()
    assert tokenizer.token_bytes(size) == tokenizer.token_bytes(-1) == b""
    assert tokenizer.token_text(0) == "<s>"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "no other tokenizer file"),
        ({"tokenizer.model": "x"}, "only tokenizer.model; convert it once"),
        ({"tokenizer.json": "{"}, "cannot be read"),
        ({"tokenizer.json": byte_level()._description, "tokenizer_config.json": "["}, "not valid"),
        ({"tokenizer.json": byte_level()._description, "tokenizer_config.json": "[]"}, "a list"),
    ],
)
def test_what_cannot_be_read_is_said_in_words(
    tmp_path: Path, files: dict[str, str], words: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(BrokenCheckpoint, match=words):
        Tokenizer.from_folder(tmp_path)


def test_a_decoder_of_another_family_is_refused_by_name() -> None:
    parsed = json.loads(byte_level()._description)
    parsed["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    with pytest.raises(BrokenCheckpoint, match="a decoder of type WordPiece"):
        Tokenizer(json.dumps(parsed))
    with pytest.raises(BrokenCheckpoint, match="no decoder"):
        Tokenizer(json.dumps({**parsed, "decoder": None}))


def test_the_bundled_tokenizer_frames_prompts_as_its_config_says() -> None:
    tokenizer = Tokenizer.from_folder(TARGET)
    assert tokenizer.encode("Once")[0] == tokenizer.bos_token_id
    assert tokenizer.decode(tokenizer.encode("Once upon a time")) == "Once upon a time"


@given(
    names=st.sets(st.text("<|a>", min_size=1, max_size=4), min_size=1, max_size=6),
    text=st.text("<|a> ", max_size=20),
)
def test_control_tokens_are_found_as_the_library_finds_them(names: set[str], text: str) -> None:
    library = tokenizers.Tokenizer.from_str(byte_level()._description)
    library.add_special_tokens(sorted(names))
    tokenizer = Tokenizer(library.to_str())
    expected = library.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode_marked(text, mark="\ufdd0") == expected


def test_many_control_tokens_cost_no_more_than_few() -> None:
    """A reserved token is no rarity; a text that nearly names them all the time is an attack."""
    library = tokenizers.Tokenizer.from_str(byte_level()._description)
    library.add_special_tokens([f"<|reserved_special_token_{i}|>" for i in range(1000)])
    tokenizer = Tokenizer(library.to_str())
    text = "<|reserved_special_token_9" * 50_000
    assert tokenizer.marked(text, mark="\ufdd0") == text + "\ufdd0"
