"""The engine over the GPU's kernels, on host memory in Triton's interpreter."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import pytest
import torch

from octavo.engine.core import Engine
from octavo.engine.executor.inline import InlineExecutor
from octavo.engine.params import SamplingParams
from octavo.engine.scheduler.scheduler import Scheduler
from octavo.engine.worker.launch import launch

from .loop import request
from .tiny import VOCAB_SIZE, tiny_config

pytest.importorskip("triton")

TRITON = {"cpu": ("cuda", "reference")}
TORCH = {"cpu": ("reference",)}


def answers(
    folder: Path, providers: dict[str, tuple[str, ...]], **settings: object
) -> dict[str, list[int]]:
    """What a few requests get that share steps: chunked prompts, decodes, and a long context."""
    config = tiny_config(folder, max_num_batched_tokens=48, **settings)
    executor = InlineExecutor(config, partial(launch, providers=providers))
    capacity = executor.start(lambda *_: None)
    engine = Engine(Scheduler(config, capacity), executor, overlap=capacity.overlap)
    got: dict[str, list[int]] = {}
    for number, length in enumerate((3, 70, 17, 40)):
        tokens = [(7 * i + number) % (VOCAB_SIZE - 2) + 2 for i in range(length)]
        params = SamplingParams(
            temperature=0.0 if number % 2 else 0.9,
            top_k=20 if number == 2 else 0,
            max_tokens=5,
            ignore_eos=True,
            logprobs=1,
        )
        got[f"r{number}"] = []
        engine.add(request(f"r{number}", tokens, seed=number, sampling=params))
    while not engine.idle:
        for delta in engine.step().deltas:
            assert delta.error is None
            got[delta.request_id] += delta.token_ids
    engine.stop()
    return got


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton does not interpret beside a GPU")
@pytest.mark.parametrize("overlap", ["off", "on"])
def test_the_gpus_kernels_give_the_references_tokens(
    tmp_path: Path,
    overlap: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO)
    expected = answers(tmp_path, TORCH, overlap=overlap)
    # As for a GPU: inputs are made, and choices narrowed, by its kernels.
    monkeypatch.setattr("octavo.engine.worker.launch.has_streams", lambda device: True)
    assert all(len(tokens) == 5 for tokens in expected.values())
    assert answers(tmp_path, TRITON, overlap=overlap) == expected
    assert "kernels on cpu are from reference: set_threads" in caplog.text
    assert "cuda: rms_norm" in caplog.text
