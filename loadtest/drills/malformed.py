"""Bodies that are wrong in every way a seeded generator thinks of, beside canaries that are right.

The generator takes a right body of some endpoint and breaks it one to three times: in its values,
in its keys, or in its bytes.
"""

from __future__ import annotations

import asyncio
import copy
import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .answer import ask, connect, head_of, read_head
from .daemon import serving
from .effort import Effort
from .verdict import Outcome, at_least, none

_WORKERS = 16
_ANSWER_SECONDS = 5.0  # a body that happens to be right may ask for a lot: then it is left
_HANG_SECONDS = 60.0
_TEXT = [{"role": "user", "content": "hello"}]
_SHORT: dict[str, Any] = {"max_tokens": 2, "temperature": 0, "n": 1, "stop": ["zzz"]}
_RIGHT: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/completions", {"prompt": "once", **_SHORT, "logprobs": 1, "logit_bias": {"5": 1}}),
    ("/v1/completions", {"prompt": [[300, 301], [302]], **_SHORT, "stream": True}),
    ("/v1/chat/completions", {"messages": _TEXT, **_SHORT, "stream": False}),
    (
        "/v1/chat/completions",
        {
            "messages": [*_TEXT, {"role": "assistant", "content": [{"type": "text", "text": "a"}]}],
            **_SHORT,
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
            "tool_choice": "auto",
        },
    ),
    (
        "/v1/chat/completions",
        {
            "messages": _TEXT,
            **_SHORT,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"type": "object", "properties": {}}},
            },
        },
    ),
    ("/v1/responses", {"input": "hello", "max_output_tokens": 2, "temperature": 0}),
    ("/v1/embeddings", {"input": ["a", "b"], "encoding_format": "float"}),
    ("/tokenize", {"prompt": "hello", "add_special_tokens": True}),
    ("/detokenize", {"tokens": [1, 2, 3]}),
)
_NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 2**64, 10**400, 1e308, -0.0, 1e-320),
    *("", "\0", "x" * 5000, "\ud800", "\u2028", "<|im_end|>", "../../etc/passwd", "{{ 7 * 7 }}"),
    *([], {}, [[]], [None], [{}], {"": ""}, {"a": {"b": {"c": []}}}, [1, "a", None], [0] * 3000),
    *([-1], ["a"] * 200, {"type": "x"}, {"type": "json_schema"}, float("nan"), float("inf")),
)
_BYTES = (b"\0", b"\xff", b"\xc3", b"\x1f", b"\r\n", b"NaN", b"-Infinity", b'"', b"{", b"]", b",")


@dataclass(slots=True)
class _Found:
    statuses: Counter[int] = field(default_factory=Counter)
    server_errors: list[str] = field(default_factory=list)
    no_answer: list[str] = field(default_factory=list)
    hanging: int = 0
    left: int = 0
    canaries: int = 0
    dropped: list[str] = field(default_factory=list)


async def malformed(effort: Effort) -> Outcome:
    found = _Found()
    bodies = broken_bodies(effort.seed, effort.malformed_bodies)
    async with serving("--max-num-seqs", "32", "--kv-memory", "256MiB") as daemon:
        singing = asyncio.create_task(_canaries(daemon.url, found))

        async def work() -> None:
            for path, body in bodies:  # shared by all workers
                await _send(daemon.url, path, body, found)

        await asyncio.gather(*(work() for _ in range(_WORKERS)))
        singing.cancel()
        await asyncio.gather(singing, return_exceptions=True)
        idle = await daemon.idle_after(10.0)
        alive = await daemon.ready()
    return Outcome(
        checks=(
            at_least("bodies sent", found.statuses.total() + found.left, effort.malformed_bodies),
            none("five-hundreds", len(found.server_errors)),
            none("connections without an answer", len(found.no_answer)),
            none("answers that never come", found.hanging),
            at_least("canaries", found.canaries, 1),
            none("canaries dropped", len(found.dropped)),
            none("daemons not ready afterwards", int(not alive)),
            none("daemons not idle afterwards", int(idle == float("inf"))),
        ),
        figures={
            **{f"status {status}": count for status, count in sorted(found.statuses.items())},
            "right by chance and long, left": found.left,
            "examples": "; ".join(
                [*found.server_errors[:4], *found.no_answer[:2], *found.dropped[:2]]
            )[:1500],
        },
    )


def broken_bodies(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """Paths and bodies, the same for the same seed. A few of them happen to be right."""
    draw = random.Random(seed)
    for _ in range(count):
        path, right = draw.choice(_RIGHT)
        body: Any = copy.deepcopy(right)
        for _ in range(draw.randint(1, 3)):
            body = _broken(body, draw)
        # NaN and lone surrogates are written as they are.
        raw = json.dumps(body, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")
        yield path, _broken_bytes(raw, draw) if draw.random() < 0.35 else raw


def _broken(body: Any, draw: random.Random) -> Any:
    """One value somewhere inside is replaced, removed, doubled or wrapped."""
    places = list(_places(body))
    if not places or draw.random() < 0.03:
        return _nasty(draw)
    holder, key = draw.choice(places)
    way = draw.random()
    if way < 0.6:
        holder[key] = _nasty(draw)
    elif way < 0.75:
        del holder[key]
    elif way < 0.9:
        holder[key] = [holder[key]] if draw.random() < 0.5 else {"x": holder[key]}
    elif isinstance(holder, dict):
        holder[draw.choice(("model", "n", "best_of", "stop", "suffix", "seed", "top_k"))] = _nasty(
            draw
        )
    return body


def _nasty(draw: random.Random) -> Any:
    return copy.deepcopy(draw.choice(_NASTY))  # it may be broken further


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each (list or object, index or key) inside."""
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value[:8])
        if isinstance(value, list)
        else ()
    )
    for key, inner in items:
        yield value, key
        yield from _places(inner)


def _broken_bytes(raw: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(raw) + 1)
    way = draw.randrange(5)
    if way == 0:
        return raw[:place]
    if way == 1:
        return raw[:place] + draw.choice(_BYTES) + raw[place:]
    if way == 2:
        return raw[:place] + draw.randbytes(draw.randint(1, 8)) + raw[place + 1 :]
    if way == 3:
        depth = draw.choice((300, 5000, 100_000))
        return b'{"prompt":' + b"[" * depth + b"]" * (depth - draw.randint(0, 1)) + b"}"
    return raw[:-1] + b"," + raw[1:]  # every key twice


async def _send(url: str, path: str, body: bytes, found: _Found) -> None:
    try:
        async with asyncio.timeout(_HANG_SECONDS):
            reader, writer = await connect(url)
            try:
                writer.write(head_of("POST", path, len(body)) + body)
                async with asyncio.timeout(_ANSWER_SECONDS):
                    status, _ = await read_head(reader)
                content = b"" if status == 200 else await reader.read(2000)
            except TimeoutError:
                found.left += 1
                return
            finally:
                writer.close()
    except TimeoutError:
        found.hanging += 1
        return
    except (OSError, EOFError, ValueError) as error:
        found.statuses[0] += 1
        found.no_answer.append(f"{path} {body[:200]!r}: {error!r}")
        return
    found.statuses[status] += 1
    if status >= 500:
        found.server_errors.append(f"{path} {body[:300]!r}: {content[-300:]!r}")


async def _canaries(url: str, found: _Found) -> None:
    """Right requests, one after the other, that must all give the same answer."""
    body = {"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}
    first: str | None = None
    while True:
        answer = await ask(url, "/v1/completions", body, limit_seconds=_HANG_SECONDS)
        found.canaries += 1
        text = answer.choices[0].text if answer.good and answer.choices else None
        first = first or text
        if text is None or text != first:
            found.dropped.append(answer.why())
        await asyncio.sleep(0.05)
