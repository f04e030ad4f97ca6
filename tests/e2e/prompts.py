"""Prompts for tests, made from a seed: half are simple English, half are random token ids."""

from __future__ import annotations

import random
from pathlib import Path

from tokenizers import Tokenizer

_WORDS = (
    "the a little old king queen fox bear house garden river bird went came said saw found gave "
    "took ran sat loved and but then so when who very happy sad big small golden upon time once "
    "there was were his her their mother father child night day wood tree stone bread apple"
).split()


def english(draw: random.Random, words: int) -> str:
    """Sentences of common words, about a dozen words each."""
    text: list[str] = []
    while len(text) < words:
        sentence = [draw.choice(_WORDS) for _ in range(draw.randint(5, 18))]
        text += [sentence[0].capitalize(), *sentence[1:-1], sentence[-1] + "."]
    return " ".join(text[:words])


def mixed_prompts(folder: Path, *, count: int, longest: int, seed: int) -> list[list[int]]:
    """`count` prompts of 1 .. `longest` tokens for the tokenizer in `folder`; both ends occur."""
    draw = random.Random(seed)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    vocabulary = tokenizer.get_vocab_size()
    prompts = []
    for number in range(count):
        length = (1, longest)[number] if number < 2 else draw.randint(1, longest)
        if number % 2 == 0:
            ids = tokenizer.encode(english(draw, length), add_special_tokens=False).ids[:length]
        else:
            ids = [draw.randrange(16, vocabulary) for _ in range(length)]
        prompts.append(ids)
    return prompts
