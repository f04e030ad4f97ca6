"""`octavo bench serve`: a workload against any OpenAI-compatible server, from the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .asking import server_version
from .flags import Bar, add_load, add_slo, add_target, scenario_of, slo_of, target_of
from .page import write_page
from .report import Slo
from .result import lines_of, result_of, save, warnings_of
from .run import Target, measure, run
from .scenario import Scenario


def main(words: Sequence[str]) -> int:
    """Run one workload and print its report; the exit status is 1 when a request failed."""
    parser = argparse.ArgumentParser(
        prog="octavo bench serve", description=__doc__, allow_abbrev=False
    )
    add_target(parser)
    add_load(parser)
    add_slo(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here, too")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with plots here")
    chosen = parser.parse_args(words)
    try:
        scenario = scenario_of(chosen)
    except ValueError as error:
        parser.error(str(error))
    for workload in scenario.workloads:
        if workload.requests < 1 or workload.concurrency < 1:
            parser.error("--requests and --concurrency must be 1 or more")
    result = run(_run(chosen, scenario))
    sys.stdout.write("\n".join(lines_of(result)) + "\n")
    sys.stderr.writelines(f"warning: {warning}\n" for warning in warnings_of(result))
    if chosen.json is not None:
        save(result, chosen.json)
    if chosen.html is not None:
        write_page([result], chosen.html)
    return 1 if result["total"]["errors"] else 0


async def _run(chosen: argparse.Namespace, scenario: Scenario) -> dict[str, Any]:
    target = await target_of(chosen)
    await warm_up(scenario, target, chosen.warm_up)
    return await measured(scenario, target, slo_of(chosen), Bar(scenario.requests))


async def warm_up(scenario: Scenario, target: Target, requests: int) -> None:
    """A few requests like the first workload's, with prompts that nothing later has."""
    if requests < 1:
        return
    first = replace(scenario.workloads[0], requests=requests, rate=None, seed=-1)
    await measure([first], target)


async def measured(
    scenario: Scenario, target: Target, slo: Slo | None = None, bar: Bar | None = None
) -> dict[str, Any]:
    """Run a scenario once; the result as JSON has it."""
    found = await measure(scenario.workloads, target, on_done=None if bar is None else bar.advance)
    version = await server_version(target)
    return result_of(scenario, found, target=target, slo=slo, server=version)
