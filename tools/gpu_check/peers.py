"""Other engines on the same machine and the same load: Hugging Face's, and vLLM where it is."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from .models import SHAPES, folder_of
from .report import Missing, Options, Report

Load = list[tuple[list[int], int]]

_KNOWN_WELL = 15.0  # seconds, after which a rate is known well enough
_LONGEST = 256  # tokens of an answer of many that all are as long: their rate is known by then
_FEW = 32  # requests whose answers are not cut: how they slow down with their length is the point

# In an interpreter that has it, and perhaps not octavo: a program of its own.
_VLLM = """
import json, sys, time
from vllm import LLM, SamplingParams
asked = json.load(open(sys.argv[1]))
def main():
    llm = LLM(asked["folder"], load_format="dummy", skip_tokenizer_init=True, dtype="bfloat16",
              max_model_len=4096, max_num_seqs=256, enable_prefix_caching=False, seed=0)
    given = [{"prompt_token_ids": prompt} for prompt, _ in asked["load"]]
    params = [SamplingParams(temperature=0.6, ignore_eos=True, max_tokens=tokens, detokenize=False)
              for _, tokens in asked["load"]]
    llm.generate(given[:1], params[:1], use_tqdm=False)
    began = time.perf_counter()
    answers = llm.generate(given, params, use_tqdm=False)
    took = time.perf_counter() - began
    import vllm
    tokens = sum(len(answer.outputs[0].token_ids) for answer in answers)
    found = {"tokens": tokens, "seconds": took, "version": vllm.__version__}
    json.dump(found, open(sys.argv[2], "w"))
if __name__ == "__main__":  # it starts processes that import this file
    main()
"""


def generate(shape: str, load: Load, options: Options, report: Report) -> None:
    """transformers' `generate`, static batches of 64, padded as it pads."""
    model, device = _transformers(shape, options)
    size, pad = (2 if options.small else 64), 0
    useful, began = 0, time.perf_counter()
    for begin in range(0, len(load), size):
        some = load[begin : begin + size]
        longest, most = max(len(p) for p, _ in some), max(tokens for _, tokens in some)
        ids = torch.tensor([[pad] * (longest - len(p)) + p for p, _ in some], device=device)
        mask = torch.tensor(
            [[0] * (longest - len(p)) + [1] * len(p) for p, _ in some], device=device
        )
        with torch.inference_mode():
            made = model.generate(
                ids, attention_mask=mask, max_new_tokens=most, min_new_tokens=most,
                do_sample=False, pad_token_id=pad,
            )  # fmt: skip
        if made.shape[1] != longest + most:
            raise RuntimeError(f"it made {made.shape[1] - longest} tokens instead of {most}")
        useful += sum(tokens for _, tokens in some)
        done = min(begin + size, len(load))
        if time.perf_counter() - began > _KNOWN_WELL:
            break
    took = time.perf_counter() - began
    capped = f"{done} of {len(load)} requests" if done < len(load) else ""
    name = f"HF generate, batches of {size}, {shape}"
    report.figure(name, useful / took, "tokens/s", capped=capped)


def continuous(shape: str, load: Load, options: Options, report: Report) -> None:
    """transformers' continuous batching (`generate_batch`), which takes one length for all."""
    if options.small:
        raise Missing("it needs a GPU")
    model, _ = _transformers(shape, options)
    if not hasattr(model, "generate_batch"):
        raise Missing("this transformers has no generate_batch")
    from transformers import GenerationConfig

    whole = sum(tokens for _, tokens in load) // len(load)
    most = whole if len(load) <= _FEW else min(whole, _LONGEST)
    capped = f"answers of {most} tokens, of {whole}" if most < whole else ""
    wanted = {"max_new_tokens": most, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
    config = GenerationConfig.from_dict(wanted)
    began = time.perf_counter()
    answers = model.generate_batch(inputs=[prompt for prompt, _ in load], generation_config=config)
    took = time.perf_counter() - began
    # What failed in its thread it logs, and leaves out.
    tokens = sum(len(answer.generated_tokens) for answer in answers.values())
    if tokens < 0.99 * most * len(load):
        raise RuntimeError(f"it made {tokens} tokens of {most * len(load)}")
    name = f"HF continuous batching, {len(load)} requests, {shape}"
    report.figure(name, tokens / took, "tokens/s", capped=capped)


def vllm(shape: str, load: Load, options: Options, report: Report) -> None:
    """vLLM in a process of its own."""
    python = options.vllm_python
    if python is None:
        if importlib.util.find_spec("vllm") is None:
            raise Missing("vLLM is not installed here; --vllm-python names an interpreter with it")
        python = sys.executable
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent)
        asked, found, program = folder / "asked.json", folder / "found.json", folder / "run.py"
        asked.write_text(json.dumps({"folder": str(folder_of(shape, folder)), "load": load}))
        program.write_text(_VLLM)
        done = subprocess.run(
            [python, program, asked, found],
            capture_output=True, text=True, check=False, timeout=max(30.0, options.left),
        )  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError(done.stderr[-800:])
        told: dict[str, Any] = json.loads(found.read_text())
    wanted = sum(tokens for _, tokens in load)
    if told["tokens"] != wanted:
        raise RuntimeError(f"it made {told['tokens']} tokens instead of {wanted}")
    print(f"  vLLM {told['version']}", flush=True)
    report.figure(f"vLLM, {shape}", told["tokens"] / told["seconds"], "tokens/s")


def _transformers(shape: str, options: Options) -> tuple[Any, torch.device]:
    """A model with random weights, and where it is."""
    try:
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError:
        raise Missing("the package transformers is not installed") from None
    numbers = {k: v for k, v in SHAPES[shape].items() if k not in ("architectures", "torch_dtype")}
    # 64 answers of one length: none may end before.
    numbers["eos_token_id"] = None
    config = AutoConfig.for_model(numbers.pop("model_type"), **numbers)
    dtype = torch.float32 if options.small else torch.bfloat16
    device = torch.device(options.device)
    with device:
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
    return model.eval().to(device), device
