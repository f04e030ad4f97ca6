"""The goals, and what figures make of them: a ratio or a value, and a verdict. Arithmetic only.

A figure has a value of each round, and its median is told. Its key is (model, server, scenario,
quantity): ("110m", "octavo", "a", "tokens/s"). A ratio is the median of the ratios by round: in
between the machine may have become faster or slower for both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal

Key = tuple[str, str, str, str]
Figures = Mapping[Key, Sequence[float]]
Verdict = Literal["stretch met", "met", "missed", "not run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """One row: `figure` over the best of `against`, or `figure` itself where there is none.

    `at_most`: small is good. `unit` is that of a value; ratios have none. `beside`: another figure
    to be told with it, over the same peer, and how.
    """

    name: str
    figure: Key
    against: Sequence[Key] = ()
    goal: float
    stretch: float | None = None
    at_most: bool = False
    unit: str = ""
    beside: tuple[Key, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A row with its figures. `value` is what is compared with goal and stretch."""

    name: str
    goal: float
    stretch: float | None
    at_most: bool
    unit: str
    verdict: Verdict
    value: float | None = None
    figure: float | None = None  # octavo's
    peer: float | None = None  # the best of the others
    peer_name: str = ""
    note: str = ""  # what stands beside it, why it was not run, or who was missing


def judge(goals: Sequence[Goal], figures: Figures, missing: Mapping[str, str]) -> list[Judged]:
    """Every goal against the figures. `missing` says, by server, why it has none."""
    return [_judge(goal, figures, missing) for goal in goals]


def _judge(goal: Goal, figures: Figures, missing: Mapping[str, str]) -> Judged:
    def row(verdict: Verdict, **fields: object) -> Judged:
        return Judged(
            name=goal.name,
            goal=goal.goal,
            stretch=goal.stretch,
            at_most=goal.at_most,
            unit=goal.unit,
            verdict=verdict,
            **fields,  # type: ignore[arg-type]
        )

    if not figures.get(goal.figure):
        return row("not run", note=_why(goal.figure, missing))
    own = median(figures[goal.figure])
    absent = [key for key in goal.against if key not in figures]
    notes = [_why(key, missing) for key in absent]
    if not goal.against:
        return row(_verdict(goal, own), value=own, figure=own)
    medians = {key: median(figures[key]) for key in goal.against if figures.get(key)}
    present = [key for key, value in medians.items() if value]
    if not present:
        return row("not run", figure=own, note="; ".join(notes))
    best = (min if goal.at_most else max)(present, key=medians.__getitem__)
    ratio = _ratio(figures[goal.figure], figures[best])
    if goal.beside is not None and goal.beside[0] in figures:
        other, told = goal.beside
        notes.insert(0, told.format(_ratio(figures[other], figures[best])))
    return row(
        _verdict(goal, ratio),
        value=ratio,
        figure=own,
        peer=medians[best],
        peer_name=best[1],
        note="; ".join(notes),
    )


def _ratio(own: Sequence[float], peer: Sequence[float]) -> float:
    """Of the medians, where not every round has brought both."""
    if len(own) == len(peer) and all(peer):
        return median([one / other for one, other in zip(own, peer, strict=True)])
    return median(own) / median(peer)


def _verdict(goal: Goal, value: float) -> Verdict:
    def kept(limit: float | None) -> bool:
        return limit is not None and (value <= limit if goal.at_most else value >= limit)

    if kept(goal.stretch):
        return "stretch met"
    return "met" if kept(goal.goal) else "missed"


def _why(key: Key, missing: Mapping[str, str]) -> str:
    model, server, scenario, _ = key
    for name in (f"{server} {model}", server):
        if name in missing:
            return f"{server}: {missing[name]}"
    return f"{server}: {scenario.upper()} was not measured with {model}"


def _rate(
    name: str, server: str, scenario: str, against: Sequence[str], *, goal: float, stretch: float
) -> Goal:
    model = "15m" if scenario in ("s", "h") else "110m"
    quantity = "requests/s" if scenario in ("d", "h") else "tokens/s"
    return Goal(
        name=name,
        figure=(model, server, scenario, quantity),
        against=[(model, peer, scenario, quantity) for peer in against],
        goal=goal,
        stretch=stretch,
    )


_VLLM = ("vllm", "vllm all cores")
_BEST = ("llama.cpp", *_VLLM)
GOALS: tuple[Goal, ...] = (
    replace(
        _rate("A over llama.cpp", "octavo", "a", ["llama.cpp"], goal=1.7, stretch=2.0),
        beside=(
            ("110m", "octavo plain", "a", "tokens/s"),
            "{:.3g} without guesses: random weights repeat themselves more than text does",
        ),
    ),
    _rate("B over the better of llama.cpp and vLLM", "octavo", "b", _BEST, goal=1.2, stretch=1.35),
    _rate("C over the better of llama.cpp and vLLM", "octavo", "c", _BEST, goal=1.2, stretch=1.35),
    _rate("S over vLLM", "octavo", "s", _VLLM, goal=2.0, stretch=2.5),
    _rate("H over vLLM", "octavo", "h", _VLLM, goal=1.3, stretch=1.5),
    # Nobody guesses in these four: they are about kernels.
    _rate("int8 over bf16, A", "octavo int8", "a", ["octavo plain"], goal=1.6, stretch=1.85),
    _rate("int8 over bf16, C", "octavo int8", "c", ["octavo plain"], goal=1.5, stretch=1.8),
    _rate(
        "int4 over llama.cpp Q4_0, A", "octavo int4", "a", ["llama.cpp q4_0"], goal=1.1, stretch=1.3
    ),
    _rate(
        "int4 over llama.cpp Q4_0, C", "octavo int4", "c", ["llama.cpp q4_0"], goal=1.5, stretch=2.0
    ),
    Goal(
        name="E: p99 of the running streams' gaps",
        figure=("110m", "octavo", "e", "gap p99 s"),
        goal=0.25,
        at_most=True,
        unit="s",
    ),
    Goal(
        name="E: the long prompt's TTFT over its own undisturbed",
        figure=("110m", "octavo", "e", "long ttft s"),
        against=[("110m", "octavo", "e", "long ttft alone s")],
        goal=1.3,
        at_most=True,
    ),
    _rate("D over vLLM", "octavo", "d", _VLLM, goal=1.2, stretch=2.0),
    Goal(
        name="server over offline LLM, 32 streams",
        figure=("110m", "octavo", "c", "tokens/s"),
        against=[("110m", "offline", "c", "tokens/s")],
        goal=0.9,
        stretch=0.95,
    ),
    Goal(
        name="host path of a step at 64 sequences",
        figure=("15m", "host path", "s", "ms"),
        goal=1.0,
        stretch=0.5,
        at_most=True,
        unit="ms",
    ),
    Goal(
        name="front end, CPU of a streamed token",
        figure=("15m", "octavo", "s", "front end us/token"),
        goal=80.0,
        stretch=40.0,
        at_most=True,
        unit="us",
    ),
)
