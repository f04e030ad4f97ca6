"""schemathesis over /openapi.json of a real server: no 5xx, no answer against the schema."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .daemon import serving

CHECKS = (
    "not_a_server_error,response_schema_conformance,status_code_conformance,"
    "content_type_conformance,response_headers_conformance"
)
OPTIONS = ("--checks", CHECKS, "--max-examples", "30")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_is_sent(tmp_path: Path, seed: int) -> None:
    command = Path(sys.executable).with_name("schemathesis")
    with serving(tmp_path, "--max-model-len", "128", "--no-log-requests") as daemon:
        run = subprocess.run(
            [command, "run", f"{daemon.url}/openapi.json", *OPTIONS, "--seed", str(seed)],
            cwd=tmp_path,
            check=False,
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stdout[-6000:]
        daemon.wait_until_idle()
