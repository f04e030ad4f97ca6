"""What bfloat16 costs: log-probabilities against those of float32, computed by the reference."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from octavo import LLM, SamplingParams
from octavo.engine.bundled import TARGET
from octavo.kernels.cpu.library import levels

PASSAGES = json.loads((TARGET.parent / "eval.json").read_text("utf-8"))["passages"]
WRITTEN = 96  # tokens of a greedy answer

Answer = tuple[int, ...]
"""Ids of a prompt and of what float32 answers to it greedily."""


def log_probabilities(
    texts: list[str] | list[Answer], dtype: str, cpu_kernels: str
) -> list[Tensor]:
    """Of every token of each text but the first."""
    asked = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
    with LLM(dtype=dtype, cpu_kernels=cpu_kernels, prefix_caching=False) as llm:
        outputs = llm.generate(texts, asked)
    return [torch.tensor([token.logprob for token in out.prompt_logprobs]) for out in outputs]


@pytest.fixture(scope="module")
def answers() -> list[Answer]:
    asked = SamplingParams(max_tokens=WRITTEN, temperature=0, ignore_eos=True)
    with LLM(dtype="float32", cpu_kernels="reference") as llm:
        outputs = llm.generate([passage["text"][:200] for passage in PASSAGES], asked)
    return [(*out.prompt_token_ids, *out.outputs[0].token_ids) for out in outputs]


def of_answers(answers: list[Answer], dtype: str, cpu_kernels: str) -> Tensor:
    return torch.cat([text[-WRITTEN:] for text in log_probabilities(answers, dtype, cpu_kernels)])


def of_passages(dtype: str, cpu_kernels: str) -> Tensor:
    return torch.cat(log_probabilities([p["text"] for p in PASSAGES[:2]], dtype, cpu_kernels))


@pytest.fixture(scope="module")
def exact_answers(answers: list[Answer]) -> Tensor:
    return of_answers(answers, "float32", "reference")


@pytest.fixture(scope="module")
def exact_passages() -> Tensor:
    return of_passages("float32", "reference")


@pytest.mark.parametrize("level", levels())
def test_bfloat16_stays_near_float32_in_what_is_written(
    answers: list[Answer], exact_answers: Tensor, level: str
) -> None:
    """Every greedy token within 2e-2, 99 of 100 within 1.2e-2, and 2.2e-3 on average."""
    error = (of_answers(answers, "bfloat16", level) - exact_answers).abs()
    assert len(error) == 8 * WRITTEN
    assert error.mean() < 2.2e-3
    assert error.quantile(0.99) < 1.2e-2
    assert error.max() < 2e-2


@pytest.mark.parametrize("level", levels())
def test_bfloat16_stays_near_float32_in_what_is_read(exact_passages: Tensor, level: str) -> None:
    """Of others' words, some of them unlikely, 98 of 100 within 2e-2, and all within 4e-2."""
    error = (of_passages("bfloat16", level) - exact_passages).abs()
    assert len(error) > 400
    assert error.mean() < 5e-3
    assert error.quantile(0.98) < 2e-2
    assert error.max() < 4e-2


@pytest.mark.parametrize("level", levels())
def test_float32_kernels_agree_with_the_reference(exact_passages: Tensor, level: str) -> None:
    torch.testing.assert_close(of_passages("float32", level), exact_passages, atol=1e-4, rtol=0)
