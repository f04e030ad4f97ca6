"""Embeddings through the clients that ask for them, each in its own way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from octavo.engine.bundled import TARGET
from octavo.engine.checkpoint import read_model_config

from ..e2e.daemon import Daemon
from .running import OURS, THEIRS, outcomes

pytestmark = pytest.mark.slow

SIZE = read_model_config(TARGET).hidden_size
TEXTS = ["The fox ran.", "A king and his daughter."]  # those of scripts/openai_embeddings.py


@pytest.mark.parametrize("python", [OURS, THEIRS], ids=["newest", "pinned"])
def test_the_openai_package(daemon: Daemon, python: Path) -> None:
    result = outcomes(python, "openai_embeddings.py", daemon.url)["embeddings"]
    assert result["indexes"] == [0, 1]
    assert result["ids_usage"]["prompt_tokens"] == result["ids_usage"]["total_tokens"] == 5
    assert result["ids"] == [SIZE, SIZE]
    for default, floats, encoded, text in zip(
        result["default"], result["floats"], result["base64"], TEXTS, strict=True
    ):
        assert default == pytest.approx(floats, abs=1e-6)
        assert encoded == pytest.approx(floats, abs=1e-6)
        assert floats == pytest.approx(reference(text), abs=1e-4)
    assert result["default"][0] != result["default"][1]


def test_langchain(daemon: Daemon) -> None:
    sizes = outcomes(THEIRS, "langchain_client.py", daemon.url, "embeddings")["embeddings"]
    assert sizes == [SIZE] * 4


def test_litellm(daemon: Daemon) -> None:
    sizes = outcomes(THEIRS, "litellm_client.py", daemon.url, "embeddings")["embeddings"]
    assert sizes == [SIZE] * 2


@torch.inference_mode()
def reference(text: str) -> list[float]:
    """transformers: the mean of the last hidden states, of length 1."""
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(TARGET)
    model = AutoModel.from_pretrained(TARGET, dtype=torch.float32)
    hidden = model(torch.tensor([tokenizer(text).input_ids])).last_hidden_state[0]
    vector: list[float] = torch.nn.functional.normalize(hidden.mean(0), dim=0).tolist()
    return vector
