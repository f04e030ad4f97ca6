"""The application over a scripted engine, in process or on a real port."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from octavo.engine.bundled import TARGET
from octavo.engine.checkpoint import read_model_config
from octavo.engine.params import FinishReason, Request
from octavo.engine.step import Delta, TokenLogprobs
from octavo.server.app import create_app
from octavo.server.http_server import http_server
from octavo.server.models import ModelPool, ServedModel
from octavo.server.observe.metrics import Metrics
from octavo.server.settings import Settings
from octavo.server.text.grammar_check import GrammarCheck
from octavo.server.text.template import ChatTemplate
from octavo.server.text.template_worker import InProcess, Renderer
from octavo.server.text.tokenizer import Tokenizer

from ..fakes.engine import Script, ScriptedEngine, told
from .vocabularies import byte_level

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% if not loop.last or add_generation_prompt %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
END = 1  # the id of </s>


def model(tokenizer: Tokenizer | None = None, *, template: str | None = TEMPLATE) -> ServedModel:
    tokenizer = tokenizer or byte_level()
    return ServedModel(
        names=("tiny", "org/alias"),
        folder=TARGET,
        config=replace(read_model_config(TARGET), vocab_size=tokenizer.vocab_size),
        tokenizer=tokenizer,
        template=None if template is None else ChatTemplate(template, tokenizer),
        sampling_defaults={},
        created=1700000000,
        max_model_len=512,
    )


def encoded(text: str) -> list[int]:
    return byte_level().encode(text, add_special_tokens=False)


def saying(*texts: str, reason: FinishReason = FinishReason.STOP, at_once: int = 1) -> Script:
    """Choice i says texts[i % len]: its tokens one by one, cut by max_tokens, then the end."""

    def script(request: Request) -> Sequence[Delta | None]:
        choices = []
        for index in range(request.sampling.n):
            ids = encoded(texts[index % len(texts)])
            limit = request.sampling.max_tokens
            ended = FinishReason.LENGTH
            if reason is FinishReason.STOP and (limit is None or len(ids) < limit):
                ids, ended = [*ids, END], FinishReason.STOP
            ids = ids[:limit]
            scored = score if request.sampling.logprobs is not None else None
            prompt: list[TokenLogprobs] = []
            if request.sampling.prompt_logprobs is not None and index == 0:
                prompt = [score(i, t) for i, t in enumerate(request.prompt_token_ids[1:])]
            choices.append(
                told(
                    ids,
                    index=index,
                    reason=ended,
                    at_once=at_once,
                    logprobs=scored,
                    prompt_logprobs=prompt,
                    cached_tokens=4,
                )
            )
        longest = max(map(len, choices))
        return [choice[i] for i in range(longest) for choice in choices if i < len(choice)]

    return script


def score(place: int, token: int) -> TokenLogprobs:
    """Made-up log-probabilities: the token is the second likeliest of six."""
    others = [i for i in range(10, 17) if i != token][:5]
    return TokenLogprobs(
        token_id=token,
        logprob=-1.0 - place / 64,
        rank=2,
        top_ids=(others[0], token, *others[1:]),
        top_logprobs=(-0.5, -1.0 - place / 64, -4.0, -5.0, -6.0, float("-inf")),
    )


@dataclass(slots=True)
class Served:
    """An application under test and a client of it."""

    app: FastAPI
    engine: ScriptedEngine
    metrics: Metrics
    http: httpx.AsyncClient
    settings: Settings

    async def post(self, path: str, body: Any = None, **options: Any) -> httpx.Response:
        return await self.http.post(path, json=body, **options)

    async def close(self) -> None:
        """End what has been started to check grammars and render templates."""
        for helper in self.app.state.helpers:
            await helper.close()

    async def complete(self, **body: Any) -> dict[str, Any]:
        """The answer of /v1/completions, which must be a success."""
        return await self._good("/v1/completions", {"prompt": "once", **body})

    async def chat(self, **body: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": "hello"}]
        return await self._good("/v1/chat/completions", {"messages": messages, **body})

    async def events(self, path: str, **body: Any) -> list[Any]:
        """The chunks of a stream; the last one, [DONE], is left out after a look."""
        defaults: dict[str, Any] = (
            {"prompt": "once"}
            if path == "/v1/completions"
            else {"messages": [{"role": "user", "content": "hello"}]}
        )
        response = await self.post(path, {**defaults, **body, "stream": True})
        assert response.status_code == 200, response.text
        return chunks(response.text)

    async def refusal(self, path: str, body: Any, status: int = 400) -> dict[str, Any]:
        """The error object of an answer that must be one."""
        response = await self.post(path, body)
        assert response.status_code == status, response.text
        return error_of(response)

    async def _good(self, path: str, body: Any) -> dict[str, Any]:
        response = await self.post(path, body)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error object; every promise of its form is looked at."""
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    assert set(response.json()) == {"error"}
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    assert error["param"] is None or isinstance(error["param"], str)
    assert error["code"] is None or isinstance(error["code"], str)
    assert "Traceback" not in error["message"]
    return error


def chunks(stream: str) -> list[Any]:
    """The JSON of each event, strictly: one `data: ` line and one empty line each, then [DONE]."""
    assert stream.endswith("data: [DONE]\n\n")
    events = stream.removesuffix("\n\n").split("\n\n")
    for event in events:
        assert event.startswith("data: "), event
        assert "\n" not in event
        assert len(event.splitlines()) == 1
    return [json.loads(event.removeprefix("data: ")) for event in events[:-1]]


def serve(
    script: Script | None = None,
    *,
    served: ServedModel | None = None,
    engine: ScriptedEngine | None = None,
    grammar_check: Callable[[Path], GrammarCheck] = GrammarCheck,
    renderer: Callable[[], Renderer] = InProcess,
    **settings: Any,
) -> Served:
    """In process: no socket, answers arrive whole."""
    engine = engine or ScriptedEngine(script or saying("there was a fox."))
    served = served or model()
    metrics = Metrics(model_name="tiny", longest_context=512)
    chosen = Settings(**settings)
    app = create_app(
        engine,  # type: ignore[arg-type]
        ModelPool((served,)),
        chosen,
        metrics=metrics,
        grammar_check=grammar_check,
        renderer=renderer,
    )
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    client = httpx.AsyncClient(transport=transport, base_url="http://octavo")
    return Served(app, engine, metrics, client, chosen)


@contextlib.asynccontextmanager
async def listening(served: Served, *, connections: int = 100) -> AsyncIterator[str]:
    """On a real port, in this event loop. Gives its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = http_server(
        served.app,
        served.settings,
        connections=connections,
        on_refused=served.metrics.on_refused,
    )
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.end(force=True)
        await task
