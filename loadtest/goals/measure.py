"""Run a plan: all its servers are up, and each scenario goes round them, again and again, so that
whatever disturbs the machine disturbs all of them alike. Who waits for its turn stands still."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from .. import scenario as scenarios
from ..asking import Refused, calibrated, server_version
from ..lengths import fixed
from ..machine import busy_seconds
from ..report import Report
from ..result import disturbed
from ..run import Measurement, Target, measure, run
from ..scenario import Scenario
from ..workload import Asking
from .plan import Part, Plan
from .servers import NotStarted, Server, paused
from .table import Key

Tell = Callable[[str], None]
_FEW = fixed(8)  # tokens of a warm-up's answer
_REST_SECONDS = 5.0  # before its turn
_CELL_SECONDS = 240.0  # for one scenario; seconds on a machine that nobody disturbs
_OFFLINE_SECONDS = 600.0


@dataclass(slots=True, kw_only=True)
class Found:
    """What the rounds have brought so far."""

    values: dict[Key, list[float]] = field(default_factory=lambda: defaultdict(list))
    missing: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    start_seconds: dict[str, float] = field(default_factory=dict)
    # Of all cores, while something was measured: what neither we nor our servers used.
    others_cpu: list[float] = field(default_factory=list)

    @property
    def medians(self) -> dict[Key, float]:
        return {key: statistics.median(values) for key, values in self.values.items()}


def run_plan(
    plan: Plan, found: Found, *, rounds: int, wanted: set[str], folder: Path, tell: Tell
) -> None:
    """Measure a plan and add to `found`. A server that does not start is missing, with the reason;
    a scenario in which a request fails has no figure."""
    found.missing |= {f"{name} {plan.model}": why for name, why in plan.missing.items()}
    running: list[tuple[Server, Target, Part]] = []
    with tempfile.TemporaryDirectory() as logs:
        try:
            for number, part in enumerate(plan.parts):
                part = replace(part, scenarios=[s for s in part.scenarios if s in wanted])
                if part.scenarios:
                    log = Path(logs, f"{number}.log")
                    running += _started(plan, part, log, found, tell)
            for number in range(rounds):
                _round(plan, running, found, number=number, folder=folder, tell=tell)
        finally:
            for server, _, _ in running:
                server.stop()


def _started(
    plan: Plan, part: Part, log: Path, found: Found, tell: Tell
) -> list[tuple[Server, Target, Part]]:
    """The server, ready and warm; none when it did not start."""
    name = f"{part.launch.name} {plan.model}"
    try:
        server = Server(part.launch, log)
    except NotStarted as error:
        found.missing[name] = str(error)
        tell(f"{name}: {error}")
        return []
    found.start_seconds[name] = server.start_seconds
    ids = part.launch.name != "transformers"
    asking = Asking(model=part.launch.model, form="ids" if ids else "text", ignore_eos=ids)
    target = Target(base_url=server.url, asking=asking)
    try:
        found.versions[part.launch.name] = run(server_version(target))
        if not ids:
            target = run(calibrated(target))
        for scenario in part.scenarios:
            run(_warm_up(scenarios.load(scenario), target))
    except Refused as error:
        server.stop()
        found.missing[name] = f"{error}; {server.last_words()}"
        tell(f"{name}: {found.missing[name]}")
        return []
    except BaseException:
        server.stop()
        raise
    tell(f"{name}: ready after {server.start_seconds:.1f} s")
    return [(server, target, part)]


async def _warm_up(scenario: Scenario, target: Target) -> None:
    """As many requests at a time as will come, of prompts that do not come again."""
    first = scenario.workloads[0]
    few = replace(first, requests=first.concurrency, seed=-1, output_tokens=_FEW)
    await measure([few], target)


def _round(
    plan: Plan,
    running: Sequence[tuple[Server, Target, Part]],
    found: Found,
    *,
    number: int,
    folder: Path,
    tell: Tell,
) -> None:
    """Each scenario against each server once; who comes first changes from round to round."""
    turn = number % max(1, len(running))
    order = [*running[turn:], *running[:turn]]
    servers = [server for server, _, _ in running]
    for name in sorted({name for _, _, part in running for name in part.scenarios}):
        scenario = scenarios.load(name).seeded(number + 1)
        for server, target, part in order:
            if name in part.scenarios:
                with paused([other for other in servers if other is not server]):
                    server.rest(most_seconds=_REST_SECONDS)
                    busy, ours, began = busy_seconds(), _ours(servers), time.perf_counter()
                    _cell(plan.model, server, target, scenario, found, tell)
                seconds = time.perf_counter() - began
                others = (busy_seconds() - busy) - (_ours(servers) - ours)
                found.others_cpu.append(max(0.0, others) / seconds / (os.cpu_count() or 1))
        if plan.offline and name == "c":
            with paused(servers):
                tell(_offline(plan.model, folder, found, number))


def _ours(servers: Sequence[Server]) -> float:
    return time.process_time() + sum(server.cpu_seconds(children=True) for server in servers)


def _cell(
    model: str, server: Server, target: Target, scenario: Scenario, found: Found, tell: Tell
) -> None:
    """One scenario against one server once."""
    key = (model, server.launch.name, scenario.name)
    front = server.cpu_seconds(children=False)
    try:
        measured = run(asyncio.wait_for(measure(scenario.workloads, target), _CELL_SECONDS))
    except TimeoutError:
        why = f"{scenario.name.upper()} took longer than {_CELL_SECONDS:.0f} s"
        found.missing[f"{server.launch.name} {model}"] = why
        tell(f"{' '.join(key)}: {why}")
        return
    front = server.cpu_seconds(children=False) - front
    report = Report.of(measured.all, seconds=measured.seconds, client_cpu=measured.client_cpu)
    if report.errors:
        why = f"{report.errors} requests of {scenario.name.upper()} failed: {report.first_error}"
        found.missing[f"{server.launch.name} {model}"] = why
        tell(f"{' '.join(key)}: {why}")
        return
    figures = {
        "tokens/s": report.output_tokens_per_second,
        "requests/s": report.requests_per_second,
        "ttft p50 s": report.ttft.p50,
        "tpot p50 s": report.tpot.p50,
        "client cpu share": report.client_cpu_share,
    }
    if server.launch.name.startswith("octavo"):
        figures["front end us/token"] = front / report.output_tokens * 1e6
    if scenario.disturbs is not None:
        figures |= _disturbance(scenario, measured, target)
    for quantity, value in figures.items():
        found.values[(*key, quantity)].append(value)
    tell(f"{' '.join(key)}: " + ", ".join(f"{k} {v:.4g}" for k, v in figures.items()))


def _disturbance(scenario: Scenario, measured: Measurement, target: Target) -> dict[str, float]:
    """Of E: what the long prompt did to the others, they to it, and how it fares alone."""
    told = disturbed(scenario, measured)
    assert told is not None
    long = next(w for w in scenario.workloads if w.name == told["by"])
    figures = {
        "gap p99 s": told["gaps"]["p99"],
        "gap worst s": told["gaps"]["worst"],
        "long ttft s": told["ttft"],
    }
    undisturbed = replace(long, after_pieces=0, seed=long.seed + 500)
    (alone,) = run(measure([undisturbed], target)).all
    return {**figures, "long ttft alone s": alone.ttft} if alone.good else figures


def _offline(model: str, folder: Path, found: Found, number: int) -> str:
    """Scenario C through the LLM class, in a process of its own."""
    with tempfile.TemporaryDirectory() as results:
        out = Path(results, "offline.json")
        command = [sys.executable, "-m", "octavo.server.cli", "bench", "offline", str(folder)]
        command += ["--rounds", "1", "--seed", str(number), "--json", str(out)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_OFFLINE_SECONDS, check=False
        )
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            found.missing["offline"] = said
            return f"{model} offline c: {said}"
        figure = json.loads(out.read_text())["figures"]["output tokens/s"]
    found.values[(model, "offline", "c", "tokens/s")].append(figure)
    return f"{model} offline c: tokens/s {figure:.4g}"
