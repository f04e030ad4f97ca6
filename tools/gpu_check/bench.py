"""Block `bench`: throughput without a front end, and Hugging Face's on the same machine."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .ceilings import measure
from .models import SHAPES, Offline, folder_of, kv_bytes_per_token, prompts, weight_bytes_read
from .report import Missing, Options, Report


def run(options: Options, report: Report) -> None:
    with tempfile.TemporaryDirectory() as parent:
        nano = "tiny" if options.small else "qwen3-0.6b"
        large = "tiny" if options.small else "llama-3.1-8b"
        bench = _Bench(Path(parent), options, report)
        report.attempt("nano-vllm's load", lambda: bench.nano(nano))
        report.attempt("1000/1000", lambda: bench.thousand(large))
        report.attempt("1000/1000, fp8", lambda: bench.thousand(large, quantization="fp8"))
        report.attempt("--deterministic", lambda: bench.nano(nano, deterministic=True))
        report.attempt("HF generate", lambda: _generate(nano, options, report))
        report.attempt("HF continuous batching", lambda: _continuous(nano, options, report))


def nano_load(small: bool, vocab: int) -> tuple[list[list[int]], list[int]]:
    """Prompts and output lengths as nano-vllm's benchmark draws them: 256 requests, lengths uniform
    in 100 to 1024, seed 0."""
    draw = random.Random(0)
    count, low, high = (4, 4, 12) if small else (256, 100, 1024)
    given = [
        [draw.randint(0, min(10_000, vocab - 1)) for _ in range(draw.randint(low, high))]
        for _ in range(count)
    ]
    return given, [draw.randint(low, high) for _ in range(count)]


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

    def nano(self, shape: str, **settings: Any) -> None:
        given, outputs = nano_load(self._options.small, SHAPES[shape]["vocab_size"])
        work = list(zip(given, outputs, strict=True))
        took = self._run(shape, work, length=4096, temperature=0.6, settings=settings)
        name = f"nano-vllm's load, {shape}"
        self._told(f"{name}{_said(settings)}", shape, work, took)

    def thousand(self, shape: str, **settings: Any) -> None:
        count, length = (2, 20) if self._options.small else (256, 1000)
        vocab = SHAPES[shape]["vocab_size"]
        work = [(prompt, length) for prompt in prompts(count, length, length, vocab=vocab)]
        took = self._run(shape, work, length=2048, temperature=0.0, settings=settings)
        name = f"{count} requests of {length}/{length}, {shape}"
        self._told(f"{name}{_said(settings)}", shape, work, took)

    def _run(
        self,
        shape: str,
        work: list[tuple[list[int], int]],
        *,
        length: int,
        temperature: float,
        settings: Mapping[str, Any],
    ) -> float:
        small, device = self._options.small, self._options.device
        fixed = ("cuda.deterministic",) if settings.get("deterministic") else ()
        providers = {device: (*fixed, "cuda", "reference")}
        engine = Offline(
            folder_of(shape, self._parent),
            device=device,
            providers=providers if small else None,
            max_num_seqs=len(work),
            max_num_batched_tokens=64 if small else 8192,
            max_model_len=128 if small else length,
            kv_memory=(8 << 20) if small else None,
            itl_target=0.0,
            prefix_caching=False,
            **settings,
        )
        try:
            engine.record_graphs()
            engine.add("warm-up", work[0][0], max_tokens=4)
            engine.run()
            for number, (prompt, tokens) in enumerate(work):
                engine.add(
                    f"r{number}", prompt, max_tokens=tokens, temperature=temperature, seed=number
                )
            took = engine.run()
        finally:
            engine.close()
        assert [len(engine.tokens[f"r{n}"]) for n in range(len(work))] == [n for _, n in work]
        return took

    def _told(self, name: str, shape: str, work: list[tuple[list[int], int]], took: float) -> None:
        ceilings = measure(torch.device(self._options.device), small=self._options.small)
        lengths = [(len(prompt), tokens) for prompt, tokens in work]
        least = floor_seconds(shape, lengths, ceilings.bandwidth, ceilings.flops)
        tokens = sum(tokens for _, tokens in work)
        self._report.figure(
            name, tokens / took, "tokens/s", share=least / took, of="the bfloat16 floor here"
        )


def _said(settings: Mapping[str, Any]) -> str:
    return "".join(f", {key}={value}" for key, value in settings.items())


def _generate(shape: str, options: Options, report: Report) -> None:
    """transformers' `generate`, static batches of 64 of the same load, padded as it pads."""
    model, torch_device = _transformers(shape, options)
    given, outputs = nano_load(options.small, SHAPES[shape]["vocab_size"])
    size, pad = (2 if options.small else 64), 0
    useful, began = 0, time.perf_counter()
    for begin in range(0, len(given), size):
        some, wanted = given[begin : begin + size], outputs[begin : begin + size]
        longest = max(map(len, some))
        ids = torch.tensor([[pad] * (longest - len(p)) + p for p in some], device=torch_device)
        mask = torch.tensor(
            [[0] * (longest - len(p)) + [1] * len(p) for p in some], device=torch_device
        )
        with torch.inference_mode():
            model.generate(
                ids, attention_mask=mask, max_new_tokens=max(wanted), min_new_tokens=max(wanted),
                do_sample=False, pad_token_id=pad,
            )  # fmt: skip
        useful += sum(wanted)
        if time.perf_counter() - began > options.seconds / 3:
            break  # the rate is known well enough
    took = time.perf_counter() - began
    report.figure(f"HF generate, batches of {size}, {shape}", useful / took, "tokens/s")


def _continuous(shape: str, options: Options, report: Report) -> None:
    """transformers' continuous batching (`generate_batch`) on the same load."""
    if options.small:
        raise Missing("it needs a GPU")
    model, _ = _transformers(shape, options)
    if not hasattr(model, "generate_batch"):
        raise Missing("this transformers has no generate_batch")
    from transformers import GenerationConfig

    given, outputs = nano_load(options.small, SHAPES[shape]["vocab_size"])
    most = sum(outputs) // len(outputs)  # one length for all is what it takes
    config = GenerationConfig(max_new_tokens=most, do_sample=False, eos_token_id=-1, pad_token_id=0)
    began = time.perf_counter()
    model.generate_batch(inputs=given, generation_config=config)
    took = time.perf_counter() - began
    report.figure(f"HF continuous batching, {shape}", most * len(given) / took, "tokens/s")


def _transformers(shape: str, options: Options):
    try:
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError:
        raise Missing("the package transformers is not installed") from None
    numbers = {k: v for k, v in SHAPES[shape].items() if k not in ("architectures", "torch_dtype")}
    config = AutoConfig.for_model(numbers.pop("model_type"), **numbers)
    dtype = torch.float32 if options.small else torch.bfloat16
    device = torch.device(options.device)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval().to(device), device
