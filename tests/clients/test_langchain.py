"""langchain-openai, on text."""

from __future__ import annotations

import pytest

from ..e2e.daemon import Daemon
from .running import THEIRS, Outcomes, outcomes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def done(daemon: Daemon) -> Outcomes:
    cases = ("chat", "batch", "scores", "text")
    return outcomes(THEIRS, "langchain_client.py", daemon.url, *cases)


def test_chat(done: Outcomes) -> None:
    result = done["chat"]
    assert result["plain"] == result["joined"] != ""
    assert result["chunks"] > 10
    assert result["usage"] == result["plain_usage"]
    assert result["finish_reason"] == "length"
    assert result["model"] == "octavo"


def test_batch(done: Outcomes) -> None:
    assert done["batch"]["together"] == done["batch"]["alone"]
    assert len(set(done["batch"]["alone"])) == 3


def test_scores(done: Outcomes) -> None:
    assert done["scores"] == 5


def test_text(done: Outcomes) -> None:
    assert done["text"]["plain"] == done["text"]["joined"] != ""
