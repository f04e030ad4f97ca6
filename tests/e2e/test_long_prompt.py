"""A prompt of 32k tokens on a tiny random model: chunked, memory bounded by the plan, right."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import httpx
import pytest
import torch

from octavo.engine.bundled import TARGET

from ..models.checkpoints import Family, write_checkpoint
from .daemon import serving

LENGTH = 32_000
OUTPUT = 16


def peak_memory(pid: int) -> int:
    """Bytes of the largest resident set that a process has had so far."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {pid} has no VmHWM")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_32k_tokens(tmp_path: Path) -> None:
    family = Family("llama", {"max_position_embeddings": 40_960, "initializer_range": 0.05})
    model = write_checkpoint(family, tmp_path / "tiny")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TARGET / name, tmp_path / "tiny" / name)
    draw = random.Random(0)
    prompt = [draw.randrange(model.config.vocab_size) for _ in range(LENGTH)]
    arguments = (str(tmp_path / "tiny"), "--dtype", "float32", "--max-num-batched-tokens", "2048")
    # Steps are counted: one for each token.
    with serving(tmp_path, *arguments, "--speculative", "none") as daemon:
        engine = daemon.engine
        before = peak_memory(engine)
        answer = httpx.post(
            f"{daemon.url}/v1/completions",
            json={
                "prompt": prompt,
                "max_tokens": OUTPUT,
                "temperature": 0,
                "ignore_eos": True,
                "return_token_ids": True,
            },
            timeout=300,
        )
        grown = peak_memory(engine) - before
        steps = daemon.metric("octavo:iteration_tokens_total_count")
        assert daemon.metric("octavo:kv_cache_usage_perc") == 0
    assert answer.status_code == 200, answer.text
    output = answer.json()["choices"][0]["token_ids"]
    assert len(output) == OUTPUT
    assert steps >= LENGTH // 2048 + OUTPUT  # it was chunked

    # The KV cells themselves, and one step's temporaries; the whole score matrix of the prompt
    # alone would be 32k * 32k * 4 bytes a head, 24 GiB.
    config = model.config
    cells = 2 * config.num_hidden_layers * LENGTH * config.hidden_size * 4
    assert grown < cells + (300 << 20), f"{grown >> 20} MiB"

    with torch.inference_mode():
        logits = model(torch.tensor([prompt + output])).logits[0, LENGTH - 1 : -1]
    assert logits.argmax(dim=-1).tolist() == output
