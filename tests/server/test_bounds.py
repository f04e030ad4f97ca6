"""Whatever costs time or memory has a limit, and one more than it is 400."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.server.openai import params, schema
from octavo.server.openai.embeddings import EmbeddingRequest
from octavo.server.openai.responses_schema import ResponsesRequest

from .serving import serve
from .vocabularies import byte_level

VOCABULARY = byte_level().vocab_size
LISTS: dict[str, tuple[Any, Any]] = {
    "stop": (["x"] * params.MAX_STOPS, ["x"] * (params.MAX_STOPS + 1)),
    "a stop": ("x" * params.MAX_STOP_CHARACTERS, "x" * (params.MAX_STOP_CHARACTERS + 1)),
    "stop_token_ids": ([5] * params.MAX_STOP_IDS, [5] * (params.MAX_STOP_IDS + 1)),
    "allowed_token_ids": ([5] * VOCABULARY, [5] * (VOCABULARY + 1)),
    "bad_words": (["w"] * params.MAX_BAD_WORDS, ["w"] * (params.MAX_BAD_WORDS + 1)),
    "a bad_words": (
        ["w" * params.MAX_BAD_WORD_CHARACTERS],
        ["w" * (params.MAX_BAD_WORD_CHARACTERS + 1)],
    ),
}


@pytest.mark.parametrize("name", LISTS)
async def test_lists_and_texts_have_limits(name: str) -> None:
    server, field = serve(), name.rpartition(" ")[2]
    most, more = LISTS[name]
    await server.complete(**{field: most})
    error = await server.refusal("/v1/completions", {"prompt": "a", field: more})
    assert error["param"] == field
    assert "at most" in error["message"]


async def test_more_biases_than_the_limit_are_400() -> None:
    bias = {str(token): 1 for token in range(params.MAX_BIASES + 1)}
    error = await serve().refusal("/v1/completions", {"prompt": "a", "logit_bias": bias})
    assert error["param"] == "logit_bias"
    assert str(params.MAX_BIASES) in error["message"]


REQUESTS = (
    *(schema.CompletionRequest, schema.ChatRequest, schema.TokenizeRequest),
    *(schema.DetokenizeRequest, EmbeddingRequest, ResponsesRequest),
)
# Bounded where they are used, by what they go with.
ELSEWHERE = {("length_penalty", "number"), ("repetition_penalty", "number")}


def test_every_number_of_every_request_has_limits_on_both_sides() -> None:
    import msgspec

    _, components = msgspec.json.schema_components(REQUESTS)
    unbounded = {
        (name, kind["type"])
        for component in components.values()
        for name, field in component.get("properties", {}).items()
        for kind in (field, *field.get("anyOf", ()))
        if kind.get("type") in ("integer", "number")
        and not ({"minimum", "exclusiveMinimum"} & kind.keys() and "maximum" in kind)
    }
    assert unbounded <= ELSEWHERE, unbounded - ELSEWHERE


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("length_penalty", 1e300),
        ("length_penalty", 17.0),
        ("repetition_penalty", 1e-300),
        ("repetition_penalty", 1e300),
    ],
)
async def test_the_other_two_are_bounded_where_they_are_used(field: str, value: float) -> None:
    server = serve()
    beams = {"use_beam_search": True} if field == "length_penalty" else {}
    for number in (value, -value):
        error = await server.refusal("/v1/completions", {"prompt": "a", field: number, **beams})
        assert error["param"] == field
