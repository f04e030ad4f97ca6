"""Structured output and tools on a real server with the bundled model (API contract, 3b and 3c).

At temperature 1 a small model says anything: what ends must be valid, what is cut must be the
beginning of something valid, whatever the schema.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pydantic_core
import pytest

from octavo.engine.bundled import TARGET
from octavo.engine.checkpoint import read_model_config
from octavo.engine.params import GrammarKind, GrammarSpec
from octavo.engine.sampling.grammar import GrammarCompiler
from octavo.server.text.json_schema import enforceable

from ..schemas import JUNK, damaged, random_schema
from .daemon import Daemon, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SCHEMAS = 200
BROKEN = 500
AT_ONCE = 24
MESSAGES = [{"role": "user", "content": "Tell me of the king and his animals."}]
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("structured")
    with serving(folder, "--max-num-seqs", "32", "--dtype", "float32") as running:
        yield running
        assert running.metric("octavo:engine_restarts_total") <= 1  # the one that a test kills
        assert running.metric("octavo:kv_block_audit_failures_total") == 0


@pytest.fixture(scope="module")
def compiler() -> Iterator[GrammarCompiler]:
    config = read_model_config(TARGET)
    compiler = GrammarCompiler.from_folder(
        TARGET, vocab_size=config.vocab_size, stop_ids=config.eos_token_ids
    )
    yield compiler
    compiler.close()


def form(schema: object) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}


class Client:
    """Several requests at a time."""

    def __init__(self, daemon: Daemon) -> None:
        self._http = httpx.AsyncClient(base_url=daemon.url, timeout=300)
        self._places = asyncio.Semaphore(AT_ONCE)

    async def post(self, **body: Any) -> httpx.Response:
        async with self._places:
            return await self._http.post(CHAT, json={"messages": MESSAGES, **body})

    async def choices(self, **body: Any) -> list[dict[str, Any]]:
        response = await self.post(**body)
        assert response.status_code == 200, (body, response.text)
        choices: list[dict[str, Any]] = response.json()["choices"]
        return choices

    async def streamed(self, **body: Any) -> dict[str, Any]:
        """One choice's message, joined from its deltas, and how it ended."""
        text, reason = "", None
        calls: list[dict[str, str]] = []
        async with (
            self._places,
            self._http.stream(
                "POST", CHAT, json={"messages": MESSAGES, **body, "stream": True}
            ) as response,
        ):
            assert response.status_code == 200
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[6:])
                assert "error" not in event, event
                (choice,) = event["choices"]
                text += choice["delta"].get("content", "")
                for piece in choice["delta"].get("tool_calls", []):
                    if "id" in piece:
                        calls.append({**piece["function"]})
                    else:
                        calls[piece["index"]]["arguments"] += piece["function"]["arguments"]
                reason = choice["finish_reason"]
        return {"text": text, "calls": calls, "finish_reason": reason}


async def test_200_schemas_of_growing_nastiness(
    daemon: Daemon, compiler: GrammarCompiler, record_property: pytest.RecordProperty
) -> None:
    """Every ended answer validates, every cut one can be continued, every schema has an end."""
    rng = random.Random(20)
    schemas = [random_schema(rng, nastiness=i / SCHEMAS) for i in range(SCHEMAS)]
    client = Client(daemon)
    shares = await asyncio.gather(
        *(_ends_and_cuts(client, compiler, schema, i) for i, schema in enumerate(schemas))
    )
    ended = sum(share[0] for share in shares)
    cut = sum(share[1] for share in shares)
    again = sum(share[2] for share in shares)
    line = f"{SCHEMAS} schemas: {ended} answers ended, {cut} were cut; {again} asked again"
    print(line)
    record_property("structured", line)
    endless = [schema for schema, share in zip(schemas, shares, strict=True) if not share[0]]
    assert not endless
    assert cut > SCHEMAS / 4


async def _ends_and_cuts(
    client: Client, compiler: GrammarCompiler, schema: dict[str, Any], number: int
) -> tuple[int, int, int]:
    validator = jsonschema.Draft202012Validator(schema)
    ended = cut = again = 0
    # A tree with two branches, or a map, may well not end for a model that knows nothing of them.
    for round_, (max_tokens, n) in enumerate(
        [(200, 2), (8, 1), *[(400, 8)] * 3, *[(1200, 16)] * 4]
    ):
        if round_ > 1:
            if ended:
                break
            again += 1
        choices = await client.choices(
            response_format=form(schema),
            temperature=1.0,
            seed=1000 * number + round_,
            max_tokens=max_tokens,
            n=n,
            return_token_ids=True,
        )
        for choice in choices:
            text = choice["message"]["content"]
            if choice["finish_reason"] == "stop":
                ended += 1
                validator.validate(json.loads(text))
                continue
            assert choice["finish_reason"] == "length"
            cut += 1
            _require_beginning(compiler, schema, choice["token_ids"], text)
    return ended, cut, again


def _require_beginning(
    compiler: GrammarCompiler, schema: dict[str, Any], ids: list[int], text: str
) -> None:
    """`text` is the beginning of JSON, by another parser, and of an answer under the schema."""
    if text.strip("- \n") and "\ufffd" not in text[-3:]:
        pydantic_core.from_json(text, allow_partial="trailing-strings")
    spec = GrammarSpec(GrammarKind.JSON_SCHEMA, enforceable(schema, "schema"))
    walk = compiler.start(spec)
    walk.accept(ids)
    assert walk.mask(4096).any(), f"{text!r} cannot be continued under {schema}"


async def test_in_a_crowd_each_answer_is_the_one_it_gives_alone(daemon: Daemon) -> None:
    rng = random.Random(21)
    client = Client(daemon)
    bodies: list[dict[str, Any]] = []
    for i in range(36):
        body: dict[str, Any] = {"seed": i, "max_tokens": 80, "temperature": 1.0}
        if i % 3:
            body["response_format"] = form(random_schema(rng, nastiness=rng.random()))
        if i % 3 == 2:
            body |= {"logprobs": True, "top_logprobs": 2}
        bodies.append(body)

    def said(choices: list[dict[str, Any]]) -> list[tuple[str, str]]:
        return [(c["message"]["content"], c["finish_reason"]) for c in choices]

    alone = [said(await client.choices(**body)) for body in bodies]
    crowd = await asyncio.gather(*(client.choices(**body) for body in bodies))
    assert [said(choices) for choices in crowd] == alone
    for body, choices in zip(bodies, crowd, strict=True):
        (choice,) = choices
        if "response_format" in body and choice["finish_reason"] == "stop":
            schema = body["response_format"]["json_schema"]["schema"]
            jsonschema.validate(json.loads(choice["message"]["content"]), schema)
        if "logprobs" in body:
            scored = choice["logprobs"]["content"]
            said_bytes = bytes(b for token in scored for b in token["bytes"] or ())
            assert said_bytes.startswith(choice["message"]["content"].encode())


async def test_forced_calls_parse_and_satisfy_their_parameters(daemon: Daemon) -> None:
    rng = random.Random(22)
    client = Client(daemon)
    outcomes = await asyncio.gather(*(_forced(client, rng.random(), i) for i in range(60)))
    whole = sum(outcomes)
    print(f"{whole} of {len(outcomes)} forced calls were complete within 400 tokens")
    assert whole > len(outcomes) * 0.9


async def _forced(client: Client, nastiness: float, number: int) -> bool:
    """Whether the first answer was whole; streamed and plain must agree, and be valid."""
    rng = random.Random(number)
    first = random_schema(rng, nastiness=nastiness)
    parameters = {
        "$defs": first.pop("$defs", {}),
        "type": "object",
        "properties": {"first": first, "second": {"enum": ["a", "b"]}},
        "required": ["first", "second"],
        "additionalProperties": False,
    }
    empty = {"type": "object", "properties": {}, "additionalProperties": False}
    schemas = {"act": parameters, "rest": empty, "wait": empty}
    function = [
        {"type": "function", "function": {"name": "act", "parameters": parameters}},
        {"type": "function", "function": {"name": "rest"}},
        {"type": "function", "function": {"name": "wait", "parameters": {}}},
    ]
    named = ("required", "act", "rest", "wait")[number % 4]
    choice = named if named == "required" else {"type": "function", "function": {"name": named}}
    body = {
        "tools": function,
        "tool_choice": choice,
        "parallel_tool_calls": number % 3 == 0,
        "temperature": 1.0,
        "seed": number,
        "max_tokens": 400,
    }
    (plain,) = await client.choices(**body)
    streamed = await client.streamed(**body)
    message = plain["message"]
    assert message["content"] is None
    calls = [call["function"] for call in message["tool_calls"]]
    assert streamed["calls"] == calls
    assert streamed["text"] == ""
    assert streamed["finish_reason"] == plain["finish_reason"]
    if named != "required":
        assert {call["name"] for call in calls} == {named}
    if number % 3:
        assert len(calls) == 1
    if plain["finish_reason"] == "length":
        calls = calls[:-1]
    else:
        assert plain["finish_reason"] == "tool_calls"
    for call in calls:
        arguments = json.loads(call["arguments"])
        jsonschema.validate(arguments, schemas[call["name"]])
    return bool(plain["finish_reason"] == "tool_calls")


async def test_in_auto_a_call_is_well_formed_or_there_is_none(daemon: Daemon) -> None:
    """The model is led to the brink of a call by what it is to continue."""
    client = Client(daemon)
    tools = [
        {
            "type": "function",
            "function": {
                "name": "count",
                "parameters": {"type": "object", "properties": {"n": {"enum": [1, 2]}}},
            },
        }
    ]
    bodies = [
        {"tools": tools, "temperature": 1.0, "seed": i, "max_tokens": 60, "logit_bias": {"5": 8}}
        for i in range(24)
    ]
    called = 0
    for (choice,) in await asyncio.gather(*(client.choices(**body) for body in bodies)):
        calls = choice["message"].get("tool_calls", [])
        if choice["finish_reason"] == "length":
            calls = calls[:-1]
        for call in calls:
            assert call["function"]["name"] == "count"
            assert json.loads(call["function"]["arguments"]) in ({}, {"n": 1}, {"n": 2})
        called += bool(calls)
    assert called > 5


HOSTILE: list[dict[str, Any]] = [
    {"guided_regex": "((((a{1,99}){1,99}){1,99}){1,99}){1,99}b"},
    {"guided_regex": "(a{1000}){1000}"},
    {"guided_regex": "(" * 5000 + "a" + ")" * 5000},
    {"guided_regex": "(.*a.*b.*c.*){20}"},
    {"grammar": 'start: "a" start'},
    {"grammar": 'start: ("a"{1,9999}){1,9999} "b"{1,99999} <[99999999]>'},
    {"grammar": "start: " + "(" * 20_000 + '"a"' + ")" * 20_000},
    {"grammar": "root ::= " + "(" * 5000 + '"a"' + ")" * 5000},
    {"grammar": "root ::= root root"},
    {"grammar": "start: " + " | ".join(f'"{i}"' for i in range(20_000))},
    {"guided_choice": [f"{i} " * 30 for i in range(5_000)]},
    {"guided_json": {"enum": [f"value {i}" for i in range(30_000)]}},
    {"guided_json": {"$ref": "#"}},
    {"guided_json": {"type": "string", "minLength": 10**9}},
    {"guided_json": {"type": "array", "minItems": 10**9}},
    {"guided_json": {"type": "array", "items": {"type": "array", "maxItems": 10**18}}},
    {"guided_json": {"type": "integer", "minimum": 10**30, "maximum": 10**31}},
    {"guided_json": {"type": "number", "multipleOf": 1e-300}},
    {"guided_json": {"properties": {f"k{i}": {} for i in range(5000)}}},
    {"guided_json": {"type": "object", "patternProperties": {"(a|aa)+$": {}}}},
    {"guided_json": {"anyOf": [{"type": "object", "properties": {"a": {}}}] * 500}},
    {"guided_json": {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}] * 2}}, "$ref": "#/$defs/a"}},
    {"structured_outputs": {"regex": "\\p{L}{500}\\w{500}"}},
    {"response_format": {"type": "json_schema", "json_schema": {"schema": "\\u0000"}}},
]


async def test_500_broken_or_hostile_schemas_break_nothing(daemon: Daemon) -> None:
    """Refused with a sentence, or served; others are answered beside them; nothing restarts."""
    rng = random.Random(23)
    client = Client(daemon)
    restarts = daemon.metric("octavo:engine_restarts_total")
    bodies = list(HOSTILE)
    while len(bodies) < BROKEN:
        schema = random_schema(rng, nastiness=rng.random())
        junk = rng.choice([each for each in JUNK if each != "\ud800"])
        bodies.append({"response_format": form(damaged(rng, schema, junk))})
    rng.shuffle(bodies)
    statuses = [0, 0]

    async def ask(body: dict[str, Any]) -> None:
        response = await client.post(**body, max_tokens=12)
        assert response.status_code in (200, 400), (str(body)[:500], response.text[:500])
        if response.status_code == 400:
            error = response.json()["error"]
            assert error["message"] and error["type"] == "invalid_request_error"
            assert error["param"] or "the grammar" in error["message"], error
        statuses[response.status_code == 400] += 1

    async def neighbour() -> int:
        (choice,) = await client.choices(max_tokens=40, ignore_eos=True)
        return len(choice["message"]["content"])

    async with asyncio.TaskGroup() as group:
        for body in bodies:
            group.create_task(ask(body))
        neighbours = [group.create_task(neighbour()) for _ in range(10)]
    assert all(task.result() > 0 for task in neighbours)
    print(f"{BROKEN} broken or hostile: {statuses[0]} served, {statuses[1]} refused")
    assert statuses[1] > 100
    assert daemon.metric("octavo:engine_restarts_total") == restarts
    daemon.wait_until_idle()


async def test_a_constrained_stream_goes_on_when_the_engine_is_killed(daemon: Daemon) -> None:
    schema = {
        "type": "array",
        "items": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 9}}},
        "minItems": 12,
        "maxItems": 12,
    }
    client = Client(daemon)
    body = {"response_format": form(schema), "seed": 4, "max_tokens": 400, "temperature": 1.0}
    undisturbed = await client.streamed(**body)
    assert undisturbed["finish_reason"] in ("stop", "length")
    going_on = asyncio.gather(*(client.streamed(**{**body, "seed": s}) for s in (4, 4, 5)))
    before = daemon.metric("octavo:generation_tokens_total")
    while daemon.metric("octavo:generation_tokens_total") < before + 90:
        await asyncio.sleep(0.01)  # between two looks at a condition that is awaited
    os.kill(daemon.engine, signal.SIGKILL)
    first, second, _ = await going_on
    assert first == second == undisturbed
    assert daemon.metric("octavo:engine_restarts_total") == 1
