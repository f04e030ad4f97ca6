"""python -m tools.gpu_check [--block kernels --block steps ...] [--json FILE] [--device cuda|cpu]

From the repository's root; without an installed octavo with PYTHONPATH=src.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .report import Options, Report, table, told

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = {
    "kernels": 300,
    "steps": 420,
    "bench": 480,
    "server": 240,
}  # seconds each may take: 24 min
SPARE = 15  # of them, for beginning and end


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="gpu_check", description=__doc__)
    parser.add_argument(
        "--block", action="append", choices=BLOCKS, help="only this; may be repeated"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--json", type=Path, help="where the results go, merged with what is there")
    parser.add_argument("--only", default="", help="parts of blocks whose name has this in it")
    parser.add_argument("--vllm-python", help="an interpreter that has vLLM, to measure beside")
    parser.add_argument("--alone", help=argparse.SUPPRESS)  # a block, in this process
    chosen = parser.parse_args(words)
    path = chosen.json or _default_path(chosen.device)
    if chosen.alone:
        return alone(chosen.alone, chosen.device, path, chosen.only, chosen.vllm_python)
    results = _merged(path)
    results |= {"date": _now(), "machine": machine(chosen.device)}
    for block in chosen.block or BLOCKS:
        print(f"{block}:", flush=True)
        began = time.monotonic()
        further = [f"--only={chosen.only}"]
        further += [f"--vllm-python={chosen.vllm_python}"] if chosen.vllm_python else []
        found = _in_a_process(block, chosen.device, path, further)
        blocks = results.setdefault("blocks", {})
        blocks[block] = (blocks.get(block, {}) if chosen.only else {}) | found
        print(f"  ({time.monotonic() - began:.0f} s)", flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    show(results)
    print(f"\n{path}")
    wrong = [e for block in results["blocks"].values() for e in block.values() if _is_wrong(e)]
    return 1 if wrong else 0


def alone(
    block: str, device: str, path: Path, only: str = "", vllm_python: str | None = None
) -> int:
    """One block in this process; its entries go to `path` as they come."""
    from .absent import stand_in

    report = Report(path, only)
    if device == "cuda":
        reason = _lack_of_gpu()
        if reason is not None:
            report.not_run("block", reason)
            return 0
    stand_in("llguidance", "llguidance.numpy", "msgspec")
    options = Options(
        device=device,
        small=device == "cpu",
        seconds=BLOCKS[block] - SPARE,
        vllm_python=vllm_python,
    )
    try:
        importlib.import_module(f".{block}", __package__).run(options, report)
    except Exception as error:  # before any of its parts could
        report.failed("block", error)
    return 0


def _lack_of_gpu() -> str | None:
    from octavo.engine.device import pick_device
    from octavo.engine.errors import ConfigError

    try:
        pick_device("cuda")
    except ConfigError as error:
        return f"no CUDA device: {str(error).removeprefix('--device cuda: ').split(';')[0]}"
    return None


def _in_a_process(
    block: str, device: str, path: Path, further: Sequence[str] = ()
) -> dict[str, Any]:
    """What a block found before it ended, or was ended."""
    own = path.with_name(f".{path.stem}-{block}.json")
    own.parent.mkdir(parents=True, exist_ok=True)
    own.unlink(missing_ok=True)
    command = [sys.executable, "-m", __package__ or "tools.gpu_check", "--alone", block, *further]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    if device == "cpu":
        environment["TRITON_INTERPRET"] = "1"
    ended: dict[str, Any] = {}
    try:
        done = subprocess.run(
            [*command, "--device", device, "--json", str(own)],
            cwd=ROOT, env=environment, check=False, timeout=BLOCKS[block],
        )  # fmt: skip
        if done.returncode != 0:
            ended = {"failed": f"its process ended with {done.returncode}"}
    except subprocess.TimeoutExpired:
        ended = {"failed": f"it was ended after {BLOCKS[block]} s; what it had found by then stays"}
    entries: dict[str, Any] = json.loads(own.read_text("utf-8")) if own.exists() else {}
    own.unlink(missing_ok=True)
    if ended:
        entries["block"] = ended
        print(f"  {told(ended)}", flush=True)
    return entries


def machine(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    from octavo.loadtest.machine import described

    found = described()
    versions = dict(found["versions"])  # type: ignore[call-overload]
    for package in ("triton", "flashinfer", "transformers"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    import torch

    gpu = None
    if device == "cuda" and torch.cuda.is_available():
        gpu = {
            "name": torch.cuda.get_device_name(),
            "memory": torch.cuda.mem_get_info()[1],
            "cuda": torch.version.cuda,
            "capability": list(torch.cuda.get_device_capability()),
        }
    return {"device": device, "gpu": gpu, "host": found["machine"], "versions": versions}


def show(results: dict[str, Any]) -> None:
    """The figures, then the goals."""
    from .goals import verdicts

    rows: list[tuple[str, ...]] = [("block", "what", "found")]
    for block, entries in results["blocks"].items():
        rows += [(block, name, told(entry)[:100]) for name, entry in entries.items()]
    print("\n" + table(rows))
    if results["machine"]["device"] == "cuda":
        print("\n" + table(verdicts(results["blocks"])))
    else:
        print("\nA dry run on a CPU: its figures say nothing of any GPU, and no goal is judged.")


def _is_wrong(entry: dict[str, Any]) -> bool:
    return "failed" in entry or entry.get("passed") is False


def _merged(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and "blocks" in found else {}


def _default_path(device: str) -> Path:
    name = f"{_now()[:10]}-gpu-check{'' if device == 'cuda' else '-dry-run'}.json"
    return ROOT / "loadtest" / "results" / name


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
