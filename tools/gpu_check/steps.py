"""Block `steps`: tiny models against the CPU, graphs, overlap, crowds; step times of large ones."""

from __future__ import annotations

import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .ceilings import Ceilings, measure
from .models import SHAPES, Offline, folder_of, kv_bytes_per_token, prompts, weight_bytes_read
from .report import Missing, Options, Report

_TINY: dict[str, Any] = {"max_num_seqs": 8, "max_num_batched_tokens": 64, "kv_memory": 8 << 20}


def run(options: Options, report: Report) -> None:
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory() as parent:
        checks = _Checks(options, report, folder_of("tiny", Path(parent)))
        for work in (checks.against_the_cpu, checks.graphs, checks.overlap, checks.crowds):
            report.attempt(f"right: {work.__name__}", work)
        ceilings = measure(device, small=options.small)
        for shape in ("tiny",) if options.small else ("qwen3-0.6b", "llama-3.1-8b"):
            folder = folder_of(shape, Path(parent))
            report.attempt(
                f"steps of {shape}",
                partial(_steps, shape, folder, options, ceilings, report),
            )


class _Checks:
    """The tokens of a few requests, whichever way they are computed."""

    def __init__(self, options: Options, report: Report, folder: Path) -> None:
        self._options, self._report, self._folder = options, report, folder
        # Without a GPU its kernels run on host memory, in Triton's interpreter.
        self._providers = {options.device: ("cuda", "reference")}

    def against_the_cpu(self) -> None:
        expected = self._tokens(device="cpu", providers={"cpu": ("reference",)}, dtype="float32")
        got = self._tokens(dtype="float32")
        self._report.check("right: against_the_cpu", got == expected, _same(got, expected))

    def graphs(self) -> None:
        if self._options.device == "cpu":
            raise Missing("graphs are a GPU's")
        # In float32: a padded batch's products may round differently, which 16 bits would show.
        expected = self._tokens(enforce_eager=True, dtype="float32")
        got = self._tokens(record=True, dtype="float32")
        self._report.check("right: graphs", got == expected, _same(got, expected))

    def overlap(self) -> None:
        expected = self._tokens(overlap="off", dtype="float32")
        got = self._tokens(overlap="on", dtype="float32")
        self._report.check("right: overlap", got == expected, _same(got, expected))

    def crowds(self) -> None:
        """Each request alone, and among the others, with --deterministic."""
        providers = {self._options.device: ("cuda.deterministic", "cuda", "reference")}
        together = self._tokens(deterministic=True, providers=providers)
        alone: dict[str, list[int]] = {}
        for number in range(self._count):
            alone |= self._tokens(only=number, deterministic=True, providers=providers)
        self._report.check("right: crowds", alone == together, _same(alone, together))

    @property
    def _count(self) -> int:
        return 3 if self._options.small else 6

    def _tokens(
        self, *, only: int | None = None, record: bool = False, **settings: Any
    ) -> dict[str, list[int]]:
        settings = {"device": self._options.device, "providers": self._providers} | settings
        engine = Offline(self._folder, **_TINY, **settings)
        try:
            if record:
                engine.record_graphs()
            length = 6 if self._options.small else 40
            vocab = SHAPES["tiny"]["vocab_size"]
            for number, prompt in enumerate(prompts(self._count, 3, 50, vocab=vocab)):
                if only in (None, number):
                    engine.add(
                        f"r{number}", prompt, seed=number, max_tokens=length,
                        temperature=0.9 * (number % 2), top_p=0.9 if number % 4 == 3 else 1.0,
                    )  # fmt: skip
            engine.run()
            return engine.tokens
        finally:
            engine.close()


def _same(got: dict[str, list[int]], expected: dict[str, list[int]]) -> str:
    different = [name for name in expected if got.get(name) != expected[name]]
    return f"{len(expected) - len(different)} of {len(expected)} requests have the same tokens"


def _steps(shape: str, folder: Path, options: Options, ceilings: Ceilings, report: Report) -> None:
    """Decoding steps at several batches and contexts of 1000 tokens, and one long prompt."""
    small = options.small
    context, batches, long = (40, (1, 2), 60) if small else (1000, (1, 32, 256), 8192)
    engine = Offline(
        folder,
        device=options.device,
        providers={options.device: ("cuda", "reference")} if small else None,
        max_num_seqs=max(batches),
        max_num_batched_tokens=64 if small else 8192,
        max_model_len=context + 400 if small else 16384,
        kv_memory=(8 << 20) if small else None,
        itl_target=0.0,
        prefix_caching=False,
    )
    try:
        began = time.perf_counter()
        engine.record_graphs()
        report.figure(f"{shape}: recording graphs", time.perf_counter() - began, "s")
        if options.device != "cpu":
            _memory(shape, engine, report)
        for batch in batches:
            _decoding(shape, engine, batch, context, ceilings, options, report)
        _prompt(shape, engine, long, ceilings, report)
    finally:
        engine.close()


def _memory(shape: str, engine: Offline, report: Report) -> None:
    """What was planned for, against what is taken: all of a step's temporaries are not there now,
    so at most as much, and the weights and the cache at least."""
    free, total = torch.cuda.mem_get_info()
    parts = engine.capacity.memory
    held = total - free - parts["others"]
    least = parts["weights"] + parts["kv_cache"]
    most = least + sum(parts[n] for n in ("activations", "outside_allocator", "graphs_reserved"))
    report.check(
        f"{shape}: memory is as planned",
        0.97 * least <= held <= 1.03 * most,
        f"{held / 2**30:.2f} GiB, planned {least / 2**30:.2f} to {most / 2**30:.2f}",
    )


def _decoding(
    shape: str, engine: Offline, batch: int, context: int, ceilings: Ceilings, options: Options,
    report: Report,
) -> None:  # fmt: skip
    steps = 6 if options.small else 100
    vocab = SHAPES[shape]["vocab_size"]
    for number, prompt in enumerate(prompts(batch, context, context, vocab=vocab, seed=batch)):
        engine.add(f"{batch}-{number}", prompt, max_tokens=steps + 80, temperature=0.0)
    while not all(engine.tokens[f"{batch}-{n}"] for n in range(batch)):
        engine.step()
    for _ in range(4):
        engine.step()
    times = []
    for _ in range(steps):
        began = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - began)
    report.attempt(
        f"{shape}: exposed host time at {batch}",
        lambda: _exposed(f"{shape}: exposed host time at {batch}", engine, options, report),
    )
    engine.abort_all()
    step = statistics.median(times)
    moved = weight_bytes_read(shape) + batch * context * kv_bytes_per_token(shape)
    report.figure(
        f"{shape}: a step of {batch} at {context}", step * 1e3, "ms",
        share=moved / ceilings.bandwidth / step, of="the floor by bytes read",
    )  # fmt: skip


def _exposed(name: str, engine: Offline, options: Options, report: Report) -> None:
    """The share of some steps in which the GPU had nothing to do."""
    if options.device == "cpu":
        raise Missing("it is a GPU's")
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        began = time.perf_counter()
        for _ in range(20):
            engine.step()
        torch.cuda.synchronize()
        took = time.perf_counter() - began
    busy = sum(event.self_device_time_total for event in seen.key_averages()) / 1e6
    report.figure(name, max(0.0, 1 - busy / took), "of the time")
    report.figure(f"{name}, ms", max(0.0, took - busy) / 20 * 1e3, "ms")


def _prompt(shape: str, engine: Offline, length: int, ceilings: Ceilings, report: Report) -> None:
    vocab = SHAPES[shape]["vocab_size"]
    times = []
    for attempt, prompt in enumerate(prompts(3, length, length, vocab=vocab, seed=9)):
        engine.add(f"long{attempt}", prompt, max_tokens=1, temperature=0.0)
        times.append(engine.run())
    took = min(times)
    c = SHAPES[shape]
    products = weight_bytes_read(shape) - 2 * c["hidden_size"] * c["vocab_size"]
    attention = 2 * length * length * c["num_attention_heads"] * c["head_dim"]
    flops = products * length + c["num_hidden_layers"] * attention
    report.figure(
        f"{shape}: a prompt of {length}", took * 1e3, "ms",
        share=flops / took / ceilings.flops, of="the measured product",
    )  # fmt: skip
