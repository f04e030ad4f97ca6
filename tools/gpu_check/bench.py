"""Block `bench`: throughput without a front end, and Hugging Face's on the same machine."""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path

import torch

from .ceilings import measure
from .models import SHAPES, Offline, folder_of, kv_bytes_per_token, prompts, weight_bytes_read
from .report import Missing, Options, Report


def run(options: Options, report: Report) -> None:
    with tempfile.TemporaryDirectory() as parent:
        nano = "tiny" if options.small else "qwen3-0.6b"
        report.attempt("nano-vllm's load", lambda: _nano(nano, Path(parent), options, report))
        report.attempt("HF generate", lambda: _generate(nano, options, report))
        report.attempt("HF continuous batching", lambda: _continuous(nano, options, report))
        large = "tiny" if options.small else "llama-3.1-8b"
        report.attempt("8B 1000/1000", lambda: _thousand(large, Path(parent), options, report))


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


def _nano(shape: str, parent: Path, options: Options, report: Report) -> None:
    given, outputs = nano_load(options.small, SHAPES[shape]["vocab_size"])
    device = torch.device(options.device)
    engine = _engine(shape, parent, options, seqs=len(given), length=4096)
    try:
        engine.record_graphs()
        engine.add("warm-up", given[0], max_tokens=4)
        engine.run()
        for number, (prompt, length) in enumerate(zip(given, outputs, strict=True)):
            engine.add(f"r{number}", prompt, max_tokens=length, temperature=0.6, seed=number)
        took = engine.run()
    finally:
        engine.close()
    assert [len(engine.tokens[f"r{n}"]) for n in range(len(given))] == outputs
    ceilings = measure(device, small=options.small)
    lengths = [(len(p), n) for p, n in zip(given, outputs, strict=True)]
    least = floor_seconds(shape, lengths, ceilings.bandwidth, ceilings.flops)
    report.figure(
        f"nano-vllm's load, {shape}", sum(outputs) / took, "tokens/s",
        share=least / took, of="the floor on this machine",
    )  # fmt: skip


def _thousand(shape: str, parent: Path, options: Options, report: Report) -> None:
    count, length = (2, 20) if options.small else (256, 1000)
    engine = _engine(shape, parent, options, seqs=count, length=2048)
    try:
        engine.record_graphs()
        vocab = SHAPES[shape]["vocab_size"]
        for number, prompt in enumerate(prompts(count, length, length, vocab=vocab)):
            engine.add(f"r{number}", prompt, max_tokens=length, temperature=0.0)
        took = engine.run()
    finally:
        engine.close()
    ceilings = measure(torch.device(options.device), small=options.small)
    least = floor_seconds(shape, [(length, length)] * count, ceilings.bandwidth, ceilings.flops)
    report.figure(
        f"{count} requests of {length}/{length}, {shape}", count * length / took, "tokens/s",
        share=least / took, of="the floor on this machine",
    )  # fmt: skip


def _engine(shape: str, parent: Path, options: Options, *, seqs: int, length: int) -> Offline:
    small = options.small
    return Offline(
        folder_of(shape, parent),
        device=options.device,
        providers={options.device: ("cuda", "reference")} if small else None,
        max_num_seqs=seqs,
        max_num_batched_tokens=64 if small else 8192,
        max_model_len=128 if small else length,
        kv_memory=(8 << 20) if small else None,
        itl_target=0.0,
        prefix_caching=False,
    )


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
