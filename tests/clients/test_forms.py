"""Answers of a given form and forced tool calls, through the clients that ask for them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ..e2e.daemon import Daemon
from .llm_command import LlmCommand
from .running import OURS, THEIRS, Outcomes, node_outcomes, outcomes

pytestmark = pytest.mark.slow


def is_animal(value: dict[str, Any], *more: str) -> bool:
    """The clients' own classes have checked the rest."""
    return value["kind"] in ("fox", "bear", "wolf") and set(value) == {"kind", "hungry", *more}


@pytest.fixture(scope="module", params=[OURS, THEIRS], ids=["newest", "pinned"])
def openai(request: pytest.FixtureRequest, daemon: Daemon) -> Outcomes:
    python: Path = request.param
    return outcomes(python, "openai_forms.py", daemon.url)


def test_openai_parse(openai: Outcomes) -> None:
    animals = openai["parse"]
    assert len(animals) == 3
    assert all(is_animal(animal, "legs") for animal in animals)


def test_openai_parse_streamed(openai: Outcomes) -> None:
    result = openai["parse_stream"]
    assert is_animal(result["parsed"], "legs")
    assert {"content.delta", "content.done"} <= set(result["kinds"])


def test_openai_tool_call(openai: Outcomes) -> None:
    result = openai["tool_call"]
    assert result["content"] is None
    assert result["name"] == "Weather"
    assert result["finish_reason"] == "tool_calls"
    assert result["parsed"]["city"] in ("Rome", "Oslo")
    assert 1 <= result["parsed"]["days"] <= 9
    assert result["second"]["role"] == "assistant"
    assert not result["second"]["tool_calls"]


def test_openai_tool_call_streamed(openai: Outcomes) -> None:
    result = openai["tool_call_stream"]
    assert result["finish_reason"] == "tool_calls"
    assert len(result["calls"]) == result["done"] >= 1
    assert result["pieces"] > result["done"], "arguments come in pieces"


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed here")
def test_openai_node(daemon: Daemon) -> None:
    done = node_outcomes("forms.mjs", daemon.url)
    assert is_animal(done["parse"])
    choice = done["toolCall"]
    assert choice["finish_reason"] == "tool_calls"
    for call in choice["message"]["tool_calls"]:
        assert call["function"]["name"] == "weather"
        assert json.loads(call["function"]["arguments"])["city"] in ("Rome", "Oslo")


def test_langchain(daemon: Daemon) -> None:
    done = outcomes(THEIRS, "langchain_client.py", daemon.url, "structured", "tools")
    assert all(is_animal(animal) for animal in done["structured"].values())
    assert len(done["structured"]) == 2
    result = done["tools"]
    assert result["call"]["name"] == "weather"
    assert result["call"]["args"]["city"] in ("Rome", "Oslo")
    assert result["result"].endswith("rain")
    assert result["after"] == []


@pytest.fixture(scope="module")
def instructor(daemon: Daemon) -> Outcomes:
    return outcomes(THEIRS, "instructor_client.py", daemon.url)


@pytest.mark.parametrize("mode", ["tools", "json_schema"])
def test_instructor(instructor: Outcomes, mode: str) -> None:
    assert is_animal(instructor[mode])


def test_instructor_many_at_once(instructor: Outcomes) -> None:
    animals = instructor["many"]
    assert len(animals) == 6
    assert all(is_animal(animal) for animal in animals)


def test_instructor_partial(instructor: Outcomes) -> None:
    """An object grows while the stream comes in."""
    growing = instructor["partial"]
    assert len(growing) > 1
    assert growing[0]["kind"] is None or growing[0]["hungry"] is None
    assert is_animal(growing[-1])


def test_llm_schema(daemon: Daemon, tmp_path: Path) -> None:
    llm = LlmCommand(tmp_path, daemon.url)
    schema = {
        "type": "object",
        "properties": {"kind": {"enum": ["fox", "bear", "wolf"]}, "hungry": {"type": "boolean"}},
        "required": ["kind", "hungry"],
        "additionalProperties": False,
    }
    answer = llm.run("-m", "octavo-chat", "Tell me of an animal.", "--schema", json.dumps(schema))
    assert is_animal(json.loads(answer))
