"""API contract, sections 1 (endpoints) and 6 (errors and headers)."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from octavo.engine import errors as engine_errors
from octavo.engine.async_engine import EngineStatus
from octavo.engine.errors import OctavoError
from octavo.engine.step import Delta
from octavo.server.openai.body import MAX_DEPTH
from octavo.server.openai.errors import TABLE, row_of
from octavo.version import __version__

from ..fakes.engine import ScriptedEngine
from .serving import Served, encoded, error_of, listening, model, saying, serve

PATH = "/v1/completions"
CHAT = "/v1/chat/completions"
KEY = {"Authorization": "Bearer secret"}


async def raw(server: Served, body: bytes, **headers: str) -> httpx.Response:
    return await server.http.post(
        PATH, content=body, headers={"content-type": "application/json", **headers}
    )


# --- section 1 -----------------------------------------------------------------------------------


async def test_s1_models_are_listed_with_their_names() -> None:
    answer = (await serve().http.get("/v1/models")).json()
    assert answer["object"] == "list"
    assert [entry["id"] for entry in answer["data"]] == ["tiny", "org/alias"]
    entry = answer["data"][0]
    assert (entry["object"], entry["created"]) == ("model", 1700000000)
    assert entry["owned_by"]
    assert entry["max_model_len"] == 512
    assert entry["parent"] is None
    assert entry["permission"][0]["object"] == "model_permission"


@pytest.mark.parametrize("path", ["tiny", "org/alias", "org%2Falias"])
async def test_s1_a_model_is_shown_whatever_way_its_slash_is_written(path: str) -> None:
    answer = (await serve().http.get(f"/v1/models/{path}")).json()
    assert answer["id"] in ("tiny", "org/alias")


async def test_s1_an_unknown_model_id_is_404() -> None:
    response = await serve().http.get("/v1/models/no/such")
    assert response.status_code == 404
    assert error_of(response)["code"] == "model_not_found"


@pytest.mark.parametrize("path", ["/health", "/readyz"])
async def test_s1_health_is_200_when_able_to_serve_and_503_with_the_stage_when_not(
    path: str,
) -> None:
    server = serve()
    assert (await server.http.get(path)).status_code == 200
    assert (await server.http.head(path)).status_code == 200
    for status in (
        EngineStatus("starting", "loading weights"),
        EngineStatus("stalled", "it made no progress for 6 s in step 41"),
        EngineStatus("restarting", "the engine ended by signal 9"),
        EngineStatus("dead", "it was given up"),
    ):
        server.engine.status = status
        response = await server.http.get(path)
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) > 0
        message = error_of(response)["message"]
        assert status.stage in message
        assert status.detail in message
        assert (await server.http.get("/livez")).status_code == 200


async def test_s1_health_is_503_while_draining_and_newcomers_are_refused() -> None:
    server = serve()
    server.app.state.admission.draining = True
    assert (await server.http.get("/readyz")).status_code == 503
    response = await server.post(PATH, {"prompt": "a"})
    assert response.status_code == 503
    assert error_of(response)["code"] == "shutting_down"
    assert response.headers["retry-after"]


async def test_s1_metrics_are_prometheus_text() -> None:
    server = serve()
    await server.complete()
    response = await server.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "# TYPE octavo:generation_tokens_total counter" in response.text


async def test_s1_version_load_and_ping() -> None:
    server = serve()
    assert (await server.http.get("/version")).json() == {"version": __version__}
    assert (await server.http.get("/load")).json() == {"server_load": 0}
    assert (await server.http.get("/ping")).status_code == 200
    assert (await server.http.post("/ping")).status_code == 200


async def test_s1_tokenize_a_prompt_and_back() -> None:
    server = serve()
    answer = (
        await server.post("/tokenize", {"prompt": "once upon", "return_token_strs": True})
    ).json()
    ids = encoded("once upon")
    assert answer["tokens"] == [0, *ids]
    assert answer["count"] == len(ids) + 1
    assert answer["max_model_len"] == 512
    assert "".join(answer["token_strs"]) == "<s>once upon"
    plain = await server.post("/tokenize", {"prompt": "once upon", "add_special_tokens": False})
    assert plain.json()["tokens"] == ids
    assert plain.json()["token_strs"] is None
    back = await server.post("/detokenize", {"tokens": ids})
    assert back.json() == {"prompt": "once upon"}


async def test_s1_tokenize_messages_as_chat_does() -> None:
    server = serve()
    messages = [{"role": "user", "content": "hello"}]
    answer = (await server.post("/tokenize", {"messages": messages})).json()
    await server.chat()
    assert answer["tokens"] == list(server.engine.requests[0].prompt_token_ids)
    shorter = await server.post("/tokenize", {"messages": messages, "add_generation_prompt": False})
    assert shorter.json()["count"] < answer["count"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/detokenize", {"tokens": [-1]}),
        ("/detokenize", {"tokens": [10**6]}),
        ("/detokenize", {"tokens": "a"}),
        ("/detokenize", {}),
        ("/tokenize", {}),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}),
        ("/tokenize", {"prompt": 5}),
    ],
)
async def test_s1_bad_tokens_are_400(path: str, body: Any) -> None:
    await serve().refusal(path, body)


async def test_s1_tokenizer_info_names_the_end_token() -> None:
    info = (await serve().http.get("/tokenizer_info")).json()
    assert info["eos_token"] == "</s>"


async def test_s1_openapi_describes_what_is_served() -> None:
    server = serve()
    document = (await server.http.get("/openapi.json")).json()
    assert set(document["paths"]) == {
        *("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/embeddings"),
        *("/v1/models", "/v1/models/{model}"),
        *("/tokenize", "/detokenize", "/tokenizer_info"),
        *("/health", "/readyz", "/livez", "/ping", "/version", "/load", "/metrics"),
    }
    text = json.dumps(document)
    named = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert named <= set(document["components"]["schemas"])
    ids = [op["operationId"] for path in document["paths"].values() for op in path.values()]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/moderations", "/v1/completionsx", "/score"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_s1_an_endpoint_that_is_not_offered_is_404(path: str, method: str) -> None:
    response = await serve().http.request(method, path)
    assert response.status_code == 404
    assert error_of(response)["code"] == "not_found"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", PATH, "POST"),
        ("DELETE", CHAT, "POST"),
        ("POST", "/v1/models", "GET"),
        ("POST", "/v1/models/tiny", "GET"),
        ("PUT", "/ping", "GET, POST"),
    ],
)
async def test_s1_a_wrong_method_is_405_with_allow(method: str, path: str, allowed: str) -> None:
    response = await serve().http.request(method, path)
    assert response.status_code == 405
    assert error_of(response)["code"] == "method_not_allowed"
    assert set(response.headers["allow"].split(", ")) == set(allowed.split(", "))


# --- section 6 -----------------------------------------------------------------------------------


def test_s6_every_error_of_the_tree_has_a_row_that_the_docstring_shows() -> None:
    from octavo.server.openai import errors

    kinds = [kind for module in (engine_errors, errors) for kind in vars(module).values()]
    ours = {k for k in kinds if isinstance(k, type) and issubclass(k, OctavoError)}
    reachable = {
        k for k in ours if issubclass(k, engine_errors.RequestError | engine_errors.EngineError)
    }
    for kind in reachable:
        assert any(base in TABLE for base in kind.__mro__), kind
    assert errors.__doc__ is not None
    drawn = {
        words[0]: (int(words[1]), words[2], words[3])
        for line in errors.__doc__.splitlines()
        if len(words := line.strip(" │├└─").split()) == 4 and words[1].isdecimal()
    }
    listed = {kind.__name__: (row.status, row.type, row.code) for kind, row in TABLE.items()}
    assert drawn == listed


def test_s6_what_is_no_error_of_ours_is_a_500() -> None:
    assert row_of(KeyError("x")).status == 500


MALFORMED = {
    "nothing": b"",
    "spaces": b"   ",
    "cut short": b'{"prompt": "a"',
    "not json": b"hello",
    "a list": b'["a"]',
    "a string": b'"a"',
    "a number": b"5",
    "null": b"null",
    "NaN": b'{"prompt": "a", "temperature": NaN}',
    "Infinity": b'{"prompt": "a", "temperature": Infinity}',
    "-Infinity": b'{"prompt": "a", "temperature": -Infinity}',
    "1e400": b'{"prompt": "a", "temperature": 1e400}',
    "broken UTF-8": b'{"prompt": "\xff"}',
    "surrogate bytes": b'{"prompt": "\xed\xa0\x80"}',
    "lone surrogate": b'{"prompt": "\\ud800"}',
    "lone surrogate in a key": b'{"prompt": "a", "\\udc00": 1}',
    "raw control character": b'{"prompt": "a\x01"}',
    "raw line break": b'{"prompt": "a\n"}',
    "a key twice": b'{"prompt": "a", "prompt": "b"}',
    "a huge integer": b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}",
    "a big integer": b'{"prompt": "a", "seed": ' + b"9" * 30 + b"}",
    "100000 brackets": b'{"prompt": ' + b"[" * 100_000,
    "closed brackets": b'{"prompt": "a", "x": ' + b"[" * 900 + b"]" * 900 + b"}",
    "nested objects": b'{"prompt": "a", "x": ' + b'{"a":' * 300 + b"1" + b"}" * 300 + b"}",
    "trailing comma": b'{"prompt": "a",}',
    "two documents": b'{"prompt": "a"} {}',
    "UTF-16": '{"prompt": "a"}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"prompt": "a"}',
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
async def test_s6_a_malformed_body_is_400(body: bytes) -> None:
    server = serve()
    response = await raw(server, body)
    assert response.status_code == 400, response.text
    assert error_of(response)["type"] == "invalid_request_error"
    assert server.engine.requests == []


async def test_s6_nesting_that_can_be_walked_is_taken() -> None:
    deep = b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1)
    response = await raw(serve(), b'{"prompt": "a", "x": ' + deep + b"}")
    assert response.status_code == 200


async def test_s6_a_surrogate_pair_is_one_character() -> None:
    server = serve()
    await raw(server, b'{"prompt": "\\ud83e\\udd8a"}')
    assert list(server.engine.requests[0].prompt_token_ids) == [0, *encoded("🦊")]


@pytest.mark.parametrize(
    "kind",
    ["application/json", "application/json; charset=utf-8", "text/plain", "application/x+json"],
)
async def test_s6_json_under_any_of_its_names_is_taken(kind: str) -> None:
    assert (await raw(serve(), b'{"prompt": "a"}', **{"content-type": kind})).status_code == 200


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/html", "image/png"])
async def test_s6_a_body_that_is_not_json_is_415(kind: str) -> None:
    response = await raw(serve(), b'{"prompt": "a"}', **{"content-type": kind})
    assert response.status_code == 415
    assert error_of(response)["code"] == "unsupported_media_type"


@pytest.mark.parametrize("coding", ["gzip", "br", "identity, gzip"])
async def test_s6_a_body_that_is_packed_is_415(coding: str) -> None:
    response = await raw(serve(), b'{"prompt": "a"}', **{"content-encoding": coding})
    assert response.status_code == 415
    assert "Content-Encoding" in error_of(response)["message"]
    for plain in ("identity", ""):
        response = await raw(serve(), b'{"prompt": "a"}', **{"content-encoding": plain})
        assert response.status_code == 200


async def test_s6_a_number_too_long_is_told_in_words_of_ours() -> None:
    response = await raw(serve(), b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}")
    assert response.status_code == 400
    message = error_of(response)["message"]
    assert "digits" in message
    assert "sys." not in message


async def test_s2_a_token_may_have_one_bias_only_however_it_is_spelled() -> None:
    bias = {"17": 1, "017": -100}
    error = await serve().refusal(PATH, {"prompt": "a", "logit_bias": bias})
    assert error["param"] == "logit_bias"
    assert "17" in error["message"]


async def test_s6_a_body_above_the_limit_is_413() -> None:
    server = serve(max_body_size=2000)
    response = await raw(server, b'{"prompt": "' + b"a" * 3000 + b'"}')
    assert response.status_code == 413
    assert error_of(response)["code"] == "body_too_large"


async def test_s6_a_long_body_below_the_limit_is_read() -> None:
    response = await serve().post(PATH, {"prompt": "a", "foreign": "x" * 3_000_000})
    assert response.status_code == 200


async def read_all(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(20):
        return await reader.read()


async def test_s6_413_at_once_when_the_length_says_so() -> None:
    async with listening(serve(max_body_size=2000)) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
        # The body itself is never sent.
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 999999\r\n\r\n"
        )
        answer = await read_all(reader)
        assert answer.startswith(b"HTTP/1.1 413")
        writer.close()


async def test_s6_413_for_a_chunked_body_that_grows_too_long() -> None:
    async def long() -> Any:
        for _ in range(3000):  # more than socket buffers hold
            yield b" " * 10_000

    async with listening(serve(max_body_size=5000)) as url, httpx.AsyncClient() as client:
        response = await client.post(f"{url}{PATH}", content=long())
        assert response.status_code == 413
        assert error_of(response)["code"] == "body_too_large"


async def test_s6_a_body_that_does_not_come_is_408() -> None:
    async with listening(serve(body_timeout=0.1)) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n{")
        assert (await read_all(reader)).startswith(b"HTTP/1.1 408")
        writer.close()


async def test_s6_expect_100_continue_and_chunked_bodies_are_taken() -> None:
    async with listening(serve()) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
            b"Content-Type: application/json; charset=utf-8\r\n"
            b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        )
        async with asyncio.timeout(20):
            assert await reader.readline() == b"HTTP/1.1 100 Continue\r\n"
            await reader.readline()
        writer.write(b'8\r\n{"prompt\r\n6\r\n":"a"}\r\n0\r\n\r\n')
        assert (await read_all(reader)).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_s6_the_connection_lives_on_after_a_400() -> None:
    async with listening(serve()) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
        for body, status in ((b"{", b"400"), (b'{"prompt":"a"}', b"200")):
            writer.write(
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s"
                % (len(body), body)
            )
            async with asyncio.timeout(20):
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 " + status)
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
        writer.close()


@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"},
     {"Authorization": "Basic secret"}, {"Authorization": "Bearer "},
     {"Authorization": "Bearer é"}],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/models", "/tokenizer_info", "/openapi.json", "/v1/nothing"])
async def test_s6_without_the_key_it_is_401_everywhere(path: str, headers: dict[str, str]) -> None:
    encoded_headers = {name: value.encode() for name, value in headers.items()}
    response = await serve(api_key=("secret", "other")).http.get(path, headers=encoded_headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert error_of(response)["code"] == "invalid_api_key"


async def test_s6_with_a_key_it_is_served_and_probes_need_none() -> None:
    server = serve(api_key=("secret", "other"))
    for key in ("secret", "other"):
        headers = {"Authorization": f"Bearer {key}"}
        assert (await server.http.get("/v1/models", headers=headers)).status_code == 200
    for path in ("/health", "/livez", "/readyz", "/ping", "/version", "/metrics", "/load"):
        assert (await server.http.get(path)).status_code == 200
    for path in ("/health/", "//health", "/health/../v1/models"):
        assert (await server.http.get(path)).status_code == 401


async def test_s6_without_a_configured_key_any_authorization_passes() -> None:
    response = await serve().http.get("/v1/models", headers={"Authorization": "Bearer anything"})
    assert response.status_code == 200


async def test_s6_too_many_waiting_is_429_with_retry_after() -> None:
    engine = ScriptedEngine(saying("a"))
    engine.hold = asyncio.Event()
    server = serve(engine=engine, max_queue_requests=2)
    waiting = [asyncio.create_task(server.complete()) for _ in range(2)]
    while len(engine.requests) < 2:
        await asyncio.sleep(0)
    response = await server.post(PATH, {"prompt": "a"})
    assert response.status_code == 429
    assert error_of(response)["type"] == "rate_limit_error"
    assert int(response.headers["retry-after"]) > 0
    engine.hold.set()
    await asyncio.gather(*waiting)
    await server.complete()


async def test_s6_503_while_loading_with_retry_after_and_models_listed() -> None:
    served = model()
    object.__setattr__(served, "max_model_len", None)
    server = serve(served=served)
    server.engine.status = EngineStatus("starting", "loading weights")
    for path, body in ((PATH, {"prompt": "a"}), (CHAT, {"messages": [USER]})):
        for stream in (False, True):
            response = await server.post(path, {**body, "stream": stream})
            assert response.status_code == 503
            assert "loading weights" in error_of(response)["message"]
            assert response.headers["retry-after"]
    assert (await server.http.get("/v1/models")).json()["data"][0]["max_model_len"] is None


USER = {"role": "user", "content": "hello"}


async def test_s6_a_failed_sequence_is_a_500_without_details_of_paths() -> None:
    server = serve(lambda request: [Delta(request_id="", error="it did not work")])
    error = await server.refusal(PATH, {"prompt": "a"}, 500)
    assert error["type"] == "server_error"


async def test_s6_a_bug_is_a_500_that_shows_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def broken(request: object) -> Any:
        raise KeyError("/secret/path")

    with caplog.at_level(logging.CRITICAL):
        error = await serve(broken).refusal(PATH, {"prompt": "a"}, 500)
    assert "secret" not in json.dumps(error)
    assert error["code"] == "internal_error"


@pytest.mark.parametrize("stream", [False, True])
async def test_s6_every_answer_has_an_id_and_its_time(stream: bool) -> None:
    server = serve(api_key=("secret",))
    answers = [
        await server.post(PATH, {"prompt": "a", "stream": stream}, headers=KEY),
        await server.post(PATH, {}, headers=KEY),
        await server.post(PATH, {}),
        await server.http.get("/nothing", headers=KEY),
        await server.http.get(PATH, headers=KEY),
        await server.http.get("/health"),
    ]
    assert [answer.status_code for answer in answers] == [200, 400, 401, 404, 405, 200]
    for answer in answers:
        assert answer.headers["x-request-id"]
        assert int(answer.headers["openai-processing-ms"]) >= 0
    assert len({answer.headers["x-request-id"] for answer in answers}) == len(answers)


async def test_s6_refusals_are_counted_by_their_reason() -> None:
    engine = ScriptedEngine(saying("a"))
    limits = {"max_queue_requests": 2, "max_queue_tokens": 40}
    server = serve(engine=engine, api_key=("secret",), **limits)
    await server.post(PATH, {})
    await server.post(PATH, {}, headers=KEY)
    server.engine.status = EngineStatus("dead")
    await server.post(PATH, {"prompt": "a"}, headers=KEY)
    server.engine.status = EngineStatus("ready")
    engine.hold = asyncio.Event()
    waiting = asyncio.create_task(server.post(PATH, {"prompt": [5] * 30}, headers=KEY))
    while not engine.requests:
        await asyncio.sleep(0)
    await server.post(PATH, {"prompt": [5] * 11}, headers=KEY)
    second = asyncio.create_task(server.post(PATH, {"prompt": [5]}, headers=KEY))
    while len(engine.requests) < 2:
        await asyncio.sleep(0)
    await server.post(PATH, {}, headers=KEY)
    server.app.state.admission.draining = True
    await server.post(PATH, {}, headers=KEY)
    engine.hold.set()
    await asyncio.gather(waiting, second)
    counted = {
        line.split('reason="')[1].split('"')[0]: float(line.rsplit(" ", 1)[1])
        for line in server.metrics.render().decode().splitlines()
        if line.startswith("octavo:requests_rejected_total{")
    }
    ours = ("unauthorized", "invalid", "unavailable", "queue_tokens", "queue_requests", "draining")
    assert counted == {**dict.fromkeys(ours, 1), "deadline": 0, "bodies": 0}


async def test_s6_a_clients_request_id_comes_back_bounded() -> None:
    server = serve()

    async def sent(name: bytes) -> str:
        answer = await server.http.get("/version", headers={"x-request-id": name})
        return answer.headers["x-request-id"]

    assert await sent(b"my-id.7") == "my-id.7"
    assert await sent(b"x" * 5000) == "x" * 128
    for unusable in (b"", b"a b", "ü".encode(), b"a\tb"):
        assert (await sent(unusable)).isalnum()


async def test_s6_cors_preflight_is_answered_without_a_key() -> None:
    server = serve(api_key=("secret",))
    headers = {
        "Origin": "http://page.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-custom",
    }
    answer = await server.http.options(PATH, headers=headers)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "x-custom" in answer.headers["access-control-allow-headers"]
    refused = await server.post(PATH, {}, headers={"Origin": "http://page.example"})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "*"
    assert "x-request-id" in refused.headers["access-control-expose-headers"]


@pytest.mark.parametrize("root_path", ["/llm", "/llm/"])
async def test_s6_below_a_proxys_path_everything_is_found(root_path: str) -> None:
    server = serve(root_path=root_path, api_key=("secret",))
    assert (await server.http.get("/llm/health")).status_code == 200
    assert (await server.http.get("/health")).status_code == 200
    assert (await server.http.get("/llm/v1/models")).status_code == 401
    assert (await server.http.get("/llm/v1/models", headers=KEY)).status_code == 200


async def test_s6_within_another_application_everything_is_found() -> None:
    """Whose framework says where it has put this one."""
    server = serve(api_key=("secret",))
    outer = Starlette(routes=[Mount("/models/llm", app=server.app)])
    transport = httpx.ASGITransport(outer)
    async with httpx.AsyncClient(transport=transport, base_url="http://octavo/models/llm") as http:
        assert (await http.get("/health")).status_code == 200
        assert (await http.get("/v1/models")).status_code == 401
        assert (await http.get("/v1/models", headers=KEY)).status_code == 200
        body = {"prompt": "once", "max_tokens": 3}
        assert (await http.post("/v1/completions", json=body)).status_code == 401
        answer = await http.post("/v1/completions", json=body, headers=KEY)
        assert answer.status_code == 200, answer.text
        assert (await http.post("/v1/none", json=body, headers=KEY)).status_code == 404
    assert (
        'handler="/v1/completions",method="POST",status="2xx"' in server.metrics.render().decode()
    )


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (PATH, {"prompt": "TEXT", "truncate_prompt_tokens": 5}),
        ("/v1/embeddings", {"input": "TEXT", "truncate_prompt_tokens": 5}),
        ("/v1/chat/completions", {"messages": "TEXT", "truncate_prompt_tokens": 5}),
        ("/tokenize", {"prompt": "TEXT"}),
        ("/tokenize", {"messages": "TEXT"}),
    ],
)
async def test_s6_a_text_that_takes_too_much_to_tokenize_is_400(
    path: str, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("prompts", "models", "conversation"):
        monkeypatch.setattr(f"octavo.server.openai.{module}.MAX_CHARACTERS", 20_000)
    server = serve()

    def of(text: str) -> dict[str, Any]:
        given = {"messages": [{"role": "user", "content": text}]}
        return {k: given.get(k, text) if v == "TEXT" else v for k, v in body.items()}

    assert (await server.post(path, of("a" * 10_000))).status_code == 200
    error = await server.refusal(path, of("a" * 20_001))
    assert error["code"] == "context_length_exceeded"
