"""`Alphabet`: how a vocabulary writes bytes as token names.

Two families matter for language models. Byte-level BPE (GPT-2 and most after it) writes each byte
as one printable character. Sentencepiece vocabularies write text as it is, a space as U+2581, and
bytes without a token of their own as `<0x0A>`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from octavo.engine.errors import BrokenCheckpoint

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class _Family(Enum):
    BYTE_LEVEL = auto()
    SENTENCEPIECE = auto()


@dataclass(frozen=True, slots=True)
class Alphabet:
    """`leading_space`: the first token's space marks a text's beginning and is not text."""

    family: _Family
    leading_space: bool
    byte_tokens: bool = False

    @classmethod
    def of(cls, description: Mapping[str, Any]) -> Alphabet:
        """From a parsed tokenizer.json.

        Raises:
            BrokenCheckpoint: the decoder is of another family.
        """
        steps = list(_decoder_steps(description.get("decoder")))
        kinds = {step.get("type") for step in steps}
        if "ByteLevel" in kinds:
            return cls(_Family.BYTE_LEVEL, leading_space=False)
        if kinds & {"ByteFallback", "Metaspace", "Replace"} and kinds <= _SENTENCEPIECE_STEPS:
            model = description.get("model", {})
            return cls(
                _Family.SENTENCEPIECE,
                leading_space=any(_strips_leading_space(step) for step in steps),
                byte_tokens="ByteFallback" in kinds or bool(model.get("byte_fallback")),
            )
        named = f"a decoder of type {'+'.join(sorted(map(str, kinds)))}" if kinds else "no decoder"
        raise BrokenCheckpoint(
            f"tokenizer.json has {named}, which octavo does not read; it reads "
            f"byte-level BPE and sentencepiece (byte fallback) decoders."
        )

    def token_bytes(self, token: str) -> bytes:
        """The bytes that a token's name stands for."""
        match self.family:
            case _Family.BYTE_LEVEL:
                try:
                    return bytes(_BYTE_OF[c] for c in token)
                except KeyError:  # a name outside the alphabet is what it says
                    return token.encode()
            case _Family.SENTENCEPIECE:
                if self.byte_tokens and (byte := _BYTE.fullmatch(token)):
                    return bytes((int(byte[1], 16),))
                return token.replace(_SPACE, " ").encode()


_SENTENCEPIECE_STEPS = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}


def _decoder_steps(decoder: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    if decoder is None:
        return
    if decoder.get("type") == "Sequence":
        for step in decoder["decoders"]:
            yield from _decoder_steps(step)
    else:
        yield decoder


def _strips_leading_space(step: Mapping[str, Any]) -> bool:
    if step.get("type") == "Metaspace":
        return bool(step.get("prepend_scheme", "always") != "never")
    return step.get("type") == "Strip" and bool(step.get("start"))


def _byte_characters() -> dict[str, int]:
    """GPT-2's printable character of each byte: itself where printable, else from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    table.update({chr(0x100 + place): byte for place, byte in enumerate(others)})
    return table


_BYTE_OF = _byte_characters()
