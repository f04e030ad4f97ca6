"""Checkpoints of random weights: readable by others, never silent, never ending early."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from octavo.engine.params import SamplingParams
from octavo.loadtest.make_model import make_model
from octavo.loadtest.shapes import SHAPES
from octavo.loadtest.vocabulary import FIRST_LETTERS, SPECIAL, tokenizer_json
from octavo.server.offline import LLM


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model")
    make_model(SHAPES["tiny"], made)
    return made


@pytest.mark.parametrize(
    ("shape", "millions"), [("110m", 100.1), ("0.6b", 596.0), ("15m", 7.2), ("bundled", 11.0)]
)
def test_shapes_have_the_parameters_they_are_known_by(shape: str, millions: float) -> None:
    assert SHAPES[shape].parameters / 1e6 == pytest.approx(millions, abs=0.06)


def test_the_weights_are_what_the_config_says(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    assert {name: tuple(t.shape) for name, t in tensors.items()} == dict(SHAPES["tiny"].tensors())
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    projection = tensors["model.layers.0.mlp.up_proj.weight"].float()
    assert projection.std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.all(tensors["model.norm.weight"] == 1)


def test_the_same_seed_writes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    make_model(SHAPES["tiny"], tmp_path)
    again, other = tmp_path / "model.safetensors", tmp_path / "other"
    assert again.read_bytes() == (folder / "model.safetensors").read_bytes()
    make_model(SHAPES["tiny"], other, seed=1)
    assert again.read_bytes() != (other / "model.safetensors").read_bytes()


@pytest.mark.parametrize("size", [SHAPES["15m"].vocab, SHAPES["110m"].vocab])
def test_the_tokenizer_fills_its_vocabulary_and_gives_every_text_back(size: int) -> None:
    tokenizer = Tokenizer.from_str(json.dumps(tokenizer_json(size)))
    assert tokenizer.get_vocab_size() == size
    assert [tokenizer.token_to_id(token) for token in SPECIAL] == [0, 1, 2]
    for text in ("The quick brown fox, 42 times.", "Größe 東京 🚀", " spaces  and\n\nlines"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    for token in range(FIRST_LETTERS, size, 97):
        assert tokenizer.decode([token]).isascii()
    assert len(tokenizer.encode("there").ids) < 5


def test_a_vocabulary_that_is_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="needs 259 tokens"):
        tokenizer_json(100)


def test_octavo_answers_from_it_with_text_and_to_the_end(folder: Path) -> None:
    with LLM(str(folder), kv_memory=1 << 24, max_model_len=128) as llm:
        params = SamplingParams(max_tokens=20, temperature=0.0, logprobs=1)
        (answer,) = llm.generate([[300, 301, 302, 900]], params)
    (output,) = answer.outputs
    assert (output.finish_reason, len(output.token_ids)) == ("length", 20)
    assert min(output.token_ids) >= FIRST_LETTERS
    assert output.text.isascii()


def test_transformers_can_load_it(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer("hello there").input_ids])).logits
    assert torch.isfinite(logits).all()
    talk = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(talk, tokenize=False) == "user: hi\n"
