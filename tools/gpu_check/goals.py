"""The goals of a GPU, as ratios to what the machine can do or to what others do on it.

A goal is met, missed, or not run, with the reason; nothing is claimed that was not measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """`entry`: the figure that decides, of which `field` is compared. `over`: another figure that
    it is divided by. At least `goal`, unless `most`."""

    text: str
    block: str
    entry: str
    goal: float
    field: str = "value"
    over: str | None = None
    most: bool = False
    made_by: tuple[str, ...] = ()  # the parts of the block that make these figures


GOALS = (
    Goal(
        text="nano-vllm's load, Qwen3-0.6B: share of the floor",
        block="bench",
        entry="nano-vllm's load, qwen3-0.6b",
        field="share",
        goal=0.60,
    ),
    Goal(
        text="8B decode step at 1k, share of the floor, B=1",
        block="steps",
        entry="llama-3.1-8b: a step of 1 at 1000",
        field="share",
        goal=0.75,
    ),
    Goal(
        text="8B decode step at 1k, share of the floor, B=32",
        block="steps",
        entry="llama-3.1-8b: a step of 32 at 1000",
        field="share",
        goal=0.70,
    ),
    Goal(
        text="8B decode step at 1k, share of the floor, B=256",
        block="steps",
        entry="llama-3.1-8b: a step of 256 at 1000",
        field="share",
        goal=0.65,
    ),
    Goal(
        text="0.6B decode step, B=1, ms",
        block="steps",
        entry="qwen3-0.6b: a step of 1 at 1000",
        goal=1.0,
        most=True,
    ),
    Goal(
        text="0.6B decode step, B=32, ms",
        block="steps",
        entry="qwen3-0.6b: a step of 32 at 1000",
        goal=2.0,
        most=True,
    ),
    Goal(
        text="0.6B decode step, B=256, ms",
        block="steps",
        entry="qwen3-0.6b: a step of 256 at 1000",
        goal=10.5,
        most=True,
    ),
    Goal(
        text="8B prompt of 8192: share of the measured product",
        block="steps",
        entry="llama-3.1-8b: a prompt of 8192",
        field="share",
        goal=0.55,
    ),
    Goal(
        text="decode attention against FlashAttention-3, B=32",
        block="kernels",
        entry="attention against FlashAttention-3, 32 decodes",
        goal=0.90,
        made_by=("times: flash3",),
    ),
    Goal(
        text="decode attention against FlashAttention-3, B=256",
        block="kernels",
        entry="attention against FlashAttention-3, 256 decodes",
        goal=0.90,
        made_by=("times: flash3",),
    ),
    Goal(
        text="prompt attention against FlashAttention-3",
        block="kernels",
        entry="attention against FlashAttention-3, a prompt of 8192",
        goal=0.60,
        made_by=("times: flash3",),
    ),
    Goal(
        text="exposed host time of a decode step, 8B, B=32: share",
        block="steps",
        entry="llama-3.1-8b: exposed host time at 32",
        goal=0.05,
        most=True,
    ),
    Goal(
        text="exposed host time of a decode step, 8B, B=1: ms",
        block="steps",
        entry="llama-3.1-8b: exposed host time at 1, ms",
        goal=0.2,
        most=True,
        made_by=("llama-3.1-8b: exposed host time at 1",),
    ),
    Goal(
        text="against HF generate, 0.6B, times",
        block="bench",
        entry="nano-vllm's load, qwen3-0.6b",
        over="HF generate, batches of 64, qwen3-0.6b",
        goal=10.0,
        made_by=("HF generate, qwen3-0.6b",),
    ),
    Goal(
        text="against HF generate, 8B, times",
        block="bench",
        entry="nano-vllm's load, llama-3.1-8b",
        over="HF generate, batches of 64, llama-3.1-8b",
        goal=6.0,
        made_by=("loads of llama-3.1-8b", "HF generate, llama-3.1-8b"),
    ),
    Goal(
        text="against HF continuous batching, 8B, 32 requests, times",
        block="bench",
        entry="a few, answered at length, llama-3.1-8b",
        over="HF continuous batching, 32 requests, llama-3.1-8b",
        goal=2.3,
        made_by=("loads of llama-3.1-8b", "HF continuous batching, llama-3.1-8b"),
    ),
    Goal(
        text="against HF continuous batching, 0.6B, times",
        block="bench",
        entry="nano-vllm's load, qwen3-0.6b",
        over="HF continuous batching, 256 requests, qwen3-0.6b",
        goal=2.3,
        made_by=("HF continuous batching, qwen3-0.6b",),
    ),
    Goal(
        text="against vLLM, same run, nano-vllm's load, times",
        block="bench",
        entry="nano-vllm's load, qwen3-0.6b",
        over="vLLM, qwen3-0.6b",
        goal=0.9,
        made_by=("vLLM",),
    ),
    Goal(
        text="nano-vllm's load: share of the floor, published of vLLM",
        block="bench",
        entry="nano-vllm's load, qwen3-0.6b",
        field="share",
        goal=0.56,
    ),
    Goal(
        text="8B 1000/1000: share of the floor",
        block="bench",
        entry="256 requests of 1000/1000, llama-3.1-8b",
        field="share",
        goal=0.6,
        made_by=("loads of llama-3.1-8b",),
    ),
    Goal(
        text="server against offline throughput",
        block="server",
        entry="server against offline",
        goal=0.9,
        made_by=("server against offline", "a rate sweep"),
    ),
    Goal(
        text="throughput with --deterministic, share of that without",
        block="bench",
        entry="nano-vllm's load, qwen3-0.6b, deterministic=True",
        over="nano-vllm's load, qwen3-0.6b",
        goal=0.75,
        made_by=("--deterministic",),
    ),
    Goal(
        text="FP8 against bfloat16, 8B 1000/1000, times",
        block="bench",
        entry="256 requests of 1000/1000, llama-3.1-8b, quantization=fp8",
        over="256 requests of 1000/1000, llama-3.1-8b",
        goal=1.35,
        made_by=("loads of llama-3.1-8b, fp8", "loads of llama-3.1-8b"),
    ),
    Goal(
        text="INT4 against bfloat16, 8B, B=1, times",
        block="bench",
        entry="1 request of 128/128, llama-3.1-8b, quantization=int4",
        over="1 request of 128/128, llama-3.1-8b",
        goal=1.7,
        made_by=("loads of llama-3.1-8b, int4", "loads of llama-3.1-8b"),
    ),
)


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
