"""openai-node, on text."""

from __future__ import annotations

import shutil

import pytest

from ..e2e.daemon import Daemon
from .running import Outcomes, node_outcomes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed here"),
]


@pytest.fixture(scope="module")
def done(daemon: Daemon) -> Outcomes:
    return node_outcomes("text.mjs", daemon.url)


def test_completion(done: Outcomes) -> None:
    result = done["completion"]
    assert result["joined"] == result["plain"]
    assert result["plain"][0] != result["plain"][1]
    assert result["usage"]["completion_tokens"] == 32


def test_chat(done: Outcomes) -> None:
    result = done["chat"]
    assert result["joined"] == result["plain"] != ""
    assert result["type"].startswith("application/json")
    assert result["request_id"]


def test_stream_helper(done: Outcomes) -> None:
    result = done["streamHelper"]
    assert result["joined"] == result["choice"]["message"]["content"] == done["chat"]["plain"]
    assert result["choice"]["message"]["role"] == "assistant"


def test_a_stream_that_is_left(done: Outcomes) -> None:
    """Its text has begun; that nothing of it stays behind is seen by `left_idle`."""
    assert done["left"]


def test_models(done: Outcomes) -> None:
    assert done["models"]["listed"] == ["octavo"]
    assert done["models"]["one"]["id"] == "octavo"


def test_errors(done: Outcomes) -> None:
    seen = {
        name: (error["kind"], error["status"], error["code"], error["param"])
        for name, error in done["errors"].items()
    }
    assert seen == {
        "wrong value": ("BadRequestError", 400, "invalid_value", "temperature"),
        "unknown model": ("NotFoundError", 404, "model_not_found", "model"),
        "unknown path": ("NotFoundError", 404, "not_found", None),
    }
    assert all(error["hasRequestId"] for error in done["errors"].values())
