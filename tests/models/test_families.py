"""Every family computes what transformers computes, whole, in chunks, and in a crowd."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from octavo.engine.models.base import Model
from octavo.engine.weights import load_model

from .checkpoints import Family, edit_config, logits_of, write_checkpoint
from .stepping import CPU, Stepper

TOLERANCE = 1e-4  # of logits, absolute


def rope(kind: str, **numbers: object) -> dict[str, object]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 5000.0, **numbers}}


LONGROPE = {
    "short_factor": [1.0 + i / 8 for i in range(4)],
    "long_factor": [2.0 + i for i in range(4)],
    "original_max_position_embeddings": 32,
}
ROPES = {
    "default": rope("default"),
    "linear": rope("linear", factor=4.0),
    "dynamic": rope("dynamic", factor=4.0),
    "llama3": rope(
        "llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=64,
    ),
    "yarn": rope("yarn", factor=4.0, original_max_position_embeddings=32),
    "yarn, all its numbers": rope(
        "yarn",
        factor=4.0,
        original_max_position_embeddings=32,
        beta_fast=16,
        beta_slow=2,
        mscale=1.3,
        mscale_all_dim=0.7,
        truncate=False,
    ),
    "yarn, attention factor": rope(
        "yarn", factor=2.0, original_max_position_embeddings=64, attention_factor=1.2
    ),
    "longrope": rope("longrope", factor=4.0, **LONGROPE),
    "longrope by its lengths": rope("longrope", **LONGROPE),
}
SHAPES = {
    "llama": Family("llama"),
    "llama, tied": Family("llama", {"tie_word_embeddings": True}),
    "llama, biases": Family("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, wide heads": Family("llama", {"head_dim": 24}),
    "llama, one kv head": Family("llama", {"num_key_value_heads": 1}),
    "llama, all kv heads": Family("llama", {"num_key_value_heads": 6}),
    "llama, sharded": Family("llama", shard_size="40KB"),
    "mistral": Family("mistral", {"sliding_window": None}),
    "mistral, window": Family("mistral", {"sliding_window": 11, "head_dim": 16}),
    "qwen2": Family("qwen2", {"tie_word_embeddings": True}),
    "qwen2, late windows": Family(
        "qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}
    ),
    "qwen2, unused window": Family("qwen2", {"use_sliding_window": False, "sliding_window": 9}),
    "qwen2, layer types": Family(
        "qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 9,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
    ),
    "qwen3": Family("qwen3", {"head_dim": 16}),
    "qwen3, tied, sharded": Family(
        "qwen3", {"head_dim": 16, "tie_word_embeddings": True}, shard_size="40KB"
    ),
    "qwen3, biases, late windows": Family(
        "qwen3",
        {
            "head_dim": 16,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 9,
            "max_window_layers": 2,
        },
    ),
}


def prompt(length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 97, (length,), generator=torch.Generator().manual_seed(seed))


def load(folder: Path) -> Model:
    return load_model(folder, dtype=torch.float32, device=CPU)


def assert_near(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)


def assert_same_model(ours: Model, expected: Tensor, token_ids: Tensor) -> None:
    """Whole, and as chunks, a draft of three and single tokens."""
    length = len(token_ids)
    (whole,) = Stepper(ours, [token_ids]).step({0: length})
    assert_near(whole, expected)
    stepper = Stepper(ours, [token_ids])
    parts = [stepper.step({0: count})[0] for count in (1, 18, length - 30, 3, *(1,) * 8)]
    assert_near(torch.cat(parts), expected)


@pytest.mark.parametrize("family", SHAPES.values(), ids=SHAPES.keys())
def test_a_family_is_what_transformers_computes(family: Family, tmp_path: Path) -> None:
    theirs = write_checkpoint(family, tmp_path)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (family.shard_size != "5GB")
    token_ids = prompt(60)
    assert_same_model(load(tmp_path), logits_of(theirs, token_ids), token_ids)


@pytest.mark.parametrize("spelling", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("parameters", ROPES.values(), ids=ROPES.keys())
def test_every_kind_of_rope_scaling_in_both_spellings(
    parameters: dict[str, dict[str, object]], spelling: str, tmp_path: Path
) -> None:
    theirs = write_checkpoint(Family("llama", parameters), tmp_path)
    if spelling == "rope_scaling":
        numbers = dict(parameters["rope_parameters"])
        theta = numbers.pop("rope_theta")
        numbers["type"] = numbers.pop("rope_type")
        edit_config(tmp_path, rope_parameters=None, rope_scaling=numbers, rope_theta=theta)
    token_ids = prompt(60)
    assert_same_model(load(tmp_path), logits_of(theirs, token_ids), token_ids)


def test_a_crowd_in_all_stages_does_not_change_anyone(tmp_path: Path) -> None:
    theirs = write_checkpoint(Family("mistral", {"sliding_window": 20}), tmp_path)
    lengths = (1, 5, 31, 60, 44)
    sequences = [prompt(length, seed=length) for length in lengths]
    stepper = Stepper(load(tmp_path), sequences)
    seen: list[list[Tensor]] = [[] for _ in sequences]
    left = list(lengths)
    plan = ({3: 40, 0: 1}, {4: 17, 3: 1, 2: 20}, {2: 1, 3: 4, 4: 1, 1: 2})
    rounds = 0
    while any(left):
        wanted = plan[rounds] if rounds < len(plan) else dict.fromkeys(range(5), 1)
        counts = {i: min(count, left[i]) for i, count in wanted.items() if left[i]}
        for i, logits in zip(counts, stepper.step(counts), strict=True):
            seen[i].append(logits)
            left[i] -= counts[i]
        rounds += 1
    for token_ids, logits in zip(sequences, seen, strict=True):
        assert_near(torch.cat(logits), logits_of(theirs, token_ids))


def test_bfloat16_is_near(tmp_path: Path) -> None:
    theirs = write_checkpoint(Family("llama"), tmp_path)
    token_ids = prompt(40)
    expected = logits_of(theirs, token_ids)
    ours = load_model(tmp_path, dtype=torch.bfloat16, device=CPU)
    (got,) = Stepper(ours, [token_ids], dtype=torch.bfloat16).step({0: 40})
    assert got.dtype == torch.float32
    assert (got - expected).pow(2).mean().sqrt() < 0.03 * expected.pow(2).mean().sqrt()
