"""Attacks on a server, while canaries look whether it still gives everybody else right answers."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from .attacks import HOST, Attack, attacks

_PATIENCE_SECONDS = 120.0  # for an answer; nothing is measured with it
GAUGES = (
    "octavo:num_requests_running",
    "octavo:num_requests_waiting",
    "octavo:kv_cache_usage_perc",
)
_CANARIES = (
    ("/v1/completions", {"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}),
    (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 8, "temperature": 0},
    ),
)


@dataclass(slots=True)
class Verdict:
    """What became of the attacks, and of the canaries among them."""

    statuses: Counter[int] = field(default_factory=Counter)  # 0: closed without an answer
    faults: list[str] = field(default_factory=list)  # how each was made, and what it met
    canaries: int = 0
    dropped_canaries: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not self.faults and not self.dropped_canaries and self.canaries > 0


async def drill(port: int, *, seed: int, count: int, at_once: int = 16) -> Verdict:
    """`count` attacks of `seed` on the server at `port` of this machine, `at_once` at a time."""
    verdict = Verdict()
    expected = [await _canary(port, path, body) for path, body in _CANARIES]
    stream = attacks(seed=seed, count=count)
    attackers = [asyncio.create_task(_attack_on(port, stream, verdict)) for _ in range(at_once)]
    watching = asyncio.create_task(_watch(port, expected, verdict))
    try:
        await asyncio.gather(*attackers)
    finally:
        watching.cancel()
        await asyncio.gather(watching, *attackers, return_exceptions=True)
    again = [await _canary(port, path, body) for path, body in _CANARIES]
    if again != expected:
        verdict.dropped_canaries.append(f"after all: {again} instead of {expected}")
    return verdict


async def gauges(port: int) -> dict[str, float]:
    """What /metrics says of each of GAUGES, summed over its labels."""
    data = b"GET /metrics HTTP/1.1\r\nHost: " + HOST + b"\r\nConnection: close\r\n\r\n"
    _, _, body = _parted(await _exchange(port, data))
    lines = body.decode().splitlines()
    return {
        name: sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name}{{"))
        for name in GAUGES
    }


async def _attack_on(port: int, stream: Iterator[Attack], verdict: Verdict) -> None:
    for attack in stream:
        try:
            received = await _exchange(port, attack.data)
        except TimeoutError:
            verdict.faults.append(f"{attack.note}: no end of the answer")
            continue
        fault = _fault(attack, received, verdict)
        if fault is not None:
            verdict.faults.append(f"{attack.note}: {fault}")


def _fault(attack: Attack, received: bytes, verdict: Verdict) -> str | None:
    if not received:
        verdict.statuses[0] += 1
        return None if attack.silent else "no answer"
    status, head, body = _parted(received)
    verdict.statuses[status] += 1
    if status >= 500 or not 200 <= status < 500:
        return f"status {status}: {body[:300]!r}"
    if b'"type":"server_error"' in body:
        return f"an error in a stream: {body[-300:]!r}"
    if b"\r\nx-request-id: " not in head:
        return f"no x-request-id: {head!r}"
    if status >= 400 and body and not _is_error(body):
        return f"not an error object: {body[:300]!r}"
    return None


def _is_error(body: bytes) -> bool:
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return False
    return set(error) == {"message", "type", "param", "code"} and bool(error["message"])


async def _watch(port: int, expected: list[str], verdict: Verdict) -> None:
    while True:
        for (path, body), right in zip(_CANARIES, expected, strict=True):
            try:
                answer = await _canary(port, path, body)
            except (AssertionError, TimeoutError, OSError) as error:
                verdict.dropped_canaries.append(f"{path}: {error!r}")
                continue
            verdict.canaries += 1
            if answer != right:
                verdict.dropped_canaries.append(f"{path}: {answer!r} instead of {right!r}")


async def _canary(port: int, path: str, body: dict[str, object]) -> str:
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: {HOST.decode()}\r\nContent-Length: {len(content)}\r\n"
    data = head.encode() + b"Connection: close\r\n\r\n" + content
    status, _, answer = _parted(await _exchange(port, data))
    assert status == 200, answer
    (choice,) = json.loads(answer)["choices"]
    return str(choice["text"] if "text" in choice else choice["message"]["content"])


async def _exchange(port: int, data: bytes) -> bytes:
    """Everything that comes back until the server closes, or b"" where it just did."""
    async with asyncio.timeout(_PATIENCE_SECONDS):
        reader, writer = await asyncio.open_connection(HOST.decode(), port)
        try:
            writer.write(data)
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()


def _parted(received: bytes) -> tuple[int, bytes, bytes]:
    """Status, head in small letters, and body of an answer; chunks are not put together."""
    while received.startswith(b"HTTP/1.1 100"):
        received = received.partition(b"\r\n\r\n")[2]
    head, _, body = received.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    return (int(words[1]) if len(words) > 1 and words[1].isdigit() else -1), head.lower(), body
