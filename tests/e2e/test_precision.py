"""What bfloat16 costs: log-probabilities against those of float32, computed by the reference."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from octavo import LLM, SamplingParams
from octavo.engine.bundled import TARGET
from octavo.kernels.cpu.library import levels

PASSAGES = json.loads((TARGET.parent / "eval.json").read_text("utf-8"))["passages"][:2]


def log_probabilities(dtype: str, cpu_kernels: str) -> Tensor:
    """Of every token of held-out passages but the first."""
    asked = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
    with LLM(dtype=dtype, cpu_kernels=cpu_kernels, prefix_caching=False) as llm:
        outputs = llm.generate([passage["text"] for passage in PASSAGES], asked)
    return torch.tensor([token.logprob for output in outputs for token in output.prompt_logprobs])


@pytest.fixture(scope="module")
def exact() -> Tensor:
    return log_probabilities("float32", "reference")


@pytest.mark.parametrize("level", levels())
def test_bfloat16_stays_near_float32(exact: Tensor, level: str) -> None:
    """Nineteen of twenty within 2e-2, all within 8e-2, and 1e-2 on average."""
    error = (log_probabilities("bfloat16", level) - exact).abs()
    assert len(error) > 400
    assert error.mean() < 1e-2
    assert error.quantile(0.95) < 2e-2
    assert error.max() < 8e-2


@pytest.mark.parametrize("level", levels())
def test_float32_kernels_agree_with_the_reference(exact: Tensor, level: str) -> None:
    torch.testing.assert_close(log_probabilities("float32", level), exact, atol=1e-4, rtol=0)
