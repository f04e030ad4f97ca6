"""/v1/responses through the openai package, its newest version and the one that others pin."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..e2e.daemon import Daemon
from .running import OURS, THEIRS, Outcomes, outcomes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[OURS, THEIRS], ids=["newest", "pinned"])
def done(request: pytest.FixtureRequest, daemon: Daemon) -> Outcomes:
    python: Path = request.param
    return outcomes(python, "openai_responses.py", daemon.url)


def test_plain(done: Outcomes) -> None:
    answer = done["plain"]
    (item,) = answer["output"]
    (part,) = item["content"]
    assert (answer["status"], item["status"]) == ("incomplete", "incomplete")
    assert answer["metadata"] == {"order": "7"}
    assert len(part["logprobs"]) == answer["usage"]["output_tokens"] == 24
    raw = bytes(byte for entry in part["logprobs"] for byte in entry["bytes"])
    assert raw.decode() == part["text"]
    assert all(len(entry["top_logprobs"]) == 2 for entry in part["logprobs"])


def test_stream(done: Outcomes) -> None:
    result = done["stream"]
    assert result["joined"] == result["final"] == result["plain"] != ""
    assert result["numbers"] == list(range(len(result["numbers"])))
    assert result["usage"] == result["plain_usage"] == 24
    assert result["reason"] == "max_output_tokens"


def test_stream_helper(done: Outcomes) -> None:
    result = done["stream_helper"]
    assert result["joined"] == result["final"] == result["plain"] != ""
    assert result["snapshots"] > 0


def test_a_crowd(done: Outcomes) -> None:
    result = done["async_stream"]
    assert result["crowd"] == result["alone"]
    assert len(set(result["alone"])) == 5


def test_parse(done: Outcomes) -> None:
    result = done["parse"]
    assert result["plain"] == result["streamed"]
    assert result["plain"]["kind"] in ("fox", "bear", "wolf")


def test_tools(done: Outcomes) -> None:
    result = done["tools"]
    assert (result["status"], result["name"]) == ("completed", "Weather")
    assert result["arguments"]["city"] in ("Rome", "Oslo")
    assert result["pieces"] > 1
    assert result["second"] == ["message"]
