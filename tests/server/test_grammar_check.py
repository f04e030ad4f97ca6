"""Grammars of strangers are tried out where they can do no harm."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from octavo.engine.bundled import TARGET
from octavo.engine.errors import InvalidParameter
from octavo.engine.params import GrammarKind, GrammarSpec
from octavo.server.text.grammar_check import GrammarCheck
from octavo.server.text.json_schema import enforceable

from ..schemas import JUNK, damaged, random_schema


@pytest_asyncio.fixture
async def check() -> AsyncIterator[GrammarCheck]:
    check = GrammarCheck(TARGET, seconds=1)
    yield check
    await check.close()


def of(schema: object) -> GrammarSpec:
    return GrammarSpec(GrammarKind.JSON_SCHEMA, json.dumps(schema))


async def refusal(check: GrammarCheck, spec: GrammarSpec, path: str = "s") -> str:
    with pytest.raises(InvalidParameter) as refused:
        await check.check(spec, path)
    assert refused.value.param is not None
    assert str(refused.value).startswith(refused.value.param)
    return refused.value.param


async def test_what_compiles_passes_unchanged(check: GrammarCheck) -> None:
    rng = random.Random(1)
    for size in range(0, 200, 4):
        text = enforceable(random_schema(rng, nastiness=size / 200), "s")
        spec = GrammarSpec(GrammarKind.JSON_SCHEMA, text)
        assert await check.check(spec, "s") == spec


async def test_a_gbnf_grammar_becomes_lark(check: GrammarCheck) -> None:
    spec = await check.check(
        GrammarSpec(GrammarKind.GBNF, 'root ::= "yes" | "no" [a-z]+'), "grammar"
    )
    assert spec.kind is GrammarKind.LARK
    assert await check.check(spec, "grammar") == spec
    assert await refusal(check, GrammarSpec(GrammarKind.GBNF, "root ::= ((("), "g") == "g"


@pytest.mark.parametrize(
    ("path", "schema"),
    [
        ("s.properties.a.pattern", {"properties": {"a": {"type": "string", "pattern": "(?=x)y"}}}),
        (
            "s.$defs.d.items.pattern",
            {"$defs": {"d": {"items": {"pattern": "["}}}, "$ref": "#/$defs/d"},
        ),
        (
            "s.properties.a.oneOf",
            {
                "properties": {
                    "a": {"oneOf": [{"type": "string"}, {"type": "string", "minLength": 1}]}
                }
            },
        ),
        ("s", {"type": "object", "required": ["a"], "additionalProperties": False}),
        ("s", False),
        ("s", {"type": "array", "items": {"$ref": "#"}, "minItems": 1}),
    ],
)
async def test_the_part_of_a_schema_that_is_at_fault_is_named(
    check: GrammarCheck, path: str, schema: Any
) -> None:
    assert await refusal(check, of(schema)) == path


@pytest.mark.parametrize(
    "spec",
    [
        GrammarSpec(GrammarKind.REGEX, "["),
        GrammarSpec(GrammarKind.REGEX, "(a{1000}){1000}"),
        GrammarSpec(GrammarKind.REGEX, "((((a{1,99}){1,99}){1,99}){1,99}){1,99}b"),
        GrammarSpec(GrammarKind.REGEX, "a{100000}"),
        GrammarSpec(GrammarKind.REGEX, "(" * 5000 + "a" + ")" * 5000),
        GrammarSpec(GrammarKind.REGEX, "x" * 3_000_000),
        GrammarSpec(GrammarKind.LARK, "start"),
        GrammarSpec(GrammarKind.LARK, "start: nothing"),
        GrammarSpec(GrammarKind.LARK, 'start: "a" start'),
        GrammarSpec(GrammarKind.LARK, "start: " + "(" * 20_000 + '"a"' + ")" * 20_000),
        GrammarSpec(GrammarKind.LARK, 'start: ("a"{1,9999}){1,9999} "b"{1,99999} <[99999999]>'),
        GrammarSpec(GrammarKind.GBNF, "root ::= " + "(" * 5000 + '"a"' + ")" * 5000),
        GrammarSpec(GrammarKind.CHOICE, json.dumps([f"{i} " * 30 for i in range(10_000)])),
        of({"enum": [f"value {i}" for i in range(100_000)]}),
        of({"$ref": "#"}),
    ],
    ids=range(15),
)
async def test_hostile_grammars_are_refused_and_the_next_one_is_served(
    check: GrammarCheck, spec: GrammarSpec
) -> None:
    await refusal(check, spec)
    fine = GrammarSpec(GrammarKind.REGEX, "[0-9]+")
    assert await check.check(fine, "s") == fine


async def test_broken_schemas_never_do_worse_than_a_refusal(check: GrammarCheck) -> None:
    """500 schemas with something torn out or put in anywhere: refused with a sentence, or fine."""
    rng = random.Random(3)
    refused = 0
    for _ in range(500):
        schema = damaged(rng, random_schema(rng, nastiness=rng.random()), rng.choice(JUNK))
        try:
            text = enforceable(schema, "s")
            await check.check(GrammarSpec(GrammarKind.JSON_SCHEMA, text), "s")
        except InvalidParameter as error:
            refused += 1
            assert str(error).endswith(".")
    assert refused > 100


async def test_a_helper_that_dies_is_replaced(check: GrammarCheck) -> None:
    spec = GrammarSpec(GrammarKind.REGEX, "a")
    await check.check(spec, "s")
    helper = check._helper
    assert helper is not None
    helper.kill()
    await helper.wait()
    other = GrammarSpec(GrammarKind.REGEX, "b")
    assert await check.check(other, "s") == other
    assert check._helper is not helper


async def test_a_verdict_is_given_once(check: GrammarCheck) -> None:
    spec = GrammarSpec(GrammarKind.REGEX, "(?=a)b")
    await refusal(check, spec)
    await check.close()  # no helper any more
    await refusal(check, spec)
    assert check._helper is None


async def test_who_leaves_while_waiting_does_not_disturb_the_next(check: GrammarCheck) -> None:
    slow = asyncio.create_task(check.check(GrammarSpec(GrammarKind.REGEX, "a{100000}"), "s"))
    await asyncio.sleep(0)
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow
    assert await refusal(check, GrammarSpec(GrammarKind.REGEX, "["), "mine") == "mine"


async def test_a_model_without_a_tokenizer_says_so(tmp_path: Any) -> None:
    check = GrammarCheck(tmp_path)
    with pytest.raises(InvalidParameter, match="tokenizer"):
        await check.check(GrammarSpec(GrammarKind.REGEX, "a"), "s")
