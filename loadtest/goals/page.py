"""The table of goals as text, as a page, and as one plot that a README can show."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from .. import plots
from ..page import STYLE, document, machine_line, table

_SERIES = {"stretch met": 2, "met": 0, "missed": 5, "not run": 3}


def lines_of(result: dict[str, Any]) -> list[str]:
    """The table for a terminal."""
    lines = [machine_line(result)]
    if result["others_cpu"] > 0.1:
        lines.append(_disturbed(result))
    lines.append(f"{'':<52}{'goal':>8}{'stretch':>9}{'figure':>9}  verdict")
    for row in result["rows"]:
        goal, stretch, figure = _cells(row)
        lines.append(f"{row['name']:<52}{goal:>8}{stretch:>9}{figure:>9}  {_verdict(row)}")
    lines += [f"{name:<52}{share:>26.0%}" for name, share in result["shares"].items()]
    return lines


def write_page(result: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document("octavo's goals", page(result)), "utf-8")


def page(result: dict[str, Any]) -> str:
    parts = [f"<h1>Goals</h1><p>{escape(machine_line(result))}</p>"]
    told = ", ".join(f"{name} {version}" for name, version in result["peers"].items())
    parts.append(f"<p>{escape(told)} · median of {result['rounds']} rounds, interleaved</p>")
    if result["others_cpu"] > 0.1:
        parts.append(f'<p class="warning">{escape(_disturbed(result))}</p>')
    parts.append(f'<figure class="bars">{_plot(result)}</figure>')
    rows = []
    for row in result["rows"]:
        kind = "missed" if row["verdict"] in ("missed", "not run") else "met"
        verdict = (
            f'<td class="said"><b class="{kind}">{row["verdict"]}</b> {escape(row["note"])}</td>'
        )
        rows.append([row["name"], *_cells(row), _against(row), verdict])
    parts.append(table(["", "goal", "stretch", "figure", "octavo and the other", ""], rows))
    parts.append("<h2>Shares of what the machine can do</h2>")
    shares = [[name, f"{share:.0%}"] for name, share in result["shares"].items()]
    limits = [[name, f"{value:.1f}"] for name, value in result["ceilings"].items()]
    parts.append(table(["", ""], [*shares, *limits]))
    parts.append("<h2>All figures, medians</h2>")
    figures = []
    for key, value in result["figures"].items():
        rounds = value["rounds"]
        three = [f"{each:.4g}" for each in (value["median"], min(rounds), max(rounds))]
        figures.append([*key.split(" | "), *three])
    head = ["model", "server", "scenario", "quantity", "median", "least", "most"]
    parts.append(table(head, figures))
    starts = [[name, f"{s:.1f} s"] for name, s in result["start_seconds"].items()]
    parts.append("<h2>Start to ready</h2>" + table(["", ""], starts))
    return "".join(parts)


def svg_of(result: dict[str, Any]) -> str:
    """The plot alone, a file of its own, in light and dark."""
    drawing = _plot(result)
    head, rest = drawing.split(">", 1)
    own = "svg{background:var(--paper);font:11px system-ui,sans-serif}"
    return f'{head} xmlns="http://www.w3.org/2000/svg"><style>{STYLE}{own}</style>{rest}\n'


def _plot(result: dict[str, Any]) -> str:
    """Each figure over its goal: whatever is above 1 keeps it, also where less is better."""
    bars = []
    for row in result["rows"]:
        if row["value"] is None or row["value"] <= 0:
            continue
        bars.append(
            plots.Bar(
                name=row["name"],
                value=_over_goal(row, row["value"]),
                label=_cells(row)[2],
                goal=1.0,
                stretch=None if row["stretch"] is None else _over_goal(row, row["stretch"]),
                series=_SERIES[row["verdict"]],
            )
        )
    title = "What was reached, over its goal; broken line: stretch goal"
    return plots.bars(title, unit="times the goal (line; broken line: stretch goal)", rows=bars)


def _over_goal(row: dict[str, Any], value: float) -> float:
    return float(row["goal"] / value if row["at_most"] else value / row["goal"])


def _cells(row: dict[str, Any]) -> tuple[str, str, str]:
    """Goal, stretch and figure as text."""
    sign, unit = ("<= " if row["at_most"] else ">= "), row["unit"]
    stretch = "" if row["stretch"] is None else f"{row['stretch']:g}{unit}"
    figure = "-" if row["value"] is None else f"{row['value']:.3g}{unit}"
    return f"{sign}{row['goal']:g}{unit}", stretch, figure


def _against(row: dict[str, Any]) -> str:
    if row["peer"] is None:
        return "-" if row["figure"] is None else f"{row['figure']:.4g}"
    return f"{row['figure']:.4g} / {row['peer']:.4g} ({row['peer_name']})"


def _verdict(row: dict[str, Any]) -> str:
    return f"{row['verdict']} ({row['note']})" if row["note"] else str(row["verdict"])


def _disturbed(result: dict[str, Any]) -> str:
    return (
        f"others used up to {result['others_cpu']:.0%} of the machine's cores while this was "
        "measured: ratios may be off, absolute figures are"
    )
