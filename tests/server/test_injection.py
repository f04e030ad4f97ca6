"""What clients write gets into no log line of its own making, and into no label of a metric."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from octavo.server.observe import log

from .serving import Served, serve

pytestmark = pytest.mark.usefixtures("logging_as_before")

FORGED = "\r\n2026-01-01T00:00:00.000Z ERROR   forged status=200 id=1"
NASTY = (
    FORGED,
    "\n" + json.dumps({"level": "error", "message": "forged"}),
    "\x1b[2J\x1b]0;title\x07",
    "\u2028forged\u2029forged\x85forged\x0bforged\x0cforged\x1cforged",
    "\u202eright to left\u2066",
    "%s%n{0.__class__}${jndi:ldap://x}",
    "a" * 5000,
    '" status=200 "',
)


async def ask_nastily(server: Served) -> int:
    """Writes what it can into every place of a request. Gives the number of requests."""
    asked = 0
    for text in NASTY:
        latin = text.encode("utf-8").replace(b"\r", b"").replace(b"\n", b"").replace(b"\x0b", b"")
        headers: list[tuple[bytes, bytes]] = [
            (b"x-request-id", latin),
            (b"user-agent", latin),
            (b"authorization", b"Bearer " + latin),
            (b"x-forwarded-for", latin),
        ]
        body = {"prompt": "a", "max_tokens": 1, "user": text}
        for change in (
            {"model": text},
            {"request_id": text},
            {"user": text},
            {"cache_salt": text},
            {text: text},
            {"stop": [text]},
            {"prompt": [text]},
            {"logit_bias": {text: 1}},
            {"structured_outputs": {text: 1}},
        ):
            content = json.dumps({**body, **change}).encode()
            await server.http.post("/v1/completions", content=content, headers=headers)
            asked += 1
        await called(server, "GET", f"/v1/models/{text}")
        await called(server, text.strip() or "GET", "/v1/models")
        asked += 2
    return asked


async def called(server: Served, method: str, path: str) -> None:
    scope = {"type": "http", "http_version": "1.1", "method": method, "scheme": "http"}
    scope |= {"path": path, "raw_path": b"", "query_string": b"", "headers": []}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        pass

    await server.app(scope, receive, send)


@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_a_request_writes_one_line_whatever_is_in_it(log_format: str) -> None:
    stream = io.StringIO()
    log.configure(log_format, "debug", stream)
    server = serve()
    asked = await ask_nastily(server)
    written = stream.getvalue()
    lines = written.splitlines()  # at everything that anybody takes for the end of a line
    assert len(lines) == written.count("\n") == asked
    for line in lines:
        assert all(character.isprintable() for character in line), line
        if log_format == "json":
            record = json.loads(line)
            assert record["logger"] == "octavo.requests"
            assert record["message"] == "request finished"
        else:
            assert line[25:32].strip() in ("INFO", "WARNING"), line
            assert "request finished route=" in line
            # An id or a text of a client cannot be taken for a field of ours.
            assert line.partition(' error="')[0].count(" status=") == 1
    await server.close()


async def test_labels_of_metrics_have_values_of_ours_only() -> None:
    server = serve()
    await server.complete()
    await ask_nastily(server)
    await called(server, "FROB", "/nowhere")
    await called(server, "GET", "/nowhere")

    def series() -> set[str]:
        text = server.metrics.render().decode()
        return {line.rpartition(" ")[0] for line in text.splitlines() if line[:1] != "#"}

    first = series()
    await ask_nastily(server)
    for number in range(50):
        await called(server, f"M{number}", f"/path/{number}")
        await called(server, "GET", f"/v1/models/{number}")
    assert series() == first  # nothing grows with what clients think of
    assert not [line for line in first if "forged" in line or "M1" in line or "/path" in line]
    methods = {line.split('method="')[1].split('"')[0] for line in first if 'method="' in line}
    assert methods <= {"GET", "POST", "other"}
    await server.close()


@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_nobody_fills_the_log_or_gets_back_all_that_was_sent(log_format: str) -> None:
    stream = io.StringIO()
    log.configure(log_format, "info", stream)
    server = serve()
    huge = "x" * 200_000
    for body in (
        {"prompt": "a", "model": huge},
        {"prompt": "a", "structured_outputs": {"regex": huge + "("}},
        {"prompt": "a", "tools": [{"type": huge}], "response_format": {"type": huge}},
        {"prompt": "a", "logit_bias": {huge: 1}},
    ):
        answer = await server.post("/v1/completions", body)
        assert answer.status_code in (400, 404)
        assert len(answer.content) < 5000
    await called(server, "GET", f"/{huge}")
    assert all(len(line) < 5000 for line in stream.getvalue().splitlines())
    await server.close()
