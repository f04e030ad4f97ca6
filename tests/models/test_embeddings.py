"""Embeddings are transformers' hidden states, pooled: alone, in chunks, in a crowd, preempted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModel

from octavo.engine.assembly import build_engine
from octavo.engine.bundled import TARGET
from octavo.engine.config import EngineConfig
from octavo.engine.params import PoolingKind, PoolingParams, Request, SamplingParams
from octavo.engine.step import Delta, StepStats

from ..e2e.prompts import mixed_prompts
from .checkpoints import SMALL, Family, write_checkpoint

BLOCK_BYTES = 6 * 2 * 16 * 2 * 64 * 4  # of 16 tokens of the bundled model in float32
MAX_MODEL_LEN = 288
PRESSED = {"kv_memory": 22 * BLOCK_BYTES, "max_num_batched_tokens": 16}
WAYS = {
    "as by default": {},
    "one after the other": {"max_num_seqs": 1, "overlap": "off", "prefix_caching": False},
    "chunked": {"block_size": 8, "max_num_batched_tokens": 16, "overlap": "on"},
    "recomputed": {**PRESSED, "preemption": "recompute", "overlap": "on"},
    "swapped": {**PRESSED, "preemption": "swap", "swap_space": 300 * BLOCK_BYTES},
}
FAMILIES = (
    Family("llama"),
    Family("mistral", {"sliding_window": 16}),
    Family("qwen2"),
    Family("qwen3", {"head_dim": 8}),
)
Prompts = list[list[int]]
WHOLE = PoolingParams(normalize=False)
CUT = PoolingParams(dimensions=17)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def last_hidden_states(folder: Path, prompts: Prompts) -> dict[tuple[int, ...], Tensor]:
    """What transformers computes: [tokens, hidden] of each prompt."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return {tuple(p): model(torch.tensor([p])).last_hidden_state[0] for p in prompts}


def expected(hidden: Tensor, pooling: PoolingParams) -> Tensor:
    """Pooled as a user of transformers would."""
    pooled = hidden.mean(0) if pooling.kind is PoolingKind.MEAN else hidden[-1]
    pooled = pooled[: pooling.dimensions]
    return torch.nn.functional.normalize(pooled, dim=0) if pooling.normalize else pooled


def embeddings(
    folder: Path, requests: list[Request], **settings: object
) -> tuple[dict[str, Delta], StepStats]:
    """The last delta of each request that was embedded."""
    defaults = {"dtype": "float32", "threads": 1, "kv_memory": 400 * BLOCK_BYTES}
    config = EngineConfig(model=str(folder), **{**defaults, **settings})  # type: ignore[arg-type]
    engine, _ = build_engine(config, lambda stage, done, total: None)
    found: dict[str, Delta] = {}
    try:
        for request in requests:
            engine.add(request)
        while not engine.idle:
            for delta in engine.step().deltas:
                assert delta.error is None, delta
                if delta.embedding is not None:
                    found[delta.request_id] = delta
        engine.scheduler.check()
        return found, engine.stats()
    finally:
        engine.stop()


def check(
    states: dict[tuple[int, ...], Tensor], requests: list[Request], found: dict[str, Delta]
) -> None:
    for asked in requests:
        assert asked.pooling is not None
        wanted = expected(states[asked.prompt_token_ids], asked.pooling)
        embedding = torch.tensor(found[asked.id].embedding)
        torch.testing.assert_close(embedding, wanted, atol=1e-4, rtol=0)


def to_embed(prompts: Prompts) -> list[Request]:
    """Each prompt in every way."""
    ways = [replace(p, kind=kind) for p in (WHOLE, CUT) for kind in PoolingKind]
    return [
        Request(
            id=f"{place}-{way}",
            prompt_token_ids=tuple(prompt),
            pooling=pooling,
            seed=0,
            arrival=1.0 + place,
        )
        for place, prompt in enumerate(prompts)
        for way, pooling in enumerate(ways)
    ]


@pytest.fixture(scope="module")
def bundled() -> tuple[Prompts, dict[tuple[int, ...], Tensor]]:
    prompts = mixed_prompts(TARGET, count=7, longest=230, seed=11)
    return prompts, last_hidden_states(TARGET, prompts)


@pytest.mark.parametrize("way", WAYS)
def test_the_bundled_model_in_every_way_of_scheduling(
    way: str, bundled: tuple[Prompts, dict[tuple[int, ...], Tensor]]
) -> None:
    prompts, states = bundled
    requests = to_embed(prompts)
    neighbours = [
        Request(
            id=f"neighbour {i}",
            prompt_token_ids=tuple(prompts[0][: 5 + i]),
            sampling=SamplingParams(max_tokens=60, ignore_eos=True),
            seed=i,
            arrival=0.0,
        )
        for i in range(3)
    ]
    found, stats = embeddings(
        TARGET, neighbours + requests, max_model_len=MAX_MODEL_LEN, **WAYS[way]
    )
    check(states, requests, found)
    preempted = [r.id for r in requests if found[r.id].timing.preemptions]  # type: ignore[union-attr]
    if way == "swapped":
        assert stats.preemptions_swap > 0
        assert preempted
    if way == "recomputed":
        assert stats.preemptions_recompute > 0
        assert preempted
    cached = {r.pooling.kind: 0 for r in requests if r.pooling}
    for r in requests:
        assert r.pooling is not None
        cached[r.pooling.kind] += found[r.id].cached_tokens or 0
    assert cached[PoolingKind.MEAN] == 0
    assert (cached[PoolingKind.LAST] > 0) == (way != "one after the other")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_every_family(family: Family, tmp_path: Path) -> None:
    write_checkpoint(family, tmp_path)
    generator = torch.Generator().manual_seed(1)
    prompts = [
        torch.randint(3, SMALL["vocab_size"], (length,), generator=generator).tolist()
        for length in (1, 2, 31, 127, SMALL["max_position_embeddings"])
    ]
    requests = to_embed(prompts)
    found, _ = embeddings(tmp_path, requests, max_num_batched_tokens=48, kv_memory=32 << 20)
    check(last_hidden_states(tmp_path, prompts), requests, found)
