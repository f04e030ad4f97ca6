"""Memory is divided before it is taken, and what does not fit is refused with a way out."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.engine.checkpoint import ModelConfig, Rope
from octavo.engine.config import EngineConfig
from octavo.engine.errors import ConfigError, DoesNotFit
from octavo.engine.worker.memory import MemoryPlan, activation_bytes, plan_memory, setting, size

GIB = 1 << 30
MODEL = ModelConfig(
    architecture="LlamaForCausalLM",
    hidden_size=384,
    intermediate_size=1024,
    layers=6,
    heads=6,
    kv_heads=2,
    head_dim=64,
    vocab_size=4096,
    max_position_embeddings=2048,
    norm_epsilon=1e-5,
    activation="silu",
    tied_embeddings=True,
    rope=Rope(),
    windows=(None,) * 6,
)
BLOCK = 98304


def plan(
    available: int = 16 * GIB, weights: int = GIB, model: ModelConfig = MODEL, **settings: object
) -> MemoryPlan:
    limits = {"max_num_seqs": 64, "max_num_batched_tokens": 2048}
    config = EngineConfig(model="m", **{**limits, **settings})  # type: ignore[arg-type]
    block = BLOCK * config.block_size // 16
    return plan_memory(
        config, model, available=available, weights=weights, activations=100 << 20, block=block
    )


def test_no_more_is_taken_than_can_be_used() -> None:
    roomy = plan(max_num_seqs=8)
    assert roomy == MemoryPlan(num_blocks=8 * 128, num_host_blocks=0, max_model_len=2048)


def test_a_quarter_of_what_is_free_at_most_by_default() -> None:
    tight = plan(available=4 * GIB, weights=GIB // 2, max_num_seqs=10_000)
    assert tight.num_blocks == GIB // BLOCK


def test_weights_that_are_rounded_must_fit_before_it() -> None:
    config = EngineConfig(model="m", max_num_seqs=64)
    numbers = {"weights": GIB, "activations": 100 << 20, "block": BLOCK}
    assert plan_memory(config, MODEL, available=4 * GIB, loading=4 * GIB, **numbers).num_blocks
    with pytest.raises(DoesNotFit, match=r"need 4\.1 GiB until they are rounded.*4\.0 GiB"):
        plan_memory(config, MODEL, available=4 * GIB, loading=4 * GIB + (100 << 20), **numbers)


def test_weights_count_against_the_share() -> None:
    heavy = plan(available=8 * GIB, weights=5 * GIB // 2, max_num_seqs=100_000)
    assert heavy.num_blocks == (3 * GIB // 2 - (100 << 20)) // BLOCK


def test_auto_length_shrinks_to_what_fits() -> None:
    short = plan(available=GIB, weights=0, kv_memory=100 * BLOCK)
    assert short.max_model_len == 100 * 16
    assert short.num_blocks == 100


def test_asked_for_length_that_does_not_fit_names_settings_that_would() -> None:
    with pytest.raises(DoesNotFit) as refused:
        plan(kv_memory=100 * BLOCK, max_model_len=2000)
    message = str(refused.value)
    assert "2000 tokens needs 11.7 MiB" in message
    assert "9.4 MiB" in message
    (length,) = re.findall(r"--max-model-len (\d+)", message)
    assert plan(kv_memory=100 * BLOCK, max_model_len=int(length)).max_model_len == 1600
    (memory,) = re.findall(r"--kv-memory (\w+)", message)
    assert plan(kv_memory=bytes_of(memory), max_model_len=2000).num_blocks >= 125


def bytes_of(text: str) -> int:
    number, unit = int(text[:-3]), text[-3:]
    return number << {"KiB": 10, "MiB": 20, "GiB": 30}[unit]


def test_weights_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DoesNotFit, match=r"weights \(20\.0 GiB\).* 16\.0 GiB of memory is free"):
        plan(weights=20 * GIB)


def test_no_room_for_a_single_block_is_refused() -> None:
    with pytest.raises(DoesNotFit, match="--kv-memory 96KiB would fit"):
        plan(available=GIB + (100 << 20) + BLOCK + 1000, weights=GIB)
    with pytest.raises(DoesNotFit, match="more memory"):
        plan(available=GIB + (100 << 20) + 1000, weights=GIB)


def test_weights_beyond_the_share_leave_a_quarter_of_the_rest() -> None:
    heavy = plan(available=16 * GIB, weights=12 * GIB, max_num_seqs=10_000)
    assert heavy.num_blocks == (4 * GIB - (100 << 20)) // 4 // BLOCK


def test_kv_memory_beyond_the_machine_is_refused_with_what_would_fit() -> None:
    with pytest.raises(DoesNotFit) as refused:
        plan(kv_memory=64 * GIB)
    (memory,) = re.findall(r"--kv-memory (\w+) would fit", str(refused.value))
    assert plan(kv_memory=bytes_of(memory), max_num_seqs=1).num_blocks == 128


def test_length_beyond_the_checkpoint_is_refused() -> None:
    with pytest.raises(ConfigError, match="use --max-model-len 2048"):
        plan(max_model_len=4096)
    stretched = replace(MODEL, rope=Rope(kind="linear", numbers={"factor": 2.0}))
    assert plan(max_model_len=4096, model=stretched).max_model_len == 4096


def test_swap_space_becomes_host_blocks() -> None:
    assert plan(swap_space=GIB).num_host_blocks == GIB // BLOCK
    with pytest.raises(DoesNotFit, match="--swap-space 0"):
        plan(swap_space=32 * GIB)


@given(
    available=st.integers(0, 64 * GIB),
    weights=st.integers(0, 32 * GIB),
    kv_memory=st.none() | st.integers(0, 32 * GIB),
    max_model_len=st.none() | st.integers(1, 2048),
    block_size=st.sampled_from([8, 16, 32]),
    max_num_seqs=st.integers(1, 500),
    swap_space=st.integers(0, 8 * GIB),
    memory_utilization=st.floats(0.05, 1.0),
)
def test_one_longest_sequence_always_fits_and_nothing_is_overcommitted(
    available: int, weights: int, **settings: object
) -> None:
    try:
        planned = plan(available, weights, **settings)
    except DoesNotFit as refused:
        assert "--" in str(refused) or "more memory" in str(refused)
        return
    block_size = int(str(settings["block_size"]))
    block = BLOCK * block_size // 16
    assert planned.num_blocks * block_size >= planned.max_model_len >= 1
    used = (planned.num_blocks + planned.num_host_blocks) * block + weights + (100 << 20)
    assert used <= available
    assert settings["max_model_len"] in (None, planned.max_model_len)


def test_activations_grow_with_the_step() -> None:
    def estimate(tokens: int) -> int:
        return activation_bytes(
            MODEL, tokens=tokens, sequences=64, draws=64, longest=2048, itemsize=4
        )

    assert estimate(2048) - estimate(1024) == estimate(3072) - estimate(2048) > 0


def test_sizes_are_written_for_people_and_for_settings() -> None:
    assert [size(n) for n in (0, 900, 1536, 5 << 20, 3 * GIB // 2)] == [
        "0 bytes",
        "900 bytes",
        "1.5 KiB",
        "5.0 MiB",
        "1.5 GiB",
    ]
    assert setting((20 << 20) + 1) == "20MiB"
    assert setting((20 << 20) + 1, up=True) == "21MiB"
    assert setting(2049) == "2KiB"
