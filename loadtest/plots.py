"""Plots as SVG that needs no script and no other file, and follows the page's light or dark.

Colours are CSS variables of the page: --s0 ... --s5 for series, --ink and --faint for the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 560, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 16, 42
_BARS_WIDTH, _NAMES = 720, 300  # the names stand left of the bars
COLOURS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One curve: points in the axes' own units, ascending in x."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar with its value; `of` is where its goal stands, if it has one."""

    name: str
    value: float
    label: str
    goal: float | None = None
    stretch: float | None = None
    series: int = 0


def lines(title: str, *, x: str, y: str, curves: Sequence[Line], log: bool = False) -> str:
    """Curves over two axes from zero; `log`: x on a logarithmic scale."""
    points = [point for curve in curves for point in curve.points]
    if not points:
        return ""
    low = min((p[0] for p in points if p[0] > 0), default=1.0) if log else 0.0
    high = max(p[0] for p in points) or 1.0
    if log:
        low, high = 10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high))
        high = high if high > low else low * 10
    top = _round_up(max(p[1] for p in points))

    def across(value: float) -> float:
        share = math.log(max(value, low) / low) / math.log(high / low) if log else value / high
        return _LEFT + share * (WIDTH - _LEFT - _RIGHT)

    def up(value: float) -> float:
        return HEIGHT - _BOTTOM - value / top * (HEIGHT - _TOP - _BOTTOM)

    parts = [_open(title, WIDTH, HEIGHT)]
    for tick in _decades(low, high) if log else ticks(high):
        parts.append(_tick_x(across(tick), tick))
    for tick in ticks(top):
        parts.append(_tick_y(up(tick), tick))
    parts.append(_text(WIDTH / 2, HEIGHT - 6, x, anchor="middle", kind="axis"))
    parts.append(_text(_LEFT, 11, y, anchor="start", kind="axis"))
    for number, curve in enumerate(curves):
        path = " ".join(f"{across(px):.1f},{up(py):.1f}" for px, py in curve.points)
        parts.append(
            f'<polyline class="line s{number % COLOURS}" points="{path}">'
            f"<title>{escape(curve.name)}</title></polyline>"
        )
    return "".join(parts) + "</svg>"


def bars(title: str, *, unit: str, rows: Sequence[Bar]) -> str:
    """Horizontal bars; a line marks each goal, a broken one each stretch goal."""
    marks = [mark for row in rows for mark in (row.value, row.goal, row.stretch) if mark]
    top = max(marks, default=1.0) * 1.12
    step = 26
    height = step * len(rows) + 34

    def across(value: float) -> float:
        return _NAMES + value / top * (_BARS_WIDTH - _NAMES - 60)

    parts = [_open(title, _BARS_WIDTH, height)]
    for tick in ticks(top):
        parts.append(f'<path class="grid" d="M{across(tick):.1f} 4V{height - 30}"/>')
        parts.append(_text(across(tick), height - 17, figure(tick), anchor="middle"))
    middle = (_NAMES + _BARS_WIDTH) / 2
    parts.append(_text(middle, height - 3, unit, anchor="middle", kind="axis"))
    for number, row in enumerate(rows):
        y = 8 + number * step
        parts.append(_text(_NAMES - 8, y + 12, row.name, anchor="end"))
        length = across(row.value) - _NAMES
        parts.append(
            f'<rect class="s{row.series % COLOURS}" x="{_NAMES}" y="{y}" width="{length:.1f}" '
            f'height="{step - 9}" rx="2"/>'
        )
        for mark, kind in ((row.goal, "goal"), (row.stretch, "goal stretch")):
            if mark is not None:
                parts.append(f'<path class="{kind}" d="M{across(mark):.1f} {y - 3}v{step - 3}"/>')
        reach = max(row.value, row.goal or 0.0, row.stretch or 0.0)
        parts.append(_text(across(reach) + 6, y + 12, row.label, anchor="start", kind="value"))
    return "".join(parts) + "</svg>"


def legend(names: Sequence[str]) -> str:
    keys = "".join(
        f'<li><i class="s{number % COLOURS}"></i>{escape(name)}</li>'
        for number, name in enumerate(names)
    )
    return f'<ul class="legend">{keys}</ul>'


def ticks(top: float) -> list[float]:
    """Round numbers from 0 to `top`, four to eight of them."""
    if top <= 0:
        return [0.0]
    rough = top / 5
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= rough)
    return [step * number for number in range(int(top / step + 1e-9) + 1)]


def _round_up(value: float) -> float:
    """The first tick that is not below `value`."""
    marks = ticks(value) if value > 0 else [0.0, 1.0]
    return marks[-1] if marks[-1] >= value else marks[-1] + marks[1]


def figure(value: float) -> str:
    """A number as an axis shows it: 0.25, 3, 1500, 20k."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _decades(low: float, high: float) -> list[float]:
    first, last = round(math.log10(low)), round(math.log10(high))
    return [10.0**power for power in range(first, last + 1)]


def _open(title: str, width: float, height: float) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>"
    )


def _tick_x(x: float, value: float) -> str:
    line = f'<path class="grid" d="M{x:.1f} {_TOP}V{HEIGHT - _BOTTOM}"/>'
    return line + _text(x, HEIGHT - _BOTTOM + 15, figure(value), anchor="middle")


def _tick_y(y: float, value: float) -> str:
    line = f'<path class="grid" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>'
    return line + _text(_LEFT - 6, y + 4, figure(value), anchor="end")


def _text(x: float, y: float, text: str, *, anchor: str, kind: str = "tick") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {place}>{escape(text)}</text>'
