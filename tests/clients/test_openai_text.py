"""The openai package, its newest version and the one that other clients pin, on text."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..e2e.daemon import Daemon
from .running import OURS, THEIRS, Outcomes, outcomes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[OURS, THEIRS], ids=["newest", "pinned"])
def done(request: pytest.FixtureRequest, daemon: Daemon) -> Outcomes:
    python: Path = request.param
    return outcomes(python, "openai_text.py", daemon.url)


def test_two_versions_are_tried(daemon: Daemon) -> None:
    versions = [
        outcomes(python, "openai_text.py", daemon.url, "version")["version"]
        for python in (OURS, THEIRS)
    ]
    assert len(set(versions)) == 2, versions


def test_completion(done: Outcomes) -> None:
    answer = done["completion"]["answer"]
    assert done["completion"]["request_id"] == "mine-1"
    assert answer["object"] == "text_completion"
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    for choice in answer["choices"]:
        scores = choice["logprobs"]
        if choice["finish_reason"] == "length":
            assert "".join(scores["tokens"]) == choice["text"]
        assert len(scores["tokens"]) == len(scores["text_offset"]) == len(scores["top_logprobs"])
        assert all(2 <= len(top) <= 3 for top in scores["top_logprobs"])
    tokens = sum(len(choice["logprobs"]["tokens"]) for choice in answer["choices"])
    assert answer["usage"]["completion_tokens"] == tokens


def test_completion_stream(done: Outcomes) -> None:
    result = done["completion_stream"]
    assert result["joined"] == result["plain"]
    assert result["usage"] == result["plain_usage"]
    assert result["plain"][0] != result["plain"][1]


def test_chat(done: Outcomes) -> None:
    answer = done["chat"]
    (choice,) = answer["choices"]
    assert answer["object"] == "chat.completion"
    assert choice["message"]["role"] == "assistant"
    entries = choice["logprobs"]["content"]
    assert (
        bytes(byte for entry in entries for byte in entry["bytes"]).decode()
        == (choice["message"]["content"])
    )
    for entry in entries:
        assert len(entry["top_logprobs"]) == 3
        assert entry["logprob"] == max(top["logprob"] for top in entry["top_logprobs"])


def test_chat_stream(done: Outcomes) -> None:
    result = done["chat_stream"]
    assert result["joined"] == result["plain"]
    assert result["chunks"] > 10
    assert result["finish_reason"] == "length"


def test_a_stream_that_is_left(done: Outcomes) -> None:
    """Its text has begun; that nothing of it stays behind is seen by `left_idle`."""
    assert done["chat_stream_left"]


def test_stream_helper(done: Outcomes) -> None:
    result = done["stream_helper"]
    assert {"chunk", "content.delta", "content.done", "logprobs.content.done"} <= set(
        result["kinds"]
    )
    assert result["final"] == result["plain"]
    assert result["joined"] == result["done"] == result["plain"]["content"]
    assert result["scores"] == result["plain_scores"]


def test_async_stream_helper(done: Outcomes) -> None:
    result = done["async_stream_helper"]
    assert result["joined"] == result["final"] != ""


def test_a_crowd(done: Outcomes) -> None:
    result = done["crowd"]
    assert result["plain"] == result["streamed"] == result["alone"]
    assert len(set(result["alone"])) == 6


def test_models(done: Outcomes) -> None:
    result = done["models"]
    assert result["listed"] == ["octavo"]
    assert result["one"]["id"] == "octavo"
    assert result["one"]["object"] == "model"
