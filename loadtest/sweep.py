"""`octavo bench sweep`: the highest request rate at which a server still keeps a service level.

A closed loop finds what the server can do at all; from there the rate is halved or doubled until
one rate keeps the level and one does not, and the interval between them is bisected.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .command import measured, warm_up
from .flags import add_load, add_slo, add_target, scenario_of, slo_of, target_of
from .page import write_page
from .report import Slo
from .result import save, warnings_of
from .run import Target, run
from .scenario import Scenario

_MOST_DOUBLINGS = 10
_SETTLE_SECONDS = 0.5  # between two rates: nothing of one may run into the next


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One rate, in requests per second, and the share of its requests that kept the level."""

    rate: float
    share: float


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="octavo bench sweep", description=__doc__, allow_abbrev=False
    )
    add_target(parser)
    add_load(parser)
    add_slo(parser)
    parser.add_argument(
        "--attainment", type=float, default=0.9, help="share of requests that must keep the level"
    )
    parser.add_argument(
        "--precision", type=float, default=0.1, help="stop when the interval is this narrow"
    )
    parser.add_argument(
        "--rate-limit", type=float, default=1e4, help="try no rate above this", metavar="RATE"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the best run here")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page of it here")
    chosen = parser.parse_args(words)
    slo = slo_of(chosen)
    if slo is None:
        parser.error("give the service level: --slo-ttft SECONDS, --slo-tpot SECONDS, or both")
    if not 0 < chosen.attainment <= 1 or chosen.precision <= 0:
        parser.error("--attainment must be in (0, 1] and --precision above 0")
    try:
        scenario = scenario_of(chosen)
    except ValueError as error:
        parser.error(str(error))
    result = run(_run(chosen, scenario, slo))
    if result is None:
        sys.stdout.write("no rate kept the service level\n")
        return 1
    total = result["total"]
    sys.stdout.write(
        f"highest rate {result['rate']:.2f} requests/s: {total['within_slo']:.0%} kept the level, "
        f"goodput {total['goodput']:.2f} requests/s, "
        f"{total['output_tokens_per_second']:.1f} tokens/s\n"
    )
    sys.stderr.writelines(f"warning: {warning}\n" for warning in warnings_of(result))
    if chosen.json is not None:
        save(result, chosen.json)
    if chosen.html is not None:
        write_page([result], chosen.html)
    return 0


async def _run(chosen: argparse.Namespace, scenario: Scenario, slo: Slo) -> dict[str, Any] | None:
    target = await target_of(chosen)
    await warm_up(scenario, target, chosen.warm_up)
    results: dict[float, dict[str, Any]] = {}

    async def try_rate(rate: float) -> float:
        at_rate = scenario.at_rate(rate).seeded(chosen.seed + len(results) + 1)
        result = await measured(at_rate, target, slo)
        results[rate] = {**result, "rate": rate}
        await asyncio.sleep(_SETTLE_SECONDS)
        share = float(result["total"]["within_slo"])
        sys.stderr.write(f"{rate:8.2f} requests/s: {share:.0%} kept the level\n")
        return share

    start = await _capacity(scenario, target)
    trials = await highest_rate(
        try_rate,
        start=min(start, chosen.rate_limit),
        attainment=chosen.attainment,
        precision=chosen.precision,
        limit=chosen.rate_limit,
    )
    kept = [trial.rate for trial in trials if trial.share >= chosen.attainment]
    if not kept:
        return None
    told = [{"rate": trial.rate, "share": trial.share} for trial in trials]
    return {**results[max(kept)], "trials": told}


async def highest_rate(
    try_rate: Callable[[float], Awaitable[float]],
    *,
    start: float,
    attainment: float,
    precision: float,
    limit: float = float("inf"),
) -> list[Trial]:
    """Trials, in their order, until the highest good rate is known within `precision` of itself.

    `try_rate` returns the share of requests that kept the level at a rate.
    """
    trials = [Trial(rate=start, share=await try_rate(start))]
    good = trials[0].share >= attainment
    factor = 2.0 if good else 0.5
    for _ in range(_MOST_DOUBLINGS):
        rate = min(limit, trials[-1].rate * factor)
        if rate == trials[-1].rate:
            return trials
        trials.append(Trial(rate=rate, share=await try_rate(rate)))
        if (trials[-1].share >= attainment) != good:
            break
    else:
        return trials  # all of them kept the level, or none did
    low, high = sorted(trial.rate for trial in trials[-2:])
    while high / low > 1 + precision:
        middle = (low * high) ** 0.5
        trials.append(Trial(rate=middle, share=await try_rate(middle)))
        low, high = (middle, high) if trials[-1].share >= attainment else (low, middle)
    return trials


async def _capacity(scenario: Scenario, target: Target) -> float:
    """Requests per second of the scenario's own closed loop."""
    result = await measured(scenario, target)
    if result["total"]["errors"]:
        raise SystemExit(f"octavo bench: a request failed: {result['total']['first_error']}")
    return float(result["total"]["requests_per_second"])
