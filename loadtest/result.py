"""What a run leaves behind: one JSON object that `bench compare` and the HTML page read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import machine
from .events import Exchange
from .report import CLIENT_SHARE_LIMIT, Quantiles, Report, Slo, gaps_during, milliseconds, quantile
from .run import Measurement, Target
from .scenario import Scenario
from .workload import Workload

FORMAT = "octavo load test 1"
_CURVE = [*(share / 100 for share in range(100)), 0.995, 0.999]  # quantiles that plots show


def result_of(
    scenario: Scenario, measured: Measurement, *, target: Target, slo: Slo | None, server: str
) -> dict[str, Any]:
    """Everything of one run, as JSON has it."""
    reports = {
        name: Report.of(exchanges, seconds=measured.seconds, slo=slo).as_json()
        for name, exchanges in measured.exchanges.items()
    }
    total = Report.of(
        measured.all, seconds=measured.seconds, client_cpu=measured.client_cpu, slo=slo
    )
    return {
        "format": FORMAT,
        **machine.described(),
        "server": {"url": target.base_url, "model": target.asking.model, "version": server},
        "load": {
            "scenario": scenario.name,
            "title": scenario.title,
            "prompts": target.asking.form,
            "temperature": target.asking.temperature,
            "workloads": [_described(workload) for workload in scenario.workloads],
        },
        "slo": None if slo is None else asdict(slo),
        "total": total.as_json(),
        "reports": reports,
        "disturbed": disturbed(scenario, measured),
        "curves": _curves(measured.all),
        "timeline": _timeline(measured),
    }


def disturbed(scenario: Scenario, measured: Measurement) -> dict[str, Any] | None:
    """The gaps of running streams while another workload's prompt is being computed."""
    if scenario.disturbs is None:
        return None
    by, of = scenario.disturbs
    good = [exchange for exchange in measured.exchanges[by] if exchange.good]
    if not good:
        return None
    begin, end = min(e.sent for e in good), max(e.arrivals[0] for e in good)
    gaps = gaps_during(measured.exchanges[of], begin, end)
    return {"by": by, "of": of, "ttft": end - begin, "gaps": asdict(Quantiles.of(gaps))}


def lines_of(result: dict[str, Any]) -> list[str]:
    """The result for people."""
    lines = [result["load"]["title"], *_report(result["total"]).lines()]
    if len(result["reports"]) > 1:
        for name, values in result["reports"].items():
            report = _report(values)
            lines.append(f"{name}: TTFT ms  {milliseconds(report.ttft)}")
            lines.append(f"{name}: ITL  ms  {milliseconds(report.itl)}")
    if result["disturbed"] is not None:
        told = result["disturbed"]
        lines.append(
            f"while `{told['by']}` came in ({told['ttft']:.2f} s), `{told['of']}` had gaps of "
            f"{milliseconds(Quantiles(**told['gaps']))}"
        )
    return lines


def warnings_of(result: dict[str, Any]) -> list[str]:
    """Why these figures may not be what they seem."""
    found = []
    share, load, cores = (
        result["total"]["client_cpu_share"],
        result["load_average"][0],
        result["machine"]["cores"],
    )
    if share > CLIENT_SHARE_LIMIT:
        found.append(
            f"the client used {share:.0%} of a core (more than {CLIENT_SHARE_LIMIT:.0%}): the "
            "server may be faster than these figures; run the client on another machine, or "
            "several clients side by side"
        )
    if load > cores:
        found.append(
            f"the machine's load average is {load:.1f} on {cores} cores: others compute beside "
            "this; compare only with what was measured in the same minutes"
        )
    return found


def save(result: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def load(path: Path) -> dict[str, Any]:
    """Raises ValueError where the file is no result of this program."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is no result of `octavo bench serve --json`")
    return content


def _report(values: dict[str, Any]) -> Report:
    latencies = {key: Quantiles(**values[key]) for key in ("ttft", "itl", "tpot")}
    return Report(**{**values, **latencies})


def _described(workload: Workload) -> dict[str, Any]:
    return {
        **asdict(workload),
        "prompt_tokens": str(workload.prompt_tokens),
        "output_tokens": str(workload.output_tokens),
    }


def _curves(exchanges: Iterable[Exchange]) -> dict[str, list[float]]:
    """Each latency at the shares of `_CURVE`, in milliseconds."""
    good = [exchange for exchange in exchanges if exchange.good]
    values = {
        "ttft": [e.ttft for e in good],
        "itl": [gap for e in good for gap in e.gaps],
        "tpot": [e.tpot for e in good if e.tpot is not None],
    }
    curves: dict[str, list[float]] = {"share": _CURVE}
    for name, found in values.items():
        ordered = sorted(found)
        curves[name] = [round(quantile(ordered, share) * 1e3, 3) for share in _CURVE if ordered]
    return curves


def _timeline(measured: Measurement, slots: int = 50) -> dict[str, Any]:
    """Events that arrived, and the mean of requests under way, in equal parts of the run."""
    width = measured.seconds / slots
    arrived, running = [0] * slots, [0.0] * slots
    for exchange in measured.all:
        for moment in exchange.arrivals:
            arrived[min(slots - 1, max(0, int((moment - measured.began) / width)))] += 1
        begin, end = exchange.sent - measured.began, exchange.ended - measured.began
        for number in range(slots):
            inside = min(end, (number + 1) * width) - max(begin, number * width)
            running[number] += max(0.0, inside) / width
    return {
        "slot_seconds": width,
        "events": arrived,
        "running": [round(mean, 2) for mean in running],
    }
