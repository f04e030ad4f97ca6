"""The goals of a GPU, as ratios to what the machine can do or to what others do on it.

A goal is met, missed, or not run, with the reason; nothing is claimed that was not measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Goal:
    """`entry`: the figure that decides, of which `field` is compared. `over`: another figure that
    it is divided by. At least `goal`, unless `most`."""

    text: str
    block: str
    goal: float
    entry: str
    field: str = "value"
    over: str | None = None
    made_by: tuple[str, ...] = ()  # the parts of the block that make these figures
    most: bool = False


_SMALL, _LARGE = "qwen3-0.6b", "llama-3.1-8b"
_NANO = f"nano-vllm's load, {_SMALL}"
_MANY = f"256 requests of 1000/1000, {_LARGE}"
_ALONE = f"1 request of 128/128, {_LARGE}"
_LOADS = f"loads of {_LARGE}"  # the part that makes these two, and more
_GENERATE, _CONTINUOUS = "HF generate", "HF continuous batching"
_FLASH = "attention against FlashAttention-3"
_FLASHES = ("times: flash3",)
_EXPOSED = f"{_LARGE}: exposed host time at"


def _step(shape: str, batch: int) -> str:
    return f"{shape}: a step of {batch} at 1000"


# fmt: off
GOALS = (
    Goal("nano-vllm's load, Qwen3-0.6B: share of the floor", "bench", 0.60, _NANO, "share"),
    *(Goal(f"8B decode step at 1k, share of the floor, B={batch}",
           "steps", goal, _step(_LARGE, batch), "share")
      for batch, goal in ((1, 0.75), (32, 0.70), (256, 0.65))),
    *(Goal(f"0.6B decode step, B={batch}, ms", "steps", goal, _step(_SMALL, batch), most=True)
      for batch, goal in ((1, 1.0), (32, 2.0), (256, 10.5))),
    Goal("8B prompt of 8192: share of the measured product",
         "steps", 0.55, f"{_LARGE}: a prompt of 8192", "share"),
    *(Goal(f"decode attention against FlashAttention-3, B={batch}",
           "kernels", 0.90, f"{_FLASH}, {batch} decodes", made_by=_FLASHES)
      for batch in (32, 256)),
    Goal("prompt attention against FlashAttention-3",
         "kernels", 0.60, f"{_FLASH}, a prompt of 8192", made_by=_FLASHES),
    Goal("exposed host time of a decode step, 8B, B=32: share",
         "steps", 0.05, f"{_EXPOSED} 32", most=True),
    Goal("exposed host time of a decode step, 8B, B=1: ms",
         "steps", 0.2, f"{_EXPOSED} 1, ms", made_by=(f"{_EXPOSED} 1",), most=True),
    Goal("against HF generate, 0.6B, times",
         "bench", 10.0, _NANO, over=f"{_GENERATE}, batches of 64, {_SMALL}",
         made_by=(f"{_GENERATE}, {_SMALL}",)),
    Goal("against HF generate, 8B, times",
         "bench", 6.0, f"nano-vllm's load, {_LARGE}", over=f"{_GENERATE}, batches of 64, {_LARGE}",
         made_by=(_LOADS, f"{_GENERATE}, {_LARGE}")),
    Goal("against HF continuous batching, 8B, 32 requests, times",
         "bench", 2.3, f"a few, answered at length, {_LARGE}",
         over=f"{_CONTINUOUS}, 32 requests, {_LARGE}",
         made_by=(_LOADS, f"{_CONTINUOUS}, {_LARGE}")),
    Goal("against HF continuous batching, 0.6B, times",
         "bench", 2.3, _NANO, over=f"{_CONTINUOUS}, 256 requests, {_SMALL}",
         made_by=(f"{_CONTINUOUS}, {_SMALL}",)),
    Goal("against vLLM, same run, nano-vllm's load, times",
         "bench", 0.9, _NANO, over=f"vLLM, {_SMALL}", made_by=("vLLM",)),
    Goal("nano-vllm's load: share of the floor, published of vLLM", "bench", 0.56, _NANO, "share"),
    Goal("8B 1000/1000: share of the floor", "bench", 0.6, _MANY, "share", made_by=(_LOADS,)),
    Goal("server against offline throughput",
         "server", 0.9, "server against offline",
         made_by=("server against offline", "a rate sweep")),
    Goal("throughput with --deterministic, share of that without",
         "bench", 0.75, f"{_NANO}, deterministic=True", over=_NANO, made_by=("--deterministic",)),
    Goal("FP8 against bfloat16, 8B 1000/1000, times",
         "bench", 1.35, f"{_MANY}, quantization=fp8", over=_MANY,
         made_by=(f"{_LOADS}, fp8", _LOADS)),
    Goal("INT4 against bfloat16, 8B, B=1, times",
         "bench", 1.7, f"{_ALONE}, quantization=int4", over=_ALONE,
         made_by=(f"{_LOADS}, int4", _LOADS)),
)
# fmt: on


def verdicts(blocks: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Rows of the table: goal, figure, verdict. `blocks`: each block's entries by name."""
    rows: list[tuple[str, ...]] = [("goal", "asked", "figure", "verdict")]
    for goal in GOALS:
        asked = f"{'<=' if goal.most else '>='} {goal.goal:g}"
        entries = blocks.get(goal.block, {})
        found, reason = _figure(goal, entries)
        if found is None:
            rows.append((goal.text, asked, "-", f"not run: {reason}"))
            continue
        met = found <= goal.goal if goal.most else found >= goal.goal
        rows.append((goal.text, asked, f"{found:.3g}", "met" if met else "MISSED"))
    return rows


def _figure(goal: Goal, entries: Mapping[str, Any]) -> tuple[float | None, str]:
    found = entries.get(goal.entry, {})
    if goal.field not in found:
        return None, _reason(goal.entry, goal, entries)
    if goal.over is None:
        return float(found[goal.field]), ""
    other = entries.get(goal.over, {})
    if "value" not in other:
        return None, _reason(goal.over, goal, entries)
    return float(found["value"]) / float(other["value"]), ""


def _reason(name: str, goal: Goal, entries: Mapping[str, Any]) -> str:
    """Why there is no such figure: its own entry's reason, or that of the part of the block that
    was to make it, or the block's."""
    parts = (name, *goal.made_by, name.split(":")[0], f"steps of {name.split(':')[0]}", "block")
    for part in parts:
        for key in ("not_run", "failed"):
            if key in entries.get(part, {}):
                return str(entries[part][key])
    return f"the block {goal.block} has no such figure"
