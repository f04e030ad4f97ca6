"""litellm, on text: its stream wrapper, its usage, and its mapping of errors."""

from __future__ import annotations

import pytest

from ..e2e.daemon import Daemon
from .running import THEIRS, Outcomes, outcomes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def done(daemon: Daemon) -> Outcomes:
    cases = ("chat", "asynchronous", "text", "errors")
    return outcomes(THEIRS, "litellm_client.py", daemon.url, *cases)


def test_chat(done: Outcomes) -> None:
    result = done["chat"]
    assert result["plain"] == result["joined"] == result["rebuilt"] != ""
    assert result["usage"] == result["plain_usage"]
    assert result["finish_reason"] == "length"


def test_asynchronous(done: Outcomes) -> None:
    result = done["asynchronous"]
    assert result["plain"] == result["joined"] == done["chat"]["plain"]


def test_text(done: Outcomes) -> None:
    assert done["text"]["plain"] == done["text"]["joined"] != ""


def test_errors(done: Outcomes) -> None:
    assert done["errors"] == {
        "too long": "ContextWindowExceededError",
        "wrong value": "BadRequestError",
        "unknown model": "NotFoundError",
    }
