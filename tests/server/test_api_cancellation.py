"""API contract, section 9: a client that leaves, load, and metrics."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from octavo.engine.params import Request
from octavo.engine.step import Delta, StepStats

from ..fakes.engine import ScriptedEngine
from .serving import Served, encoded, listening, saying, serve

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"


def silent_after(count: int) -> Callable[[Request], list[Delta | None]]:
    """`count` tokens for each choice, and then nothing any more."""

    def script(request: Request) -> list[Delta | None]:
        token = encoded("x")[0]
        choices = range(request.sampling.n)
        return [
            *(
                Delta(request_id="", index=i, token_ids=(token,))
                for _ in range(count)
                for i in choices
            ),
            None,
        ]

    return script


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("tokens", [0, 3])
@pytest.mark.parametrize("n", [1, 2])
async def test_s9_a_client_that_leaves_aborts_what_it_asked_for(
    path: str, stream: bool, tokens: int, n: int
) -> None:
    server = serve(silent_after(tokens))
    body: dict[str, Any] = {"stream": stream, "n": n}
    if path == COMPLETIONS:
        body["prompt"] = ["one", "two"]  # all prompts of a list
    else:
        body["messages"] = [{"role": "user", "content": "hello"}]
    prompts = 2 if path == COMPLETIONS else 1
    async with listening(server) as url, httpx.AsyncClient() as client:
        asking = asyncio.create_task(client.post(url + path, json=body))
        await until(lambda: len(server.engine.requests) == prompts)
        assert server.app.state.admission.live == 1
        asking.cancel()
        await until(lambda: len(server.engine.aborted) == prompts)
        assert server.app.state.admission.live == 0
        aborted = 'octavo:request_success_total{engine="0",finished_reason="abort"'
        await until(lambda: aborted in server.metrics.render().decode())


async def test_s9_a_queued_client_that_leaves_frees_its_place() -> None:
    engine = ScriptedEngine(saying("a"))
    engine.hold = asyncio.Event()
    server = serve(engine=engine, max_queue_requests=1)
    async with listening(server) as url, httpx.AsyncClient() as client:
        asking = asyncio.create_task(client.post(url + COMPLETIONS, json={"prompt": "a"}))
        await until(lambda: bool(engine.requests))
        asking.cancel()
        await until(lambda: bool(engine.aborted))
        engine.hold = None
        answer = await client.post(url + COMPLETIONS, json={"prompt": "a"})
        assert answer.status_code == 200


async def test_s9_neighbours_are_untouched_and_health_answers_meanwhile() -> None:
    server = serve(lambda r: silent_after(1)(r) if r.seed == 1 else saying("abc")(r))
    async with listening(server) as url, httpx.AsyncClient() as client:
        stuck = asyncio.create_task(
            client.post(url + COMPLETIONS, json={"prompt": "a", "seed": 1, "stream": True})
        )
        await until(lambda: bool(server.engine.requests))
        answer = await client.post(url + COMPLETIONS, json={"prompt": "a", "seed": 2})
        assert answer.json()["choices"][0]["text"] == "abc"
        assert (await client.get(url + "/health")).status_code == 200
        assert (await client.get(url + "/load")).json() == {"server_load": 1}
        stuck.cancel()
        await until(lambda: bool(server.engine.aborted))


async def test_s9_a_failed_prompt_of_a_list_ends_the_others() -> None:
    def script(request: Request) -> list[Delta | None]:
        if request.prompt_token_ids == (20,):
            return [Delta(request_id="", error="broken")]
        return silent_after(1)(request)

    server = serve(script)
    await server.refusal(COMPLETIONS, {"prompt": [[21], [20], [22]]}, 500)
    assert len(server.engine.aborted) == 3


async def count(server: Served, name: str) -> float:
    lines = (await server.http.get("/metrics")).text.splitlines()
    values = [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name}{{")]
    assert values, name
    return sum(values)


async def test_s9_counters_grow_by_the_true_numbers() -> None:
    server = serve(saying("abc"))
    answers = [
        await server.complete(prompt=[[20] * 7, [21] * 5], n=2),
        await server.chat(),
        await server.complete(stop="b"),
    ]
    assert await count(server, "octavo:prompt_tokens_total") == sum(
        answer["usage"]["prompt_tokens"] for answer in answers
    )
    assert await count(server, "octavo:generation_tokens_total") == sum(
        answer["usage"]["completion_tokens"] for answer in answers
    )
    assert await count(server, "octavo:request_success_total") == 4 + 1 + 1
    assert await count(server, "octavo:e2e_request_latency_seconds_count") == 3
    assert await count(server, "octavo:time_to_first_token_seconds_count") == 4
    await server.refusal(COMPLETIONS, {"prompt": "a", "n": 0})
    assert await count(server, "octavo:requests_rejected_total") == 1
    assert await count(server, "http_requests_total") >= 4


async def test_s9_gauges_follow_the_engines_steps() -> None:
    server = serve()
    for observer in server.engine.observers:
        observer(StepStats(step=1, running=3, waiting=2, blocks_total=10, blocks_used=5))
    assert await count(server, "octavo:num_requests_running") == 3
    assert await count(server, "octavo:num_requests_waiting") == 2
    assert await count(server, "octavo:kv_cache_usage_perc") == 0.5


async def test_s9_how_the_engine_fares_is_told() -> None:
    server = serve()
    for restarts, resumed, age in ((2, 30, 1.5), (3, 31, 0.0)):
        server.engine.restarts = restarts
        server.engine.resumed_requests = resumed
        server.engine.heartbeat_age = age
        assert await count(server, "octavo:engine_restarts_total") == restarts
        assert await count(server, "octavo:requests_resumed_total") == resumed
        assert await count(server, "octavo:engine_heartbeat_age_seconds") == age


async def test_s9_one_line_a_request_and_none_for_probes(caplog: pytest.LogCaptureFixture) -> None:
    server = serve()
    with caplog.at_level(logging.INFO, logger="octavo.requests"):
        await server.complete()
        await server.http.get("/health")
        await server.http.get("/metrics")
        await server.refusal(COMPLETIONS, {"prompt": 5})
    lines = [record for record in caplog.records if record.name == "octavo.requests"]
    assert len(lines) == 2


async def test_s9_requests_of_one_client_never_get_anothers_text() -> None:
    def named(request: Request) -> Any:
        return saying(f"I am {request.seed}")(request)

    server = serve(named)
    answers = await asyncio.gather(
        *(server.complete(seed=seed, n=2, prompt=["a", "b"], max_tokens=30) for seed in range(20))
    )
    for seed, answer in enumerate(answers):
        assert {choice["text"] for choice in answer["choices"]} == {f"I am {seed}"}
