"""Runs a client in its own process, with its own packages, against a server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SCRIPTS = HERE / "scripts"
NODE = HERE / "node"
CLIENTS = HERE.parents[1] / ".venv-clients"
LIMIT_SECONDS = 200.0

OURS = Path(sys.executable)
"""The python of the tests: it has the newest openai package."""

THEIRS = CLIENTS / "bin" / "python"
"""The python of the clients: it has all of them, and the openai package that they agree on."""


def outcomes(python: Path, script: str, url: str, *names: str) -> Outcomes:
    """What the cases of `scripts/<script>` returned; all of them, or those named."""
    return Outcomes(json.loads(output_of([python, SCRIPTS / script, url, *names])[-1]))


def node_outcomes(script: str, url: str) -> Outcomes:
    """What the cases of `node/<script>` returned."""
    node = shutil.which("node")
    assert node, "node is not installed"
    assert (NODE / "node_modules").is_dir(), "its packages are missing: run `make clients` first"
    return Outcomes(json.loads(output_of([node, NODE / script, url])[-1]))


def output_of(
    command: Sequence[str | Path], *, environment: dict[str, str] | None = None
) -> list[str]:
    """The lines that `command` wrote to stdout. It must end with 0, and must not reach out."""
    assert Path(command[0]).exists(), f"{command[0]} is missing: run `make clients` first"
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        env={**os.environ, **_ALONE, **(environment or {})},
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout.strip().splitlines()


_ALONE = {
    "OPENAI_API_KEY": "unused",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LANGSMITH_TRACING": "false",
    "NO_COLOR": "1",
    "COLUMNS": "200",
}


class Outcomes:
    """Results by the name of their case."""

    def __init__(self, results: dict[str, Any]) -> None:
        self._results = results

    def __getitem__(self, case: str) -> Any:
        result = self._results[case]
        if isinstance(result, dict) and "raised" in result:
            raise AssertionError(f"{case} raised:\n{result['raised']}")
        return result
