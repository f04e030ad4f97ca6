"""The GPU's checks without a GPU: they say so, fall over nothing, and judge as they should."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from ..fakes import attention_libraries

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(ROOT))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "tools"]:
        del sys.modules[name]


def module(name: str) -> ModuleType:
    return importlib.import_module(f"tools.gpu_check.{name}")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("block", ["kernels", "steps", "bench", "server"])
def test_without_a_gpu_a_block_says_so(block: str, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    assert module("__main__").alone(block, "cuda", path) == 0
    entries = json.loads(path.read_text())
    assert entries["block"]["not_run"].startswith("no CUDA device: ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_no_goal_is_claimed() -> None:
    reason = {"block": {"not_run": "no CUDA device"}}
    rows = module("goals").verdicts(dict.fromkeys(("kernels", "steps", "bench", "server"), reason))
    assert len(rows) == len(module("goals").GOALS) + 1
    assert all(
        figure == "-" and verdict.startswith("not run: ") for *_, figure, verdict in rows[1:]
    )


def test_goals_are_met_missed_or_not_run_with_the_reason_that_is_known() -> None:
    blocks = {
        "bench": {
            "nano-vllm's load, qwen3-0.6b": {"value": 22_000.0, "unit": "tokens/s", "share": 0.61},
            "HF generate, batches of 64, qwen3-0.6b": {"value": 1000.0, "unit": "tokens/s"},
            "HF continuous batching, qwen3-0.6b": {"failed": "AttributeError: no"},
        },
        "steps": {"llama-3.1-8b: a step of 1 at 1000": {"value": 9.0, "unit": "ms", "share": 0.5}},
        "kernels": {"times: flash3": {"not_run": "FlashAttention-3 is not installed"}},
    }
    judged = {row[0]: row[2:] for row in module("goals").verdicts(blocks)}
    assert judged["nano-vllm's load, Qwen3-0.6B: share of the floor"] == ("0.61", "met")
    assert judged["against HF generate, 0.6B, times"] == ("22", "met")
    assert judged["8B decode step at 1k, share of the floor, B=1"] == ("0.5", "MISSED")
    assert judged["against HF continuous batching, 0.6B, times"] == (
        "-",
        "not run: AttributeError: no",
    )
    assert "no such figure" in judged["0.6B decode step, B=1, ms"][1]
    slower = {"steps": {"qwen3-0.6b: a step of 1 at 1000": {"value": 1.2, "unit": "ms"}}}
    judged = {row[0]: row[3] for row in module("goals").verdicts(slower)}
    assert judged["0.6B decode step, B=1, ms"] == "MISSED"


def test_goals_name_parts_that_there_are() -> None:
    """Else a figure that is missing would be told without its reason."""
    bench, times = module("bench"), module("kernel_times")
    shapes = {"small": "qwen3-0.6b", "large": "llama-3.1-8b"}
    ours = times.KernelTimes(None, torch.device("cpu"), None, True, None)
    parts = {
        "bench": {part.name.format(**shapes) for part in bench.PARTS},
        "kernels": {f"times: {work.__name__}" for work in ours.all},
    }
    named = [(goal.block, part) for goal in module("goals").GOALS for part in goal.made_by]
    assert len(named) > 10
    for block, part in named:
        assert part in parts.get(block, {part}), part


def test_the_load_and_its_floor_are_those_that_are_published() -> None:
    """nano-vllm's own numbers of tokens, and the floor worked out for 4.3 TB/s and 790 TFLOP/s."""
    bench = module("bench")
    lengths = [(len(prompt), tokens) for prompt, tokens in bench.nano_load(False, 151_936)]
    assert [sum(column) for column in zip(*lengths, strict=True)] == [142_827, 133_966]
    least = bench.floor_seconds("qwen3-0.6b", lengths, 4.3e12, 790e12)
    assert least == pytest.approx(3.7, abs=0.15)


def test_one_command_takes_less_than_25_minutes_and_a_block_no_more_than_8() -> None:
    main, bench = module("__main__"), module("bench")
    assert sum(main.BLOCKS.values()) < 25 * 60
    assert max(main.BLOCKS.values()) <= 8 * 60
    assert sum(part.seconds for part in bench.PARTS) <= main.BLOCKS["bench"] - main.SPARE


def test_a_part_that_takes_longer_costs_the_last_ones_their_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, module_ = module("bench"), module("report")
    done: list[str] = []
    options = module_.Options(device="cpu", small=False, seconds=100.0)

    def takes(name: str, seconds: float) -> None:
        done.append(name)
        object.__setattr__(options, "began", options.began - seconds)
        if name == "b":
            raise RuntimeError("of no use")

    parts = (("a", 20.0, 30.0), ("b", 30.0, 30.0), ("c", 50.0, 0.0), ("d", 25.0, 0.0))
    monkeypatch.setattr(
        bench,
        "PARTS",
        [
            bench.Part(name, least, lambda _, n=name, t=took: takes(n, t))
            for name, least, took in parts
        ],
    )
    monkeypatch.setattr(bench, "_Bench", lambda *_: SimpleNamespace(small="s", large="l"))
    report = module_.Report(tmp_path / "found.json")
    bench.run(options, report)
    assert done == ["a", "b", "d"]
    assert report.entries["b"]["failed"] == "RuntimeError: of no use"
    assert "takes about 50 s" in report.entries["c"]["not_run"]


def test_what_was_left_out_of_a_load_is_told(tmp_path: Path) -> None:
    module_ = module("report")
    report = module_.Report(tmp_path / "found.json")
    report.figure("other", 3.0, "tokens/s", capped="64 of 256 requests")
    entry = json.loads(report.path.read_text())["other"]
    assert entry["capped"] == "64 of 256 requests"
    assert module_.told(entry) == "3 tokens/s [64 of 256 requests]"


def test_make_passes_the_block_on() -> None:
    made = subprocess.run(
        ["make", "-n", "-o", ".venv/.test-ready", "gpu-check", "BLOCK=steps", "ARGS=--device cpu"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    # A make within a make says where it is, too.
    (line,) = [line for line in made.stdout.splitlines() if "gpu_check" in line]
    assert line.endswith("-m tools.gpu_check --block steps --device cpu")


def test_shapes_have_the_published_sizes() -> None:
    models = module("models")
    assert models.weight_bytes_read("qwen3-0.6b") == pytest.approx(1.19e9, rel=0.01)
    assert models.weight_bytes_read("llama-3.1-8b") == pytest.approx(15.0e9, rel=0.01)
    assert models.kv_bytes_per_token("qwen3-0.6b") == 112 << 10
    assert models.kv_bytes_per_token("llama-3.1-8b") == 128 << 10


def test_what_goes_wrong_is_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    module_ = module("report")
    report = module_.Report(tmp_path / "found.json")

    def broken() -> None:
        raise ValueError("of no use")

    def lacking() -> None:
        raise module_.Missing("the package x is not installed")

    report.attempt("first", broken)
    report.attempt("second", lacking)
    report.figure("third", 2.0, "ms", share=0.5, of="the floor")
    report.check("fourth", False, "1 of 2")
    found = json.loads(report.path.read_text())
    assert found["first"]["failed"] == "ValueError: of no use"
    assert found["second"] == {"not_run": "the package x is not installed"}
    assert module_.told(found["third"]) == "2 ms (0.50 of the floor)"
    assert module_.told(found["fourth"]) == "WRONG 1 of 2"


def test_a_block_that_is_killed_has_told_what_it_had_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = module("__main__")

    def killed(command: list[str], **_: object) -> None:
        out = Path(command[command.index("--json") + 1])
        module("report").Report(out).figure("early", 1.0, "s")
        raise subprocess.TimeoutExpired(command, 1)

    monkeypatch.setattr(main.subprocess, "run", killed)
    entries = main._in_a_process("kernels", "cuda", tmp_path / "all.json")
    assert entries["early"] == {"value": 1.0, "unit": "s"}
    assert "it was ended after" in entries["block"]["failed"]


def test_what_an_absent_package_has_can_be_made_but_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module("absent").stand_in("no_such_package", "no_such_package.inner", "json")
    try:
        from no_such_package import Thing  # type: ignore[import-not-found]
        from no_such_package.inner import Other  # type: ignore[import-not-found]

        for absent in (Thing, Other):
            with pytest.raises(ModuleNotFoundError, match="is not installed"):
                absent(1).use()
        assert json.loads("1") == 1
    finally:
        del sys.modules["no_such_package"], sys.modules["no_such_package.inner"]


def test_a_daemon_whose_packages_are_only_stood_in_for_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, path = module("server"), tmp_path / "found.json"
    module("absent").stand_in("no_such_package")
    monkeypatch.setattr(server, "_NEEDED", ("no_such_package", "pytest", "nor_this_one"))
    try:
        server.run(
            module("report").Options(device="cpu", small=True, seconds=60.0),
            module("report").Report(path),
        )
    finally:
        del sys.modules["no_such_package"]
    reason = json.loads(path.read_text())["a rate sweep"]["not_run"]
    assert reason == "the daemon needs no_such_package, nor_this_one, not installed here"


def test_libraries_are_asked_as_they_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And compute the same as our own kernels."""
    pytest.importorskip("triton")
    flash = attention_libraries.as_module(
        "flash_attn_interface",
        flash_attn_with_kvcache=attention_libraries.flash_attn_with_kvcache,
    )
    infer = attention_libraries.as_module(
        "flashinfer",
        BatchPrefillWithPagedKVCacheWrapper=attention_libraries.BatchPrefillWithPagedKVCacheWrapper,
    )
    for library in (flash, infer):
        monkeypatch.setitem(sys.modules, library.__name__, library)
    times, device = module("kernel_times"), torch.device("cpu")
    ops = times.registry.resolve(device, {"cpu": ("cuda", "reference")})
    ceilings = module("ceilings").Ceilings(bandwidth=1.0, flops=1.0)
    report = module("report").Report(tmp_path / "found.json")
    bench = times.KernelTimes(ops, device, ceilings, True, report)
    bench.flash3()
    bench.flashinfer()
    assert [entry["passed"] for entry in report.entries.values() if "passed" in entry] == [True] * 4


def test_continuous_batching_is_asked_as_transformers_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.generation.continuous_batching import ContinuousMixin

    peers, Answer = module("peers"), SimpleNamespace

    class Model:
        made = 8

        def generate_batch(self, *args: Any, **settings: Any) -> dict[str, Any]:
            inspect.signature(ContinuousMixin.generate_batch).bind(self, *args, **settings)
            assert settings["generation_config"].max_new_tokens == 8
            tokens = [0] * self.made
            return {str(n): Answer(generated_tokens=tokens) for n in range(len(settings["inputs"]))}

    model = Model()
    monkeypatch.setattr(peers, "_transformers", lambda *_: (model, torch.device("cpu")))
    options = module("report").Options(device="cuda", small=False, seconds=60)
    report = module("report").Report(tmp_path / "found.json")
    load = [([1, 2], 6), ([3], 10)]
    peers.continuous("tiny", load, options, report)
    assert report.entries["HF continuous batching, 2 requests, tiny"]["value"] > 0
    model.made = 3  # it logs what fails, and gives the rest
    with pytest.raises(RuntimeError, match="6 tokens of 16"):
        peers.continuous("tiny", load, options, report)
    monkeypatch.setattr(peers, "_FEW", 1)
    monkeypatch.setattr(peers, "_LONGEST", 8)
    model.made = 8
    peers.continuous("tiny", [([1], 30), ([2], 20)], options, report)
    entry = report.entries["HF continuous batching, 2 requests, tiny"]
    assert entry["capped"] == "answers of 8 tokens, of 25"


def test_vllm_is_asked_in_an_interpreter_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vllm.py").write_text(
        "from dataclasses import dataclass\n"
        "from types import SimpleNamespace as Some\n"
        "__version__ = '0'\n"
        "@dataclass\n"
        "class SamplingParams:\n"
        "    temperature: float\n"
        "    ignore_eos: bool\n"
        "    max_tokens: int\n"
        "    detokenize: bool\n"
        "class LLM:\n"
        "    def __init__(self, model, **settings):\n"
        "        assert settings['load_format'] == 'dummy', settings\n"
        "    def generate(self, prompts, params, use_tqdm):\n"
        "        pairs = zip(prompts, params, strict=True)\n"
        "        made = [given['prompt_token_ids'][:1] * p.max_tokens for given, p in pairs]\n"
        "        return [Some(outputs=[Some(token_ids=ids)]) for ids in made]\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    peers, Options = module("peers"), module("report").Options
    options = Options(device="cuda", small=False, seconds=60, vllm_python=sys.executable)
    report = module("report").Report(tmp_path / "found.json")
    peers.vllm("tiny", [([1, 2], 6), ([3], 10)], options, report)
    assert report.entries["vLLM, tiny"]["value"] > 0
    nowhere = Options(device="cuda", small=False, seconds=60)
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(module("report").Missing, match="--vllm-python names"):
        peers.vllm("tiny", [([1], 1)], nowhere, report)


def test_what_the_time_does_not_suffice_for_says_so_and_can_be_run_alone(tmp_path: Path) -> None:
    module_ = module("report")
    options = module_.Options(device="cuda", small=False, seconds=100)
    report = module_.Report(tmp_path / "found.json", only="second")
    done: list[str] = []

    def work(name: str, seconds: float) -> None:
        options.need(seconds)
        done.append(name)

    for name, seconds in {"first": 5.0, "second": 50.0, "the second's": 500.0}.items():
        report.attempt(name, partial(work, name, seconds))
    assert done == ["second"]
    assert "first" not in report.entries
    assert "--only runs it by itself" in report.entries["the second's"]["not_run"]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton does not interpret beside a GPU")
def test_all_blocks_run_on_a_cpu_with_tiny_models(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    path = tmp_path / "found.json"
    done = subprocess.run(
        [sys.executable, "-m", "tools.gpu_check", "--device", "cpu", "--json", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    blocks = json.loads(path.read_text())["blocks"]
    assert set(blocks) == {"kernels", "steps", "bench", "server"}
    assert all(blocks[block] and "block" not in blocks[block] for block in blocks)
    assert blocks["steps"]["right: crowds"]["passed"]
    assert "no goal is judged" in done.stdout
