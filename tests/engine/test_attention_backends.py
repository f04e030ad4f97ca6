"""Every attention backend behind the one seam gives attention; who computes is chosen once."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from octavo.engine.attention import choice
from octavo.engine.attention.base import AttentionBackend
from octavo.engine.attention.choice import choose_attention
from octavo.engine.attention.flash3 import Flash3Attention
from octavo.engine.attention.flashinfer import FlashInferAttention
from octavo.engine.attention.library import LayerKind
from octavo.engine.attention.paged import PagedAttention
from octavo.engine.batch import Batch
from octavo.engine.checkpoint import ModelConfig, Rope
from octavo.engine.errors import ConfigError
from octavo.kernels.ops import AttentionLayer
from octavo.kernels.registry import resolve

from ..fakes.attention_libraries import (
    BatchPrefillWithPagedKVCacheWrapper,
    as_module,
    flash_attn_with_kvcache,
)
from ..kernels.paging import PLAIN, PagedStep, paged_step

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
OPS = resolve(CPU, {"cpu": ("reference",)})
SLICES = ((1, 7), (1, 8), (5, 5), (1, 1), (3, 30), (20, 41))
HEADS, KV_HEADS, HEAD_DIM, BLOCK = 6, 2, 64, 8
CONFIG = ModelConfig(
    architecture="LlamaForCausalLM",
    hidden_size=384,
    intermediate_size=1024,
    layers=6,
    heads=HEADS,
    kv_heads=KV_HEADS,
    head_dim=HEAD_DIM,
    vocab_size=4096,
    max_position_embeddings=2048,
    norm_epsilon=1e-5,
    activation="silu",
    tied_embeddings=True,
    rope=Rope(),
    windows=(None,) * 6,
)


@pytest.fixture(autouse=True)
def libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both libraries are installed, on a Hopper GPU."""
    made = as_module(
        "flashinfer", BatchPrefillWithPagedKVCacheWrapper=BatchPrefillWithPagedKVCacheWrapper
    )
    monkeypatch.setitem(sys.modules, "flashinfer", made)
    made = as_module("flash_attn_interface", flash_attn_with_kvcache=flash_attn_with_kvcache)
    monkeypatch.setitem(sys.modules, "flash_attn_interface", made)
    monkeypatch.setattr(choice, "capability_of", lambda device: (9, 0))


def backends() -> list[AttentionBackend]:
    return [FlashInferAttention(OPS, CPU), Flash3Attention(OPS)]


def batch_of(step: PagedStep) -> Batch:
    queries, contexts = zip(*step.slices, strict=True)
    return Batch(
        token_ids=torch.zeros(sum(queries), dtype=torch.int64),
        positions=torch.zeros(sum(queries), dtype=torch.int64),
        query_offsets=torch.tensor([0, *queries]).cumsum(0).int(),
        context_lengths=torch.tensor(contexts, dtype=torch.int32),
        block_tables=step.block_tables,
        slot_mapping=step.slot_mapping,
        logits_rows=torch.zeros(0, dtype=torch.int64),
        query_lengths=queries,
        context_lengths_host=contexts,
    )


@pytest.mark.parametrize("which", [0, 1], ids=["flashinfer", "fa3"])
def test_a_library_attends_to_what_was_stored(which: int) -> None:
    step = paged_step(SLICES, heads=HEADS, kv_heads=KV_HEADS, head_dim=HEAD_DIM, block_size=BLOCK)
    plan = backends()[which].prepare(batch_of(step), BLOCK)
    plan.store(step.cache, step.new_keys, step.new_values, PLAIN)
    scale = HEAD_DIM**-0.5
    # Layers of two kinds take turns, as in models with a window in every other layer.
    for window, softcap in ((None, None), (10, 3.0), (None, None), (10, 3.0)):
        got = plan.attend(
            step.cache, step.query, AttentionLayer(scale=scale, window=window, softcap=softcap)
        )
        expected = step.attended(scale=scale, window=window, softcap=softcap)
        torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=1e-5)


def test_flashinfer_plans_once_a_step_for_each_kind_of_layer() -> None:
    backend = FlashInferAttention(OPS, CPU)
    for steps in (1, 2):
        step = paged_step(SLICES, heads=6, kv_heads=2, head_dim=64, block_size=BLOCK, seed=steps)
        plan = backend.prepare(batch_of(step), BLOCK)
        plan.store(step.cache, step.new_keys, step.new_values, PLAIN)
        for window in (None, 4, None, 4):
            plan.attend(step.cache, step.query, AttentionLayer(scale=0.1, window=window))
        for window in (None, 4):
            assert backend.wrapper(LayerKind(0.1, window, None)).plans == steps


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("which", [0, 1], ids=["flashinfer", "fa3"])
def test_the_whole_of_a_layers_attention_is_the_references(which: int, norms: bool) -> None:
    step = paged_step(SLICES, heads=HEADS, kv_heads=KV_HEADS, head_dim=HEAD_DIM, block_size=BLOCK)
    tokens = len(step.query)
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    projected = normal(tokens, (HEADS + 2 * KV_HEADS) * HEAD_DIM)
    cosine, sine = normal(tokens, 1, HEAD_DIM), normal(tokens, 1, HEAD_DIM)
    layer = AttentionLayer(
        scale=0.2,
        window=9,
        query_norm=normal(HEAD_DIM) if norms else None,
        key_norm=normal(HEAD_DIM) if norms else None,
        epsilon=1e-6,
    )
    results = []
    for backend in (PagedAttention(OPS), backends()[which]):
        cache = step.cache.clone()
        plan = backend.prepare(batch_of(step), BLOCK)
        mixed = backend.attend(projected.clone(), cache, plan, cosine, sine, layer)
        results.append((mixed, cache))
    torch.testing.assert_close(results[1][0], results[0][0], atol=1e-5, rtol=1e-5)
    assert torch.equal(results[1][1], results[0][1])


def choose(
    name: str, device: torch.device, dtype: torch.dtype = torch.bfloat16
) -> AttentionBackend:
    return choose_attention(name, ops=OPS, device=device, dtype=dtype, config=CONFIG)


def test_the_default_is_the_devices_own_kernel(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert choose("auto", CPU).replayable
    assert "the CPU's own kernel, the default" in caplog.text
    assert choose("auto", GPU).replayable
    assert "Triton's paged attention, the default" in caplog.text
    assert choose("triton", GPU).replayable
    assert "by --attention-backend triton" in caplog.text


def test_projections_are_rounded_late_on_a_cpu_unless_the_cache_has_eight_bits() -> None:
    def wide(device: torch.device, kv_dtype: torch.dtype | None) -> bool:
        return choose_attention(
            "auto",
            ops=OPS,
            device=device,
            dtype=torch.bfloat16,
            config=CONFIG,
            kv_dtype=kv_dtype,
        ).wide

    assert wide(CPU, None) and wide(CPU, torch.bfloat16)
    assert not wide(CPU, torch.float8_e4m3fn)
    assert not any(wide(GPU, dtype) for dtype in (None, torch.bfloat16, torch.float8_e4m3fn))
    assert not any(choose(name, GPU).wide for name in ("torch", "fa3"))


def test_torch_computes_anywhere_and_is_not_replayed() -> None:
    for device in (CPU, GPU):
        backend = choose("torch", device)
        assert isinstance(backend, PagedAttention) and not backend.replayable


def test_a_library_is_taken_where_it_can_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(choose("fa3", GPU), Flash3Attention)
    for name in ("triton", "flashinfer", "fa3"):
        with pytest.raises(ConfigError, match=f"backend {name}: it computes on GPUs, not on cpu"):
            choose(name, CPU)
    for name in ("flashinfer", "fa3"):
        with pytest.raises(ConfigError, match="bfloat16 and float16 only"):
            choose(name, GPU, torch.float32)
    monkeypatch.setattr(choice, "capability_of", lambda device: (8, 0))
    with pytest.raises(ConfigError, match=r"compute capability 9\.x; use --attention-backend auto"):
        choose("fa3", GPU)


def test_a_cache_of_eight_bits_is_not_for_every_library() -> None:
    def with_cache(name: str) -> AttentionBackend:
        return choose_attention(
            name,
            ops=OPS,
            device=GPU,
            dtype=torch.bfloat16,
            config=CONFIG,
            kv_dtype=torch.float8_e4m3fn,
        )

    with pytest.raises(ConfigError, match="fa3: it reads a cache of 8 bits only for queries"):
        with_cache("fa3")
    assert with_cache("triton").replayable


def test_heads_that_a_library_has_no_kernel_for() -> None:
    config = replace(CONFIG, head_dim=80)
    with pytest.raises(ConfigError, match=r"heads have 80 numbers.* 64, 128, 256"):
        choose_attention("flashinfer", ops=OPS, device=GPU, dtype=torch.bfloat16, config=config)


@pytest.mark.parametrize("name", ["flashinfer", "fa3"])
def test_a_library_that_is_not_installed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("flashinfer", "flash_attn_interface"):
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(ConfigError, match="is not installed; use --attention-backend auto"):
        choose(name, GPU)


def test_an_unknown_name_is_refused_with_the_known() -> None:
    with pytest.raises(ConfigError, match="auto, triton, flashinfer, fa3 or torch"):
        choose("xformers", CPU)
