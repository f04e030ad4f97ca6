"""`--quantization`: the whole engine on rounded weights of the bundled model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import octavo.engine
from octavo import LLM, SamplingParams
from octavo.engine.errors import ConfigError
from octavo.engine.quantization.rounded import rounded_bytes
from octavo.engine.weights import load_model
from octavo.kernels.registry import resolve

PROMPTS = ["Once upon a time there was", "The old king had three sons, and", "A"]
PARAMS = SamplingParams(max_tokens=12, temperature=0, logprobs=1, ignore_eos=True)


def answers(quantization: str, prompts: list[str]) -> list[tuple[object, ...]]:
    with LLM(quantization=quantization, max_model_len=128, prefix_caching=False) as llm:
        return [output.outputs[0].logprobs for output in llm.generate(prompts, PARAMS)]


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_log_probabilities_are_the_same_bits_alone_and_in_company(quantization: str) -> None:
    together = answers(quantization, PROMPTS)
    assert together == [answers(quantization, [prompt])[0] for prompt in PROMPTS]
    assert together != answers("none", PROMPTS)


@pytest.mark.parametrize(
    "settings", [{"quantization": "fp8"}, {"kv_cache_dtype": "fp8"}], ids=["weights", "cache"]
)
def test_floats_of_8_bits_answer_nearly_as_wider_ones(settings: dict[str, str]) -> None:
    params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)

    def scores(**options: str) -> list[float]:
        with LLM(max_model_len=128, **options) as llm:  # type: ignore[arg-type]
            (output,) = llm.generate(PROMPTS[:1], params)
        return [one.logprob for one in (output.prompt_logprobs or ()) if one is not None]

    plain, rounded = scores(), scores(**settings)
    assert len(plain) == len(rounded) > 3
    assert plain != rounded
    assert max(abs(a - b) for a, b in zip(plain, rounded, strict=True)) < 1.0


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_what_the_memory_plan_counts_is_what_rounded_weights_take(quantization: str) -> None:
    """Of the bundled model's matrices, as they are packed; its norms come to nothing."""
    taken: list[int] = []

    def counted(pack: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any) -> Any:
            packed = pack(*arguments)
            taken.append(packed._packed.nbytes)
            return packed

        return counting

    ops = resolve(torch.device("cpu"))
    if not hasattr(ops.pack_quantized(torch.ones(2, 2), None, 8), "_packed"):
        pytest.skip("only our own kernels pack")
    ops = replace(
        ops, pack_linear=counted(ops.pack_linear), pack_quantized=counted(ops.pack_quantized)
    )
    model = load_model(
        Path(octavo.engine.__file__).parent / "bundled/target",
        dtype=torch.bfloat16,
        device=torch.device("cpu"),
        ops=ops,
        quantization=quantization,
    )
    assert model.config.tied_embeddings
    planned = rounded_bytes(model.weight_bytes, left=0, quantization=quantization, itemsize=2)
    assert sum(taken) == pytest.approx(planned, rel=0.01)


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ConfigError, match="int8"):
        answers("int3", PROMPTS)
