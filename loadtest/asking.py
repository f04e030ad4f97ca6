"""How a server is asked: its first model, its version, and how many words make a token for it."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace

from .run import Target
from .workload import Asking


class Refused(SystemExit):
    """A server does not answer as this API does: the end of a command, and of one peer only."""


_FEW, _MANY = 50, 250  # words of the two probes


async def first_model(base_url: str, api_key: str | None) -> str:
    """The name of the first model a server lists."""
    target = Target(base_url=base_url, asking=Asking(model=""), api_key=api_key)
    try:
        status, body = await _get(target, "/v1/models")
    except OSError as error:
        raise Refused(f"octavo bench: {base_url} does not answer: {error}") from error
    if status != 200:
        raise Refused(f"octavo bench: {base_url}/v1/models answers {status}")
    return str(json.loads(body)["data"][0]["id"])


async def server_version(target: Target) -> str:
    """What the server says it is, where it says so (octavo, vLLM, llama.cpp)."""
    for path, key in (("/version", "version"), ("/props", "build_info")):
        try:
            status, body = await _get(target, path)
            if status == 200:
                return str(json.loads(body)[key])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return "unknown"


async def calibrated(target: Target) -> Target:
    """The target with the tokens that one word and the frame of a prompt count on this server.

    Two probes of known words, and the line through what `usage` says of them.
    """
    few, many = [await _prompt_tokens(target, words) for words in (_FEW, _MANY)]
    per_word = (many - few) / (_MANY - _FEW)
    if per_word <= 0:
        raise Refused("octavo bench: the server does not count prompt tokens in `usage`")
    asking = replace(
        target.asking, tokens_per_word=per_word, frame_tokens=max(0.0, few - _FEW * per_word)
    )
    return replace(target, asking=asking)


async def _prompt_tokens(target: Target, words: int) -> int:
    asking, client = target.asking, target.client()
    prompt: Sequence[int] | Sequence[str] = asking.pieces(words, random.Random(words))
    body = asking.body(list(prompt), output_tokens=1, stream=False)  # type: ignore[arg-type]
    try:
        exchange = await client.post(asking.path, body)
    finally:
        client.close()
    if exchange.error is not None:
        raise Refused(f"octavo bench: the server refuses a request: {exchange.error}")
    return exchange.prompt_tokens


async def _get(target: Target, path: str) -> tuple[int, bytes]:
    client = target.client()
    try:
        return await client.get(path)
    finally:
        client.close()
