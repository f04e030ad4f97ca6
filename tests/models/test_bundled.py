"""The shipped pair is what its card and `eval.json` say, by the measure of `transformers`."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from octavo.engine.bundled import DRAFT, TARGET

FOLDER = TARGET.parent
PAIR = {"target": TARGET, "draft": DRAFT}
SIZE_LIMIT = 25_000_000  # bytes

FIGURES: dict[str, Any] = json.loads((FOLDER / "eval.json").read_text("utf-8"))


def tool(name: str) -> ModuleType:
    """A module of the training script, which is no part of the package."""
    path = Path(__file__).parents[2] / "tools" / "bundled" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"tools_bundled_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", PAIR)
@torch.no_grad()
def test_losses_on_the_held_out_passages(name: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(PAIR[name], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(TARGET)
    for passage in FIGURES["passages"]:
        ids = tokenizer(passage["text"], return_tensors="pt").input_ids
        assert ids.shape[1] == passage["tokens"]
        loss = model(ids, labels=ids).loss.item()
        assert loss == pytest.approx(passage["loss"][name], abs=2e-3)


def test_the_template_renders_the_form_of_training() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TARGET)
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello!"},
    ]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == (
        "<|begin_of_text|><|im_start|>system\nBe kind.<|im_end|>\n"
        "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = tokenizer(rendered, add_special_tokens=False).input_ids
    assert ids[:2] == [0, 2] and ids.count(3) == 2


def test_plain_text_begins_with_the_begin_token() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TARGET)
    assert tokenizer("Once").input_ids == [
        0,
        *tokenizer("Once", add_special_tokens=False).input_ids,
    ]


def test_both_share_a_tokenizer_and_their_ends() -> None:
    assert (DRAFT / "tokenizer.json").read_bytes() == (TARGET / "tokenizer.json").read_bytes()
    for folder in PAIR.values():
        config = json.loads((folder / "config.json").read_text("utf-8"))
        generation = json.loads((folder / "generation_config.json").read_text("utf-8"))
        assert config["eos_token_id"] == generation["eos_token_id"] == [1, 3]
        assert config["vocab_size"] == 4096


def test_the_pair_is_small() -> None:
    assert sum(p.stat().st_size for p in FOLDER.rglob("*") if p.is_file()) <= SIZE_LIMIT


def test_the_card_shows_the_measured_figures() -> None:
    assert tool("card").written(FIGURES) in (FOLDER / "README.md").read_text("utf-8")


def test_the_draft_is_worth_its_time() -> None:
    for stream in FIGURES["agreement"].values():
        assert stream["greedy"] > 0.35
