"""The README's programs, run as they stand."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from .daemon import START_LIMIT_SECONDS, STOP_LIMIT_SECONDS, free_port

README = Path(__file__).parents[2] / "README.md"

pytestmark = pytest.mark.slow


def program(*, containing: str) -> str:
    found = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), flags=re.DOTALL)
    [one] = [text for text in found if containing in text]
    return one


def test_the_application_is_served_by_a_program_of_ones_own() -> None:
    port = free_port()
    code = program(containing="create_app").replace("8000", str(port))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_LIMIT_SECONDS
        while True:
            assert process.poll() is None and time.monotonic() < deadline
            try:
                answer = httpx.post(
                    f"http://127.0.0.1:{port}/v1/completions",
                    json={"prompt": "Once upon a time", "max_tokens": 8},
                    timeout=60,
                )
            except httpx.ConnectError:
                time.sleep(0.05)  # between two looks at a condition that is awaited
            else:
                break
        assert answer.json()["usage"]["completion_tokens"] == 8
        process.send_signal(signal.SIGTERM)
        process.wait(STOP_LIMIT_SECONDS)
    finally:
        process.kill()
        process.wait()


def test_the_model_is_asked_without_a_server() -> None:
    code = program(containing="LLM()")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip()
