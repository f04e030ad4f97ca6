"""The `llm` command, on text."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..e2e.daemon import Daemon
from .llm_command import LlmCommand

pytestmark = pytest.mark.slow

SAME = ("-o", "max_tokens", "20", "-o", "temperature", "0")


@pytest.fixture
def llm(daemon: Daemon, tmp_path: Path) -> LlmCommand:
    return LlmCommand(tmp_path, daemon.url)


def test_a_chat_streamed_and_plain(llm: LlmCommand) -> None:
    asked = ("-m", "octavo-chat", "Tell me a story.", *SAME)
    assert llm.run(*asked) == llm.run(*asked, "--no-stream") != ""
    streamed, plain = llm.logged(2)
    assert streamed["input_tokens"] == plain["input_tokens"] > 0
    assert 0 < streamed["output_tokens"] == plain["output_tokens"] <= 20


def test_a_conversation_goes_on(llm: LlmCommand) -> None:
    llm.run("-m", "octavo-chat", "Tell me a story.", "-s", "Be short.", *SAME)
    llm.run("--continue", "Go on.", *SAME)
    first, second = llm.logged(2)
    assert second["conversation_id"] == first["conversation_id"]
    assert second["input_tokens"] > first["input_tokens"] + first["output_tokens"]


def test_a_completion_streamed_and_plain(llm: LlmCommand) -> None:
    asked = ("-m", "octavo-text", "Once upon a time", *SAME)
    assert llm.run(*asked) == llm.run(*asked, "--no-stream") != ""
