"""Greedy output through the running server equals transformers', token for token, in float32."""

from __future__ import annotations

import asyncio
import random
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM

from octavo.engine.bundled import TARGET

from ..models.checkpoints import Family, write_checkpoint
from .daemon import serving
from .prompts import mixed_prompts

NEW_TOKENS = 64
LOGPROB_TOLERANCE = 1e-4


async def complete_all(url: str, prompts: list[list[int]]) -> list[dict[str, Any]]:
    """Greedy continuations of all prompts, 16 at a time: batches mix prompt chunks and decodes."""
    gate = asyncio.Semaphore(16)

    async with httpx.AsyncClient(base_url=url, timeout=300) as client:

        async def one(prompt: list[int]) -> dict[str, Any]:
            async with gate:
                answer = await client.post(
                    "/v1/completions",
                    json={
                        "prompt": prompt,
                        "max_tokens": NEW_TOKENS,
                        "temperature": 0,
                        "ignore_eos": True,
                        "logprobs": 1,
                        "return_token_ids": True,
                    },
                )
            assert answer.status_code == 200, answer.text
            choice: dict[str, Any] = answer.json()["choices"][0]
            return choice

        return await asyncio.gather(*(one(prompt) for prompt in prompts))


@torch.inference_mode()
def assert_greedy(
    model: torch.nn.Module, prompt: list[int], output: list[int], logprobs: list[float]
) -> None:
    """One forward pass over prompt + output shows each step of transformers' greedy search: as
    long as every token so far was its choice, the next row is what it would see."""
    assert len(output) == NEW_TOKENS
    logits = model(torch.tensor([prompt + output])).logits[0]  # [tokens, vocabulary]
    rows = torch.log_softmax(logits[len(prompt) - 1 : -1].float(), dim=-1)
    assert rows.argmax(dim=-1).tolist() == output
    expected = rows.gather(1, torch.tensor(output)[:, None])[:, 0]
    assert (expected - torch.tensor(logprobs)).abs().max() <= LOGPROB_TOLERANCE


@pytest.mark.slow
@pytest.mark.timeout(1200)
async def test_200_prompts_on_the_bundled_model(tmp_path: Path) -> None:
    prompts = mixed_prompts(TARGET, count=200, longest=900, seed=1)
    with serving(tmp_path, "--dtype", "float32") as daemon:
        choices = await complete_all(daemon.url, prompts)
        assert daemon.metric("octavo:kv_cache_usage_perc") == 0
    model = AutoModelForCausalLM.from_pretrained(TARGET, dtype=torch.float32)
    for prompt, choice in zip(prompts, choices, strict=True):
        assert_greedy(model, prompt, choice["token_ids"], choice["logprobs"]["token_logprobs"])


LONG = {"max_position_embeddings": 1024}
FAMILIES = {
    "llama": Family("llama", LONG),
    "mistral": Family("mistral", {**LONG, "sliding_window": 64}),
    "qwen2": Family("qwen2", {**LONG, "tie_word_embeddings": True}),
    "qwen3": Family("qwen3", {**LONG, "head_dim": 16}, shard_size="40KB"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
async def test_every_family_on_a_tiny_random_checkpoint(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    model = write_checkpoint(FAMILIES[name], folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TARGET / file, folder / file)
    draw = random.Random(name)
    lengths = [1, 900, *(draw.randint(1, 900) for _ in range(38))]
    prompts = [[draw.randrange(model.config.vocab_size) for _ in range(n)] for n in lengths]
    with serving(tmp_path, str(folder), "--dtype", "float32") as daemon:
        choices = await complete_all(daemon.url, prompts)
    for prompt, choice in zip(prompts, choices, strict=True):
        assert_greedy(model, prompt, choice["token_ids"], choice["logprobs"]["token_logprobs"])
