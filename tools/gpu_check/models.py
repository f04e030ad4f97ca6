"""Models by their shape, with random weights, and an engine over them without a front end."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from octavo.engine.config import EngineConfig
from octavo.engine.executor.inline import InlineExecutor
from octavo.engine.params import Request, SamplingParams
from octavo.engine.scheduler.scheduler import Scheduler
from octavo.engine.step import Delta, StepPlan
from octavo.engine.worker.launch import launch

_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SHAPES: Mapping[str, dict[str, Any]] = {
    "qwen3-0.6b": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "eos_token_id": 151645,
    },
    "llama-3.1-8b": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": _LLAMA3_ROPE,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "eos_token_id": 128001,
    },
    "tiny": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 320,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "eos_token_id": 1,
    },
}


def folder_of(shape: str, parent: Path) -> Path:
    """A checkpoint folder with a config.json and nothing else, for --load-format dummy."""
    folder = parent / shape
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(SHAPES[shape]), "utf-8")
    return folder


def weight_bytes_read(shape: str) -> int:
    """Bytes of bfloat16 weights that a step reads: all but the embedding's rows."""
    c = SHAPES[shape]
    heads = (2 * c["num_attention_heads"] + 2 * c["num_key_value_heads"]) * c["head_dim"]
    layer = c["hidden_size"] * (heads + 3 * c["intermediate_size"])
    return int(2 * (c["num_hidden_layers"] * layer + c["hidden_size"] * c["vocab_size"]))


def kv_bytes_per_token(shape: str) -> int:
    c = SHAPES[shape]
    return 2 * 2 * int(c["num_hidden_layers"] * c["num_key_value_heads"] * c["head_dim"])


class Offline:
    """An engine in this process: what `octavo.engine.core` does, without its channel, which needs
    packages that a bare host may lack."""

    def __init__(
        self, folder: Path, providers: Mapping[str, tuple[str, ...]] | None = None, **settings: Any
    ) -> None:
        config = EngineConfig(model=str(folder), load_format="dummy", **settings)
        self._executor = InlineExecutor(config, partial(launch, providers=providers))
        self.capacity = self._executor.start(lambda *_: None)
        self._scheduler = Scheduler(config, self.capacity)
        self._in_flight: list[StepPlan] = []
        self.tokens: dict[str, list[int]] = {}
        self.graphs = (0, 0)

    def add(self, name: str, prompt: list[int], *, seed: int = 0, **params: Any) -> None:
        self.tokens[name] = []
        sampling = SamplingParams(**{"ignore_eos": True, **params})
        self._scheduler.add(
            Request(
                id=name,
                prompt_token_ids=tuple(prompt),
                sampling=sampling,
                seed=seed,
                arrival=time.monotonic(),
            ),
            time.monotonic(),
        )

    @property
    def idle(self) -> bool:
        return not self._in_flight and not self._scheduler.has_work

    def step(self) -> list[Delta]:
        while len(self._in_flight) <= self.capacity.overlap:
            plan = self._scheduler.schedule(time.monotonic())
            if plan is None:
                break
            self._executor.submit(plan)
            self._in_flight.append(plan)
        if not self._in_flight:
            return []
        plan = self._in_flight.pop(0)
        output = self._executor.collect()
        self.graphs = (output.graphs_recorded, output.graphs_planned)
        deltas = list(self._scheduler.commit(plan, output, time.monotonic()))
        for delta in deltas:
            if delta.error is not None:
                raise RuntimeError(f"{delta.request_id}: {delta.error}")
            self.tokens[delta.request_id] += delta.token_ids
        return deltas

    def record_graphs(self) -> None:
        """All that are planned, before what is measured."""
        while self._executor.improve(idle=True):
            pass

    def run(self) -> float:
        """Until nothing is left; seconds."""
        began = time.perf_counter()
        while not self.idle:
            self.step()
        return time.perf_counter() - began

    def abort_all(self) -> None:
        for name in list(self.tokens):
            self._scheduler.abort(name)
        while not self.idle:
            self.step()

    def close(self) -> None:
        self._executor.stop()


def prompts(
    count: int, shortest: int, longest: int, *, vocab: int, seed: int = 0
) -> list[list[int]]:
    """Random ids; no two begin alike, so that no cache helps."""
    draw = random.Random(seed)
    return [
        [draw.randrange(3, vocab) for _ in range(draw.randint(shortest, longest))]
        for _ in range(count)
    ]
