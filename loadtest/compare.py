"""`octavo bench compare A.json B.json`: two results of `octavo bench serve` side by side, and B
over A; says what else than the server differs between them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .result import load, warnings_of

_HIGHER_IS_BETTER = ("output_tokens_per_second", "requests_per_second", "goodput")
_LATENCIES = tuple((key, at) for key in ("ttft", "itl", "tpot") for at in ("p50", "p90", "p99"))


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="octavo bench compare", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("a", type=Path, metavar="A.json")
    parser.add_argument("b", type=Path, metavar="B.json")
    chosen = parser.parse_args(words)
    try:
        a, b = load(chosen.a), load(chosen.b)
    except ValueError as error:
        parser.error(str(error))
    sys.stdout.write("\n".join(compared(a, b)) + "\n")
    sys.stderr.writelines(f"warning: {text}\n" for text in differences(a, b))
    return 0


def compared(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """One figure a line: A's, B's, B over A, and which of the two is better."""
    lines = [
        f"A: {_side(a)}",
        f"B: {_side(b)}",
        f"{'':<18}{'A':>12}{'B':>12}{'B/A':>8}",
    ]
    for name, first, second, higher in _figures(a["total"], b["total"]):
        if not first or not second:
            lines.append(f"{name:<18}{first:>12.4g}{second:>12.4g}{'-':>8}")
            continue
        better = "same" if first == second else "B" if (second > first) == higher else "A"
        lines.append(f"{name:<18}{first:>12.4g}{second:>12.4g}{second / first:>8.2f}  {better}")
    return lines


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """What makes a comparison doubtful, as sentences."""
    found = []
    for what in ("cpu", "cores", "memory_gib", "instructions"):
        first, second = a["machine"].get(what), b["machine"].get(what)
        if first != second:
            found.append(f"different machines: {what} is {first} for A and {second} for B")
    for package in sorted({*a["versions"], *b["versions"]}):
        first, second = a["versions"].get(package), b["versions"].get(package)
        if first != second:
            found.append(f"different versions: {package} is {first} for A and {second} for B")
    if _load(a) != _load(b):
        found.append("different load: the two runs did not send the same requests")
    if a["slo"] != b["slo"]:
        found.append(f"different service levels: {a['slo']} for A and {b['slo']} for B")
    first_busy, second_busy = a["load_average"][0], b["load_average"][0]
    if abs(first_busy - second_busy) > max(0.5, 0.25 * max(first_busy, second_busy)):
        found.append(f"the load average was {first_busy:.1f} for A and {second_busy:.1f} for B")
    for side, result in (("A", a), ("B", b)):
        found += [f"{side}: {text}" for text in warnings_of(result)]
        if result["total"]["errors"]:
            found.append(f"{side}: {result['total']['errors']} requests failed")
    return found


def _side(result: dict[str, Any]) -> str:
    server = result["server"]
    return (
        f"{server['model']} at {server['url']} (version {server['version']}), "
        f"{result['load']['title']}, {result['date']}"
    )


def _figures(a: dict[str, Any], b: dict[str, Any]) -> Iterator[tuple[str, float, float, bool]]:
    for key in _HIGHER_IS_BETTER:
        if a[key] is not None and b[key] is not None:
            yield key.replace("_per_second", "/s").replace("_", " "), a[key], b[key], True
    for key, at in _LATENCIES:
        yield f"{key.upper()} {at} ms", a[key][at] * 1e3, b[key][at] * 1e3, False


def _load(result: dict[str, Any]) -> tuple[Any, ...]:
    load = result["load"]
    return load["workloads"], load["prompts"], load["temperature"]
