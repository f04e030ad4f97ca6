"""The `llm` command in a user folder of its own, where it knows one server as two models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .running import CLIENTS, output_of

_MODELS = """
- model_id: octavo-chat
  model_name: octavo
  api_base: {url}/v1
  supports_schema: true
- model_id: octavo-text
  model_name: octavo
  api_base: {url}/v1
  completion: true
"""


class LlmCommand:
    """Runs `llm` against the server at `url`; its database and settings live in `folder`."""

    def __init__(self, folder: Path, url: str) -> None:
        (folder / "extra-openai-models.yaml").write_text(_MODELS.format(url=url))
        self._environment = {"LLM_USER_PATH": str(folder)}

    def run(self, *arguments: str) -> str:
        command = [CLIENTS / "bin" / "llm", *arguments]
        return "\n".join(output_of(command, environment=self._environment))

    def logged(self, count: int) -> list[dict[str, Any]]:
        """What it wrote down of the last answers, the oldest first."""
        entries: list[dict[str, Any]] = json.loads(self.run("logs", "-n", str(count), "--json"))
        return entries
