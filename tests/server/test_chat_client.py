"""`octavo chat` and `octavo complete` against a server of a few lines."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from octavo.server import chat_client
from octavo.server.chat_client import Client, ServerRefused
from octavo.server.settings import Settings

Answer = Callable[[httpx.Request], httpx.Response]


def events(*contents: object) -> httpx.Response:
    lines = [": ping\n\n", *(f"data: {json.dumps(content)}\n\n" for content in contents)]
    return httpx.Response(200, text="".join([*lines, "data: [DONE]\n\n"]))


def client(answer: Answer) -> Client:
    http = httpx.Client(transport=httpx.MockTransport(answer))
    return Client("http://test/v1/", "sesame", http)


def delta(text: str | None) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": text}}]}


def test_pieces_come_as_they_were_sent() -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return events(
            {"choices": [{"text": "a"}]},
            {"choices": [{"text": "狐"}]},
            {"choices": [], "usage": {}},
        )

    assert list(client(answer).complete({"prompt": "x"})) == ["a", "狐"]
    (request,) = asked
    assert request.url == "http://test/v1/completions"
    assert request.headers["authorization"] == "Bearer sesame"
    assert json.loads(request.content) == {"prompt": "x", "stream": True}


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (httpx.Response(404, json={"error": {"message": "no model x"}}), "no model x"),
        (httpx.Response(502, text="<html>"), "The server answered with status 502."),
        (httpx.Response(200, text="data: <html>\n\n"), "OpenAI format"),
        (events(delta("a"), {"error": {"message": "engine died"}}), "engine died"),
    ],
)
def test_errors_are_sentences(answer: httpx.Response, sentence: str) -> None:
    with pytest.raises(ServerRefused, match=sentence):
        list(client(lambda _: answer).chat({}))


def test_no_server_is_said_with_the_way_out() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with pytest.raises(ServerRefused, match="start one with `octavo serve`"):
        list(client(refuse).chat({}))


def run(
    monkeypatch: pytest.MonkeyPatch, command: Any, words: list[str], answer: Answer, stdin: str = ""
) -> None:
    http = httpx.Client(transport=httpx.MockTransport(answer))
    monkeypatch.setattr(chat_client.httpx, "Client", lambda **_: http)
    monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
    command(words, Settings(port=9000))


def test_complete_shows_prompt_and_continuation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bodies = []

    def answer(request: httpx.Request) -> httpx.Response:
        bodies.append((str(request.url), json.loads(request.content)))
        return events({"choices": [{"text": " a time\x1b[2J"}]})

    words = ["Once upon", "--max-tokens", "5", "--temperature", "0"]
    run(monkeypatch, chat_client.complete, words, answer)
    assert capsys.readouterr().out == "Once upon a time\ufffd[2J\n"
    url, body = bodies[0]
    assert url == "http://127.0.0.1:9000/v1/completions"
    assert body == {"prompt": "Once upon", "max_tokens": 5, "temperature": 0.0, "stream": True}


def test_chat_remembers_until_told_to_begin_anew(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[list[str]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        messages = json.loads(request.content)["messages"]
        seen.append([f"{message['role']}: {message['content']}" for message in messages])
        return events(delta(""), delta(f"answer {len(seen)}"), delta(None))

    stdin = "one\n\ntwo\n/clear\nthree\n/exit\nfour\n"
    run(monkeypatch, chat_client.chat, ["--system", "be kind"], answer, stdin)
    assert seen == [
        ["system: be kind", "user: one"],
        ["system: be kind", "user: one", "assistant: answer 1", "user: two"],
        ["system: be kind", "user: three"],
    ]
    assert capsys.readouterr().out.splitlines() == ["answer 1", "answer 2", "answer 3"]
