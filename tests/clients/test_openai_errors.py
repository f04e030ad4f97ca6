"""The openai package: errors become the exception classes its users catch; retries help them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ..e2e.daemon import Daemon, serving
from .running import OURS, THEIRS, outcomes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[OURS, THEIRS], ids=["newest", "pinned"])
def errors(request: pytest.FixtureRequest, daemon: Daemon) -> dict[str, Any]:
    python: Path = request.param
    found: dict[str, Any] = outcomes(python, "openai_errors.py", daemon.url, "errors")["errors"]
    return found


@pytest.mark.parametrize(
    ("asked", "name", "status", "code", "param"),
    [
        ("wrong value", "BadRequestError", 400, "invalid_value", "temperature"),
        ("wrong value, streamed", "BadRequestError", 400, "invalid_value", "temperature"),
        ("wrong type", "BadRequestError", 400, "invalid_value", "messages"),
        ("too long", "BadRequestError", 400, "context_length_exceeded", "prompt"),
        ("unknown model", "NotFoundError", 404, "model_not_found", "model"),
        ("unknown model entry", "NotFoundError", 404, "model_not_found", "model"),
        ("unknown path", "NotFoundError", 404, "not_found", None),
        ("wrong method", "APIStatusError", 405, "method_not_allowed", None),
    ],
)
def test_error(
    errors: dict[str, Any], asked: str, name: str, status: int, code: str, param: str | None
) -> None:
    error = errors[asked]
    assert (error["class"], error["status"]) == (name, status)
    assert (error["code"], error["param"]) == (code, param)
    assert error["type"] == "invalid_request_error"
    assert error["has_request_id"]


def test_a_wrong_key(tmp_path: Path) -> None:
    with serving(tmp_path, "--api-key", "right", "--kv-memory", "64MiB") as daemon:
        result = outcomes(OURS, "openai_errors.py", daemon.url, "keys")["keys"]
    assert result["wrong"]["class"] == "AuthenticationError"
    assert result["wrong"]["code"] == "invalid_api_key"
    assert result["right"] == ["octavo"]


def test_retries_wait_until_there_is_room(tmp_path: Path) -> None:
    one_and_one = ("--max-num-seqs", "1", "--max-queue-requests", "1", "--kv-memory", "64MiB")
    with serving(tmp_path, *one_and_one) as daemon:
        result = outcomes(OURS, "openai_errors.py", daemon.url, "overload")["overload"]
    assert result["answered"] >= 1
    assert result["refused"] == 6 - result["answered"] >= 1
    assert all(int(seconds) >= 1 for seconds in result["retry_after"])
    assert result["codes"] == ["rate_limit_exceeded"]
    assert result["served"] == [50] * 6
