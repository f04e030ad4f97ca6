"""Block `bench`: throughput without a front end, and other engines' on the same machine."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from . import peers
from .ceilings import measure
from .models import SHAPES, Offline, folder_of, kv_bytes_per_token, prompts, weight_bytes_read
from .report import Options, Report

Load = list[tuple[list[int], int]]
"""Prompts, and how many tokens are wanted of each."""


@dataclass(frozen=True, slots=True)
class Part:
    """One line of the block, or a few that need the same engine."""

    name: str  # {small} and {large} are the models
    seconds: float  # that it takes, its engine's start included, as estimated for an H200
    work: Callable[[_Bench], None]


# What decides most goals comes first. All together are to fit the block's time, as estimated; where
# one takes longer, the last ones are not run.
PARTS = (
    Part("nano-vllm's load, {small}", 30, lambda b: b.nano(b.small)),
    Part("loads of {large}", 85, lambda b: b.large_loads()),
    Part("loads of {large}, fp8", 60, lambda b: b.large_loads(quantization="fp8")),
    Part("--deterministic", 30, lambda b: b.nano(b.small, deterministic=True)),
    Part("HF generate, {small}", 40, lambda b: b.peer(peers.generate, b.small, b.many)),
    Part("HF continuous batching, {large}", 45, lambda b: b.peer(peers.continuous, b.large, b.few)),
    Part(
        "HF continuous batching, {small}", 35, lambda b: b.peer(peers.continuous, b.small, b.many)
    ),
    Part("loads of {large}, int4", 25, lambda b: b.single(quantization="int4")),
    Part("HF generate, {large}", 40, lambda b: b.peer(peers.generate, b.large, b.many)),
    Part("vLLM", 75, lambda b: b.peer(peers.vllm, b.small, b.many)),
)


def run(options: Options, report: Report) -> None:
    with tempfile.TemporaryDirectory() as parent:
        bench = _Bench(Path(parent), options, report)
        for part in PARTS:
            name = part.name.format(small=bench.small, large=bench.large)
            report.attempt(name, partial(_in_time, options, part, bench))


def _in_time(options: Options, part: Part, bench: _Bench) -> None:
    options.need(part.seconds)
    part.work(bench)


def nano_load(small: bool, vocab: int) -> Load:
    """As nano-vllm's benchmark draws it: 256 requests, lengths uniform in 100 to 1024, seed 0."""
    draw = random.Random(0)
    count, low, high = (4, 4, 12) if small else (256, 100, 1024)
    given = [
        [draw.randint(0, min(10_000, vocab - 1)) for _ in range(draw.randint(low, high))]
        for _ in range(count)
    ]
    return [(prompt, draw.randint(low, high)) for prompt in given]


def few_load(small: bool, vocab: int) -> Load:
    """32 requests that are answered at length, as in Hugging Face's own measurement of continuous
    batching (2026), of which the answers here have an eighth of the length: 1024 tokens."""
    count, prompt, output = (2, 6, 8) if small else (32, 128, 1024)
    return [(ids, output) for ids in prompts(count, prompt, prompt, vocab=vocab, seed=5)]


def floor_seconds(
    shape: str, lengths: list[tuple[int, int]], bandwidth: float, flops: float
) -> float:
    """The least a server could take that starts all requests at once: prompts by operations, then
    steps by the bytes that each must read."""
    weights, cell = weight_bytes_read(shape), kv_bytes_per_token(shape)
    total = sum(prompt for prompt, _ in lengths) * weights / flops  # 2 operations a 2-byte weight
    for step in range(1, max(output for _, output in lengths)):
        alive = [prompt + step for prompt, output in lengths if output > step]
        products = len(alive) * weights / flops
        total += max(weights / bandwidth, products) + sum(alive) * cell / bandwidth
    return total


class _Bench:
    """Loads of many requests at once, without a front end."""

    def __init__(self, parent: Path, options: Options, report: Report) -> None:
        self._parent, self._options, self._report = parent, options, report
        self._ceilings = measure(torch.device(options.device), small=options.small)
        self.small = "tiny" if options.small else "qwen3-0.6b"
        self.large = "tiny" if options.small else "llama-3.1-8b"
        self.many = nano_load(options.small, SHAPES[self.small]["vocab_size"])
        self.few = few_load(options.small, SHAPES[self.large]["vocab_size"])

    def peer(
        self, measured: Callable[[str, Load, Options, Report], None], shape: str, load: Load
    ) -> None:
        measured(shape, load, self._options, self._report)

    def nano(self, shape: str, **settings: Any) -> None:
        load = nano_load(self._options.small, SHAPES[shape]["vocab_size"])
        with self._engine(shape, settings, sequences=256, length=4096) as engine:
            took = self._took(engine, load, temperature=0.6)
        self._told(f"nano-vllm's load, {shape}{_said(settings)}", shape, load, took)

    def large_loads(self, **settings: Any) -> None:
        """One request alone, a few that are answered at length, ragged ones, and very many."""
        shape, small = self.large, self._options.small
        count, length = (2, 20) if small else (256, 1000)
        vocab = SHAPES[shape]["vocab_size"]
        loads = {
            _alone_name(small): _alone(small, vocab),
            "a few, answered at length": self.few,
            f"{count} requests of {length}/{length}": [
                (prompt, length) for prompt in prompts(count, length, length, vocab=vocab)
            ],
        }
        if not settings:
            loads["nano-vllm's load"] = nano_load(small, vocab)
        with self._engine(shape, settings, sequences=256, length=2048) as engine:
            for name, load in loads.items():
                took = self._took(engine, load, temperature=0.0)
                self._told(f"{name}, {shape}{_said(settings)}", shape, load, took)

    def single(self, **settings: Any) -> None:
        shape, small = self.large, self._options.small
        load = _alone(small, SHAPES[shape]["vocab_size"])
        with self._engine(shape, settings, sequences=1, length=2048) as engine:
            took = self._took(engine, load, temperature=0.0)
        self._told(f"{_alone_name(small)}, {shape}{_said(settings)}", shape, load, took)

    @contextmanager
    def _engine(
        self, shape: str, settings: Mapping[str, Any], *, sequences: int, length: int
    ) -> Iterator[Offline]:
        small, device = self._options.small, self._options.device
        fixed = ("cuda.deterministic",) if settings.get("deterministic") else ()
        providers = {device: (*fixed, "cuda", "reference")}
        engine = Offline(
            folder_of(shape, self._parent),
            device=device,
            providers=providers if small else None,
            max_num_seqs=sequences,
            max_num_batched_tokens=64 if small else 8192,
            max_model_len=128 if small else length,
            kv_memory=(8 << 20) if small else None,
            itl_target=0.0,
            prefix_caching=False,
            **settings,
        )
        try:
            engine.record_graphs()
            engine.add("warm-up", [3, 4, 5], max_tokens=4)
            engine.run()
            yield engine
        finally:
            engine.close()

    def _took(self, engine: Offline, load: Load, *, temperature: float) -> float:
        names = [f"{len(engine.tokens) + number}" for number in range(len(load))]
        for seed, (name, (prompt, tokens)) in enumerate(zip(names, load, strict=True)):
            engine.add(name, prompt, max_tokens=tokens, temperature=temperature, seed=seed)
        took = engine.run()
        assert [len(engine.tokens[name]) for name in names] == [tokens for _, tokens in load]
        return took

    def _told(self, name: str, shape: str, load: Load, took: float) -> None:
        lengths = [(len(prompt), tokens) for prompt, tokens in load]
        least = floor_seconds(shape, lengths, self._ceilings.bandwidth, self._ceilings.flops)
        tokens = sum(tokens for _, tokens in load)
        self._report.figure(
            name, tokens / took, "tokens/s", share=least / took, of="the bfloat16 floor here"
        )


def _alone(small: bool, vocab: int) -> Load:
    length = 8 if small else 128
    return [(prompts(1, length, length, vocab=vocab, seed=3)[0], length)]


def _alone_name(small: bool) -> str:
    return f"1 request of {'8/8' if small else '128/128'}"


def _said(settings: Mapping[str, Any]) -> str:
    return "".join(f", {key}={value}" for key, value in settings.items())
