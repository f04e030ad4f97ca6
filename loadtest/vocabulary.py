"""A byte-level BPE of any size, for checkpoints of random weights.

Three special tokens, then the 256 bytes, then strings of letters in the order of their length,
each made of the string before its last letter and that letter. Every token from FIRST_LETTERS on
is plain ASCII, so that whatever such a model says is text at once: no token waits for the rest of
a character.
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterator

SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|pad|>")
FIRST_LETTERS = len(SPECIAL) + 256
CHAT_TEMPLATE = (
    "{%- for message in messages %}{{ message.role + ': ' + message.content + '\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ 'assistant:' }}{%- endif %}"
)


def tokenizer_json(size: int) -> dict[str, object]:
    """The content of tokenizer.json for a vocabulary of `size` tokens."""
    if size < FIRST_LETTERS:
        raise ValueError(f"a byte-level vocabulary needs {FIRST_LETTERS} tokens, not {size}")
    letters = list(itertools.islice(_letter_strings(), size - FIRST_LETTERS))
    tokens = [*SPECIAL, *_byte_characters(), *letters]
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for number, token in enumerate(SPECIAL)
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [[token[:-1], token[-1]] for token in letters],
        },
    }


def tokenizer_config(longest: int) -> dict[str, object]:
    """The content of tokenizer_config.json; `longest` is the context in tokens."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "add_eos_token": False,
        "bos_token": SPECIAL[0],
        "eos_token": SPECIAL[1],
        "pad_token": SPECIAL[2],
        "clean_up_tokenization_spaces": False,
        "model_max_length": longest,
        "chat_template": CHAT_TEMPLATE,
    }


def _byte_characters() -> Iterator[str]:
    """GPT-2's printable stand-in of each byte, in the order of the bytes."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    stand_ins = itertools.count(256)
    for byte in range(256):
        yield chr(byte if byte in printable else next(stand_ins))


def _letter_strings() -> Iterator[str]:
    """ab, ac ... and, where a word begins, Ġa (a space and an a), shorter ones first."""
    for length in itertools.count(2):
        first_letters = ("Ġ", *string.ascii_lowercase)
        rest = [string.ascii_lowercase] * (length - 1)
        yield from map("".join, itertools.product(first_letters, *rest))
