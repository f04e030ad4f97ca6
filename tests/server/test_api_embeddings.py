"""API contract, section 1 (POST /v1/embeddings), with sections 5, 6, 9 and 11 where they touch it.

Test names carry the section, so that a line's test can be found.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import struct
from collections.abc import Sequence
from typing import Any

import httpx
import openai
import pytest

from octavo.engine.async_engine import EngineStatus
from octavo.engine.params import FinishReason, PoolingKind, PoolingParams, Request
from octavo.engine.step import Delta

from ..fakes.executor import pooled
from .serving import Served, encoded, listening, model, serve
from .test_api_cancellation import until
from .test_api_engine import idle, running

PATH = "/v1/embeddings"
HIDDEN_SIZE = model().config.hidden_size


def vector(prompt: Sequence[int]) -> tuple[float, ...]:
    """One that tells its prompt; all numbers are exact in float32."""
    return (float(len(prompt)), float(prompt[0]), -0.5, 1 / 1024)


def embedding(request: Request) -> list[Delta | None]:
    return [
        Delta(
            request_id="",
            embedding=vector(request.prompt_token_ids),
            cached_tokens=2,
            finish_reason=FinishReason.STOP,
        )
    ]


def server(**settings: Any) -> Served:
    return serve(embedding, **settings)


async def embed(served: Served, **body: Any) -> Any:
    response = await served.post(PATH, body)
    assert response.status_code == 200, response.text
    return response.json()


async def test_s1_the_answer_has_all_its_keys() -> None:
    ids = encoded("once")
    answer = await embed(server(), input=ids)
    assert answer == {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": list(vector(ids))}],
        "model": "tiny",
        "usage": {"prompt_tokens": len(ids), "total_tokens": len(ids)},
    }


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("once", [[0, *encoded("once")]]),  # a text gets a BOS
        (["once", "upon a"], [[0, *encoded("once")], [0, *encoded("upon a")]]),
        ([20, 21, 22], [[20, 21, 22]]),  # ids are used as they are
        ([[20], [21, 22]], [[20], [21, 22]]),
    ],
    ids=["str", "list[str]", "list[int]", "list[list[int]]"],
)
async def test_s1_input_in_its_four_forms(given: Any, sent: list[list[int]]) -> None:
    served = server()
    answer = await embed(served, input=given)
    assert [list(request.prompt_token_ids) for request in served.engine.requests] == sent
    assert [entry["index"] for entry in answer["data"]] == list(range(len(sent)))
    assert [entry["embedding"] for entry in answer["data"]] == [list(vector(ids)) for ids in sent]
    tokens = sum(map(len, sent))
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}


async def test_s5_the_order_is_that_of_the_inputs_whoever_ends_first() -> None:
    """The first one answers last."""

    def slow_first(request: Request) -> list[Delta | None]:
        long = request.prompt_token_ids[0] == 20
        nothing = Delta(request_id="")
        return [*([nothing] * 5 if long else []), *embedding(request)]

    answer = await embed(serve(slow_first), input=[[20], [21], [22]])
    assert [entry["embedding"][1] for entry in answer["data"]] == [20.0, 21.0, 22.0]


async def test_s1_base64_is_little_endian_float32() -> None:
    answer = await embed(server(), input=[20, 21], encoding_format="base64")
    data = base64.b64decode(answer["data"][0]["embedding"], validate=True)
    assert struct.unpack("<4f", data) == vector([20, 21])


async def test_s1_both_encodings_tell_the_same_numbers() -> None:
    third = Delta(request_id="", embedding=(1 / 3,), finish_reason=FinishReason.STOP)
    served = serve(lambda request: [third])
    (plain,) = (await embed(served, input="a"))["data"]
    (packed,) = (await embed(served, input="a", encoding_format="base64"))["data"]
    assert struct.unpack("<f", base64.b64decode(packed["embedding"])) == tuple(plain["embedding"])


async def test_s1_dimensions_and_our_own_fields_reach_the_engine() -> None:
    served = server()
    await embed(served, input="a")
    await embed(
        served,
        input="a",
        dimensions=HIDDEN_SIZE,
        pooling="last",
        normalize=False,
        cache_salt="mine",
        priority=-3,
    )
    default, given = served.engine.requests
    assert default.pooling == PoolingParams(kind=PoolingKind.MEAN, dimensions=None, normalize=True)
    assert given.pooling == PoolingParams(
        kind=PoolingKind.LAST, dimensions=HIDDEN_SIZE, normalize=False
    )
    assert (given.cache_salt, given.priority) == ("mine", -3)


async def test_s1_special_tokens_and_truncation() -> None:
    served = server()
    ids = encoded("once upon a time")
    await embed(served, input="once upon a time", add_special_tokens=False)
    await embed(served, input=ids, truncate_prompt_tokens=3)
    sent = [list(request.prompt_token_ids) for request in served.engine.requests]
    assert sent == [ids, ids[-3:]]


async def test_s2_null_means_the_default_and_unknown_fields_are_ignored() -> None:
    served = server()
    fields = "model encoding_format dimensions user pooling normalize cache_salt priority".split()
    answer = await embed(served, input="a", **dict.fromkeys(fields), session_id="x")
    assert answer == await embed(served, input="a")
    assert served.engine.requests[0].pooling == served.engine.requests[1].pooling


async def test_s2_an_alias_is_taken_and_told() -> None:
    assert (await embed(server(), input="a", model="org/alias"))["model"] == "org/alias"


async def test_s6_an_unknown_model_is_404_model_not_found() -> None:
    error = await server().refusal(PATH, {"input": "a", "model": "gpt-9"}, 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")


@pytest.mark.parametrize(
    "given",
    ["", [], [""], ["a", ""], [[]], [[20], []], ["a", 20], [20, "a"], [[20], "a"], [-1], [[-1]],
     [10**6], [[10**6]], 7, None, True, [True], {"a": 1}, [1.5], [None]],
)  # fmt: skip
async def test_s6_a_bad_or_empty_input_is_400(given: Any) -> None:
    served = server()
    error = await served.refusal(PATH, {"input": given})
    assert error["param"].startswith("input")
    assert not served.engine.requests


async def test_s6_a_missing_input_is_400() -> None:
    assert (await server().refusal(PATH, {}))["param"] == "input"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("dimensions", value) for value in (0, -1, 1.5, "8", HIDDEN_SIZE + 1)),
        *(("encoding_format", value) for value in ("int8", 1, "")),
        *(("pooling", value) for value in ("max", 1, [])),
        *(("normalize", value) for value in ("yes", 1)),
    ],
)
async def test_s6_a_value_out_of_its_limits_is_400(field: str, value: Any) -> None:
    error = await server().refusal(PATH, {"input": "a", field: value})
    assert error["param"] == field
    assert error["type"] == "invalid_request_error"


async def test_s6_an_input_longer_than_the_context_is_400_context_length_exceeded() -> None:
    served = server()
    await embed(served, input=[[20] * 512])  # all of it
    error = await served.refusal(PATH, {"input": [[20], [20] * 513]})
    assert (error["code"], error["param"]) == ("context_length_exceeded", "input")
    assert "context" in error["message"]
    assert len(served.engine.requests) == 1


async def test_s6_more_inputs_than_a_request_may_have_are_400() -> None:
    assert (await server().refusal(PATH, {"input": ["a"] * 16_385}))["param"] == "input"


async def test_s6_a_failing_sequence_is_500_and_a_dead_engine_503() -> None:
    broken = serve(lambda request: [Delta(request_id="", error="not finite")])
    assert (await broken.refusal(PATH, {"input": "a"}, 500))["type"] == "server_error"
    dead = server()
    dead.engine.status = EngineStatus("dead", "it died")
    assert (await dead.refusal(PATH, {"input": "a"}, 503))["type"] == "unavailable"


async def test_s6_wrong_method_is_405() -> None:
    response = await server().http.get(PATH)
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"


async def test_s9_a_client_that_leaves_aborts_all_inputs() -> None:
    served = serve(lambda request: [None])
    async with listening(served) as url, httpx.AsyncClient() as client:
        asking = asyncio.create_task(client.post(url + PATH, json={"input": ["a", "b", "c"]}))
        await until(lambda: len(served.engine.requests) == 3)
        asking.cancel()
        await until(lambda: len(served.engine.aborted) == 3)
        await until(lambda: served.app.state.admission.live == 0)


async def test_s9_it_is_counted_and_logged_like_any_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    served = server()
    with caplog.at_level(logging.INFO):
        await embed(served, input=[[20, 21], [22]])
    shown = served.metrics.render().decode()
    labels = '{engine="0",model_name="tiny"}'
    assert f"octavo:prompt_tokens_total{labels} 3.0" in shown
    assert f"octavo:generation_tokens_total{labels} 0.0" in shown
    assert f"octavo:prompt_tokens_cached_total{labels} 4.0" in shown
    ended = 'octavo:request_success_total{engine="0",finished_reason="stop",model_name="tiny"} 2.0'
    assert ended in shown
    assert any(PATH in record.getMessage() for record in caplog.records)


async def test_s1_openapi_describes_it() -> None:
    document = (await server().http.get("/openapi.json")).json()
    operation = document["paths"][PATH]["post"]
    assert operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith(
        "/EmbeddingRequest"
    )
    properties = document["components"]["schemas"]["EmbeddingRequest"]["properties"]
    assert {"input", "encoding_format", "dimensions", "pooling", "normalize"} <= set(properties)


@pytest.mark.parametrize("form", [None, "float", "base64"])
async def test_s11_openai_python_reads_floats_and_its_default_base64(form: str | None) -> None:
    served = server()
    options: dict[str, Any] = {} if form is None else {"encoding_format": form}
    async with listening(served) as url:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
            answer = await client.embeddings.create(
                model="tiny", input=[[20], [21, 22]], dimensions=4, user="u", **options
            )
            await client.embeddings.create(model="tiny", input="a", extra_body={"pooling": "last"})
    expected: list[Any] = [list(vector([20])), list(vector([21, 22]))]
    if form == "base64":  # who asks for it gets it as it came
        expected = [base64.b64encode(struct.pack("<4f", *one)).decode() for one in expected]
    assert [entry.embedding for entry in answer.data] == expected
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (3, 3)
    assert served.engine.requests[-1].pooling == PoolingParams(kind=PoolingKind.LAST)


@pytest.mark.parametrize("kind", ["mean", "last"])
async def test_s9_over_the_real_planning_wing_in_a_crowd(kind: str) -> None:
    prompts = [[20 + (i * j) % 200 for j in range(1, 3 + 40 * i)] for i in range(12)]
    async with running(num_blocks=40) as (client, engine):
        body = {"input": prompts, "pooling": kind, "normalize": False}
        beside = {"prompt": [[30 + i] * 9 for i in range(8)], "max_tokens": 60, "ignore_eos": True}
        found, generated = await asyncio.gather(
            client.post(PATH, json=body), client.post("/v1/completions", json=beside)
        )
        assert generated.json()["usage"]["completion_tokens"] == 8 * 60
        data = found.json()["data"]
        for entry, prompt in zip(data, prompts, strict=True):
            asked = Request(
                id="",
                prompt_token_ids=tuple(prompt),
                pooling=PoolingParams(kind=PoolingKind(kind)),
                seed=0,
                arrival=0.0,
            )
            assert entry["embedding"] == pytest.approx(pooled(asked), rel=1e-6)
        await idle(engine)


async def test_s9_a_client_that_leaves_frees_the_blocks() -> None:
    async with running(seconds_per_step=0.02) as (client, engine):
        body = {"input": [[20 + i] * 400 for i in range(200)]}  # five fit at a time
        asking = asyncio.create_task(client.post(PATH, json=body))
        await until(lambda: engine.stats.waiting > 2)
        asking.cancel()
        await idle(engine)
        assert engine.stats.step < 40
