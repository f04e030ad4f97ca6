"""`octavo bench goals`: octavo against llama.cpp, vLLM and its own goals, in one run here and now.

Peers are optional: `peers.md` says how to install them. Missing models are made first. With
--from a result that was written before is shown again, and nothing is measured.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import machine
from ..make_model import make_model
from ..shapes import SHAPES
from .ceilings import ceilings, compute_share, decode_share
from .launches import Peers
from .measure import Found, run_plan
from .page import lines_of, svg_of, write_page
from .plan import plan
from .table import GOALS, judge

FORMAT = "octavo goals 1"
_SCENARIOS = "abcdehs"


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="octavo bench goals", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--llama-server", type=Path, metavar="PROGRAM", help="llama.cpp's server")
    parser.add_argument("--vllm-python", type=Path, metavar="PROGRAM", help="Python with vLLM")
    parser.add_argument("--transformers", type=Path, metavar="PROGRAM")
    parser.add_argument(
        "--models",
        type=Path,
        default=Path(".bench/models"),
        metavar="FOLDER",
        help="with one folder a shape (110m, 15m), and in it bf16.gguf and q4_0.gguf",
    )
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["110m", "15m"])
    parser.add_argument("--scenarios", default=_SCENARIOS, help="letters; all: %(default)s")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--flags",
        action="append",
        default=[],
        metavar="SERVER=FLAGS",
        help='more flags for one server: --flags "octavo=--threads 2"',
    )
    parser.add_argument("--host-path", type=Path, metavar="FILE", help="of tools/host_path.py")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--html", type=Path, metavar="FILE")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="the plot alone, for a README")
    parser.add_argument("--from", dest="earlier", type=Path, metavar="FILE")
    chosen = parser.parse_args(words)
    if chosen.earlier is not None:
        result = json.loads(chosen.earlier.read_text("utf-8"))
        if result.get("format") != FORMAT:
            parser.error(f"{chosen.earlier} is no result of `octavo bench goals --json`")
    else:
        result = _measured(chosen)
        if chosen.json is not None:
            chosen.json.parent.mkdir(parents=True, exist_ok=True)
            chosen.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    sys.stdout.write("\n".join(lines_of(result)) + "\n")
    if chosen.html is not None:
        write_page(result, chosen.html)
    if chosen.svg is not None:
        chosen.svg.write_text(svg_of(result), "utf-8")
    return 0


def _measured(chosen: argparse.Namespace) -> dict[str, Any]:
    peers = Peers(
        llama_server=chosen.llama_server,
        vllm_python=chosen.vllm_python,
        transformers=chosen.transformers,
        flags=dict(_flags(words) for words in chosen.flags),
    )
    head = machine.described()
    _tell("the machine's ceilings")
    ceiling = ceilings()
    found = Found()
    for stop in (signal.SIGINT, signal.SIGTERM):  # the servers must not outlive this
        signal.signal(stop, signal.default_int_handler)
    try:
        for shape in chosen.shapes:
            _measure_shape(shape, chosen, peers, found)
    except KeyboardInterrupt:
        _tell("stopped; what was measured so far counts")
    if chosen.host_path is not None:
        told = json.loads(chosen.host_path.read_text("utf-8"))
        found.values["15m", "host path", "s", "ms"].append(float(told["figures"]["host path, ms"]))
    else:
        found.missing["host path"] = "give --host-path, a result of tools/host_path.py"
    figures = found.medians
    rows = judge(GOALS, found.values, found.missing)
    return {
        "format": FORMAT,
        **head,
        "rounds": chosen.rounds,
        "peers": found.versions,
        "flags": {name: list(words) for name, words in peers.flags.items()},
        "others_cpu": max(found.others_cpu, default=0.0),
        "ceilings": ceiling,
        "shares": _shares(ceiling, figures),
        "rows": [asdict(row) for row in rows],
        "start_seconds": found.start_seconds,
        "missing": found.missing,
        "figures": {
            " | ".join(key): {"median": figures[key], "rounds": values}
            for key, values in sorted(found.values.items())
        },
    }


def _measure_shape(shape: str, chosen: argparse.Namespace, peers: Peers, found: Found) -> None:
    folder = chosen.models / shape
    if not (folder / "model.safetensors").is_file():
        _tell(f"{shape}: writing {folder}")
        make_model(SHAPES[shape], folder)
    run_plan(
        plan(shape, folder, peers),
        found,
        rounds=chosen.rounds,
        wanted=set(chosen.scenarios.lower()),
        folder=folder,
        tell=_tell,
    )


def _shares(
    ceiling: dict[str, float], figures: dict[tuple[str, str, str, str], float]
) -> dict[str, float]:
    """How near octavo comes to what the machine can do."""
    shares: dict[str, float | None] = {}
    for model in ("110m", "0.6b"):
        shape = SHAPES[model]
        tpot = figures.get((model, "octavo plain", "a", "tpot p50 s"))
        if tpot:  # without guesses weights are read once for each token
            shares[f"{model} A, decode, of memory bandwidth"] = decode_share(
                ceiling, seconds_per_token=tpot, weight_bytes=2.0 * shape.parameters
            )
        for scenario, per_output in (("b", 3.0), ("c", 3.0)):  # tokens computed for each put out
            rate = figures.get((model, "octavo", scenario, "tokens/s"))
            if rate:
                shares[f"{model} {scenario.upper()}, of the bf16 product's peak"] = compute_share(
                    ceiling, tokens_per_second=rate * per_output, parameters=shape.parameters
                )
    return {name: share for name, share in shares.items() if share is not None}


def _flags(words: str) -> tuple[str, list[str]]:
    server, _, flags = words.partition("=")
    return server, shlex.split(flags)


def _tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
