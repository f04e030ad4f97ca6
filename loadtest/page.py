"""A page of results: one HTML file with tables and plots, no script, nothing loaded from elsewhere.

`octavo bench page A.json B.json --html FILE` draws results again, several over one another.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from . import plots
from .result import load, warnings_of

STYLE = """
:root{color-scheme:light dark;--paper:#fdfdfc;--ink:#1d2125;--faint:#5f6870;--rule:#dde1e4;
--s0:#1f6fb2;--s1:#d1602b;--s2:#2f8f5b;--s3:#8a4fb0;--s4:#b58a12;--s5:#c43c6e}
@media(prefers-color-scheme:dark){:root{--paper:#15181b;--ink:#e6e8ea;--faint:#9aa4ac;
--rule:#2e343a;--s0:#5fb0f0;--s1:#f08a55;--s2:#5cc48b;--s3:#bd8ae0;--s4:#dcb84a;--s5:#f07fa6}}
body{margin:2rem auto;max-width:74rem;padding:0 1.2rem;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,sans-serif}
h1{font-size:1.5rem;margin:0}h2{font-size:1.05rem;margin:1.8rem 0 .4rem}
p,.legend{color:var(--faint);margin:.3rem 0}table{border-collapse:collapse;width:100%}
.wide{overflow-x:auto}th,td{padding:.3rem .7rem;text-align:right;border-bottom:1px solid
var(--rule);font-variant-numeric:tabular-nums;white-space:nowrap}
th:first-child,td:first-child,td.said{text-align:left}td.said{white-space:normal;min-width:18rem}
.bars{max-width:46rem}
th{color:var(--faint);font-weight:600}.plots{display:grid;gap:1rem 2rem;
grid-template-columns:repeat(auto-fit,minmax(25rem,1fr))}figure{margin:0}
figcaption{font-weight:600}svg{width:100%;height:auto;font:11px system-ui,sans-serif}
text{fill:var(--faint)}text.value{fill:var(--ink);font-weight:600}.grid{stroke:var(--rule);
fill:none}.line{fill:none;stroke-width:2}.goal{stroke:var(--ink);stroke-width:2;fill:none}
.stretch{stroke-dasharray:3 2}.legend{list-style:none;padding:0;display:flex;gap:.2rem 1.2rem;
flex-wrap:wrap}.legend i{display:inline-block;width:.8em;height:.8em;margin-right:.4em;
border-radius:2px}.warning{color:var(--s1)}
.met{color:var(--s2);font-weight:600}.missed{color:var(--s5);font-weight:600}
""" + "".join(
    f".line.s{n}{{stroke:var(--s{n})}}rect.s{n}{{fill:var(--s{n})}}i.s{n}{{background:var(--s{n})}}"
    for n in range(plots.COLOURS)
)


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="octavo bench page", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("results", type=Path, nargs="+", metavar="RESULT.json")
    parser.add_argument("--html", type=Path, required=True, metavar="FILE")
    chosen = parser.parse_args(words)
    try:
        write_page([load(path) for path in chosen.results], chosen.html)
    except ValueError as error:
        parser.error(str(error))
    sys.stdout.write(f"{chosen.html}\n")
    return 0


def write_page(results: Sequence[dict[str, Any]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document("Load test", page(results)), "utf-8")


def document(title: str, body: str) -> str:
    """A whole HTML file around `body`."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>{body}</body></html>\n"
    )


def page(results: Sequence[dict[str, Any]]) -> str:
    names = [_name(result) for result in results]
    titles = " · ".join(dict.fromkeys(result["load"]["title"] for result in results))
    parts = [f"<h1>Load test</h1><p>{escape(titles)}</p>"]
    for result in results:
        parts.append(f"<p>{escape(machine_line(result))}</p>")
        parts += [f'<p class="warning">{escape(text)}</p>' for text in warnings_of(result)]
    parts.append(_table(results, names))
    parts.append(plots.legend(names) + '<div class="plots">')
    for title, x, curves, log in (
        ("Time to the first token", "ms", _shares(results, names, "ttft"), False),
        ("Gap between two events of a stream", "ms", _shares(results, names, "itl"), True),
        ("Time per output token, by request", "ms", _shares(results, names, "tpot"), False),
    ):
        parts.append(_figure(title, plots.lines(title, x=x, y="share %", curves=curves, log=log)))
    for title, key, unit in (
        ("Events received over the run", "events", "per second"),
        ("Requests under way", "running", "requests"),
    ):
        curves = [_over_time(r, name, key) for r, name in zip(results, names, strict=True)]
        drawing = plots.lines(title, x="seconds of the run", y=unit, curves=curves)
        parts.append(_figure(title, drawing))
    return "".join(parts) + "</div>"


def machine_line(result: dict[str, Any]) -> str:
    machine, versions = result["machine"], result["versions"]
    wrote = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"{result['date']} · {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB · load average {result['load_average'][0]} · {wrote}"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are text, or ready markup where they begin with `<td`."""
    cells = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
    for row in rows:
        cells.append("".join(c if c.startswith("<td") else f"<td>{escape(c)}</td>" for c in row))
    return '<div class="wide"><table>' + "".join(f"<tr>{c}</tr>" for c in cells) + "</table></div>"


def _figure(title: str, drawing: str) -> str:
    return f"<figure><figcaption>{escape(title)}</figcaption>{drawing}</figure>" if drawing else ""


def _name(result: dict[str, Any]) -> str:
    server = result["server"]
    return f"{server['model']} ({server['version']}, {result['load']['scenario']})"


def _table(results: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    head = ["", "requests", "failed", "tokens/s", "requests/s", "goodput/s"]
    head += [f"{name} p50 / p90 / p99" for name in ("TTFT", "ITL", "TPOT")]
    rows = []
    for result, name in zip(results, names, strict=True):
        total = result["total"]
        goodput = total["goodput"]
        row = [name, str(total["requests"]), str(total["errors"])]
        row += [f"{total['output_tokens_per_second']:.1f}", f"{total['requests_per_second']:.2f}"]
        row.append("-" if goodput is None else f"{goodput:.2f}")
        for key in ("ttft", "itl", "tpot"):
            row.append(" / ".join(f"{total[key][at] * 1e3:.4g}" for at in ("p50", "p90", "p99")))
        rows.append([*row, f"{total['client_cpu_share']:.3f}"])
    return table([*head, "client CPU"], rows) + "<p>Latencies in milliseconds.</p>"


def _shares(results: Sequence[dict[str, Any]], names: Sequence[str], key: str) -> list[plots.Line]:
    """The share of all that took no longer, over the time it took."""
    curves = []
    for result, name in zip(results, names, strict=True):
        values, shares = result["curves"][key], result["curves"]["share"]
        points = [(value, share * 100) for value, share in zip(values, shares, strict=False)]
        curves.append(plots.Line(name=name, points=points))
    return curves


def _over_time(result: dict[str, Any], name: str, key: str) -> plots.Line:
    timeline = result["timeline"]
    width = timeline["slot_seconds"]
    per = width if key == "events" else 1.0
    points = [(number * width, value / per) for number, value in enumerate(timeline[key])]
    return plots.Line(name=name, points=points)
