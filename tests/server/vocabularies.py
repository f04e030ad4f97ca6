"""Small tokenizers of the families that checkpoints come with, built on the spot."""

from __future__ import annotations

from functools import cache

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from octavo.server.text.tokenizer import Tokenizer

SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
CONFIG = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}
CORPUS = ["once upon a time there was a naïve fox, 狐狸, who said: “hello”. \n\n\n 1 2 3"] * 3


@cache
def byte_level() -> Tokenizer:
    """As GPT-2, Llama 3, Qwen: each byte is one printable character."""
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=340,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return _finished(library)


@cache
def sentencepiece() -> Tokenizer:
    """As Llama 2: U+2581 for a space, also put in front of every text; other bytes as <0x0A>."""
    library = tokenizers.Tokenizer(_sentencepiece_model())
    library.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    library.decoder = _sentencepiece_decoder()
    return _finished(library)


@cache
def sentencepiece_first() -> Tokenizer:
    """As Mistral: the space in front is put at the start of the text only, not after BOS."""
    library = tokenizers.Tokenizer(_sentencepiece_model())
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    library.decoder = _sentencepiece_decoder()
    return _finished(library)


@cache
def unigram() -> Tokenizer:
    """As T5 and XLM-R, with bytes for what has no piece: scored pieces and a Metaspace decoder."""
    pieces = [("<unk>", 0.0), *((token, 0.0) for token in SPECIAL)]
    pieces += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    pieces += [(c, -6.0) for c in ("▁", *"abcdefghijklmnopqrstuvwxyz", "é")]
    pieces += [(word, -2.0) for word in ("▁t", "▁th", "in", "▁▁", "er", "an")]
    library = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    library.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")]
    )
    return _finished(library)


FAMILIES = [byte_level, sentencepiece, sentencepiece_first, unigram]


def _sentencepiece_model() -> models.BPE:
    merges = [("▁", "t"), ("▁t", "h"), ("i", "n"), ("▁", "▁"), ("e", "r"), ("a", "n")]
    tokens = ["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += ["▁", *"abcdefghijklmnopqrstuvwxyz", "é", *("".join(merge) for merge in merges)]
    vocabulary = {token: place for place, token in enumerate(tokens)}
    return models.BPE(
        vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )


def _sentencepiece_decoder() -> decoders.Decoder:
    return decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )


def _finished(library: tokenizers.Tokenizer) -> Tokenizer:
    library.add_special_tokens(SPECIAL)
    library.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", library.token_to_id("<s>"))]
    )
    return Tokenizer(library.to_str(), CONFIG)
