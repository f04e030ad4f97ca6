"""`octavo bench ratios`: what continuous batching and prefix caching are worth on one server,
each as a ratio of two figures measured in the same run."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .asking import first_model
from .lengths import fixed
from .report import Report
from .run import Target, measure, run
from .workload import Asking, Workload

_STREAMS = 32
_PREFIX_TOKENS = 900


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="octavo bench ratios", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--base-url", default="http://127.0.0.1:8000", metavar="URL")
    parser.add_argument("--model", help="a served name; unset: the first the server lists")
    parser.add_argument("--api-key")
    parser.add_argument("--rounds", type=int, default=3, help="the median of so many counts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, too")
    chosen = parser.parse_args(words)
    figures = run(_measure(chosen.base_url, chosen.model, chosen.api_key, chosen.rounds))
    for name, figure in figures.items():
        sys.stdout.write(f"{name:<44} {figure:.3g}\n")
    if chosen.json is not None:
        machine = {"machine": platform.processor() or platform.machine()}
        chosen.json.write_text(json.dumps({**machine, **figures}, indent=1) + "\n")
    return 0


async def _measure(
    url: str, model: str | None, api_key: str | None, rounds: int
) -> dict[str, float]:
    model = model or await first_model(url, api_key)
    target = Target(base_url=url, asking=Asking(model=model), api_key=api_key)
    one = Workload(requests=4, concurrency=1, prompt_tokens=fixed(64), output_tokens=fixed(128))
    many = replace(one, requests=2 * _STREAMS, concurrency=_STREAMS)

    async def rate(workload: Workload, seed: int) -> float:
        measured = await measure([replace(workload, seed=seed)], target)
        report = Report.of(measured.all, seconds=measured.seconds)
        if report.errors:
            raise SystemExit(f"octavo bench: {report.errors} requests failed: {report.first_error}")
        return report.output_tokens_per_second

    await rate(replace(many, requests=_STREAMS), -1)  # warm-up
    single = statistics.median([await rate(one, seed) for seed in range(rounds)])
    batched = statistics.median([await rate(many, seed) for seed in range(rounds)])
    first, again = [], []
    for seed in range(rounds):
        cold, *warm = await _ttfts(target, seed)
        first.append(cold)
        again.append(statistics.median(warm))
    return {
        "output tokens/s, 1 stream": single,
        f"output tokens/s, {_STREAMS} streams": batched,
        "batching: many streams over one": batched / single,
        f"TTFT ms, {_PREFIX_TOKENS}-token prefix, first": statistics.median(first) * 1e3,
        f"TTFT ms, {_PREFIX_TOKENS}-token prefix, cached": statistics.median(again) * 1e3,
        "prefix caching: cached over first": statistics.median(again) / statistics.median(first),
    }


async def _ttfts(target: Target, seed: int) -> list[float]:
    """Seconds to the first token of four prompts with one long shared prefix, one by one."""
    shared = Workload(
        requests=4,
        concurrency=1,
        prompt_tokens=fixed(_PREFIX_TOKENS + 16),
        output_tokens=fixed(4),
        shared_prefix=_PREFIX_TOKENS,
        seed=1000 + seed,
    )
    return [exchange.ttft for exchange in (await measure([shared], target)).all]
