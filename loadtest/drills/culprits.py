"""One request that breaks the engine, among good ones that must not notice."""

from __future__ import annotations

import asyncio
import random

from .answer import Answer, ask
from .daemon import Daemon, serving
from .effort import Effort
from .mix import COMPLETIONS, Output
from .verdict import Outcome, at_least, none

CULPRIT = 3907  # an ordinary token that no good prompt has
_FIRST_TOKEN, _LAST_TOKEN = 300, 3900
_TOKENS = 64


async def poison(effort: Effort) -> Outcome:
    """A request that always ends the engine's process fails alone among 16."""
    return await _among(effort, 16, f"exit@token={CULPRIT}")


async def batchmate(effort: Effort) -> Outcome:
    """A request whose step always raises fails alone among 64 in the same batch."""
    return await _among(effort, 64, f"raise@token={CULPRIT}")


async def _among(effort: Effort, good: int, fault: str) -> Outcome:
    draw = random.Random(effort.seed)
    bodies = [_body(draw, seed) for seed in range(good)]
    culprit = _body(draw, good)
    culprit["prompt"] = [*_prompt(draw), CULPRIT, *_prompt(draw)]
    arguments = ("--dtype", "float32", "--kv-memory", "256MiB", "--max-num-seqs", str(good + 8))
    async with serving(*arguments, "--test-fault", fault) as daemon:
        alone = await _all(daemon, bodies)
        *together, bad = await _all(daemon, [*bodies, culprit])
        idle = await daemon.idle_after(10.0)
        metrics = await daemon.metrics()
    differing = sum(
        Output.of(one) != Output.of(other)
        for one, other in zip(alone, together, strict=True)
        if one.good and other.good
    )
    failed = [answer.why() for answer in together if not answer.good]
    return Outcome(
        checks=(
            none("good requests that fail undisturbed", sum(not a.good for a in alone)),
            none("good requests that fail beside it", len(failed)),
            none("outputs that differ", differing),
            at_least("the culprit is told that it failed", int(_told(bad)), 1),
            none("daemons not idle afterwards", int(idle == float("inf"))),
        ),
        figures={
            "engine restarts": metrics.get("octavo:engine_restarts_total", 0.0),
            "the culprit's answer": bad.why()[:300],
            "what went wrong": "; ".join(failed[:3])[:500],
        },
    )


def _told(answer: Answer) -> bool:
    """By an error object of the server's own, and not by a lost connection."""
    return answer.error is not None and answer.status in (200, 500) and '"message"' in answer.error


def _prompt(draw: random.Random) -> list[int]:
    return [draw.randint(_FIRST_TOKEN, _LAST_TOKEN) for _ in range(draw.randint(8, 40))]


def _body(draw: random.Random, seed: int) -> dict[str, object]:
    return {
        "prompt": _prompt(draw),
        "max_tokens": _TOKENS,
        "ignore_eos": True,
        "seed": seed,
        "temperature": 0 if seed % 2 else 1,
        "logprobs": 1,
        "stream": seed % 3 > 0,
        "return_token_ids": True,
    }


async def _all(daemon: Daemon, bodies: list[dict[str, object]]) -> list[Answer]:
    asked = [ask(daemon.url, COMPLETIONS, body, limit_seconds=300) for body in bodies]
    return list(await asyncio.gather(*asked))
