"""`octavo bench make-model`: a checkpoint of random weights in the shape of a known model, with a
tokenizer, that any server can load: speed does not depend on what a model has learned."""

from __future__ import annotations

import argparse
import json
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .shapes import SHAPES, Shape
from .vocabulary import CHAT_TEMPLATE, FIRST_LETTERS, tokenizer_config, tokenizer_json

_SPREAD = 0.02  # the standard deviation that transformers initialises weights with
_BYTES = 2  # of one bfloat16


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="octavo bench make-model", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("folder", type=Path, help="where the files go; made if it is not there")
    chosen = parser.parse_args(words)
    make_model(SHAPES[chosen.shape], chosen.folder, seed=chosen.seed)
    millions = SHAPES[chosen.shape].parameters / 1e6
    sys.stdout.write(f"{chosen.folder}: {millions:.1f} million random parameters, bfloat16\n")
    return 0


def make_model(shape: Shape, folder: Path, *, seed: int = 0) -> None:
    """Write the files of a checkpoint. The same seed writes the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, dict[str, object]] = {
        "config.json": shape.config(),
        "generation_config.json": {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2},
        "tokenizer.json": tokenizer_json(shape.vocab),
        "tokenizer_config.json": tokenizer_config(shape.max_positions),
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), "utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, "utf-8")
    _write_weights(shape, folder / "model.safetensors", seed)


def _write_weights(shape: Shape, path: Path, seed: int) -> None:
    """The safetensors format: length of the header, header, tensors; one at a time in memory."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, size in shape.tensors():
        begin, end = end, end + int(np.prod(size)) * _BYTES
        header[name] = {"dtype": "BF16", "shape": size, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    draw = np.random.default_rng(seed)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, size in shape.tensors():
            file.write(_bfloat16(_weights(draw, name, size)).tobytes())


def _weights(
    draw: np.random.Generator, name: str, size: tuple[int, ...]
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    if len(size) == 1:  # a norm
        return np.ones(size, dtype=np.float32)
    weights = draw.standard_normal(size, dtype=np.float32) * np.float32(_SPREAD)
    if name == "model.embed_tokens.weight":
        # It is the last layer, too: special tokens and lone bytes get logits near zero, which
        # are never the highest. So greedy answers neither end early nor hold broken characters.
        weights[:FIRST_LETTERS] *= 0.01
    return weights


def _bfloat16(
    values: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint16]]:
    """The upper half of each float32, rounded to nearest even."""
    bits = values.view(np.uint32)
    bits = bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    return (bits >> np.uint32(16)).astype(np.uint16)
