"""Log lines: as text for people or as JSON for machines, with the request's id in each.

A record is always one line: whatever a client managed to get into it, control characters are
written as escapes, so nobody can forge a line.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from contextvars import ContextVar
from typing import Any, TextIO

from .record import FinishedRequest

current_request_id: ContextVar[str | None] = ContextVar("octavo_request_id", default=None)
"""The request in whose name the running task works; set by the middleware."""

_requests = logging.getLogger("octavo.requests")
_SHOWN_CHARACTERS = 500  # of either end of a message
_FIELDS = "octavo_fields"  # attribute of a log record: structured fields

# Everything that could end a line or steer a terminal: C0, DEL, C1, line and paragraph
# separators, direction overrides, lone surrogates.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def configure(log_format: str = "text", level: str = "info", stream: TextIO | None = None) -> None:
    """Send all logging of this process to `stream` (standard error), one line a record."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)  # of other libraries only what matters
    logging.getLogger("octavo").setLevel(level.upper())
    logging.getLogger("uvicorn.access").disabled = True  # the line of a request is ours to write


def log_finished(record: FinishedRequest) -> None:
    """The one line that every request ends with."""
    fields = {
        "route": record.route,
        "status": record.status,
        "prompt_tokens": record.prompt_tokens,
        "output_tokens": record.output_tokens,
        "cached_tokens": record.cached_tokens,
        "ttft_ms": _milliseconds(record.first_token_seconds),
        "total_ms": _milliseconds(record.total_seconds),
        "finish": record.reasons,
    }
    if record.error is not None:
        fields["error"] = shortened(record.error)
    level = logging.WARNING if record.status >= 500 else logging.INFO
    # The id is the record's own: the line may be written after the request's task has ended.
    extra = {_FIELDS: fields, "octavo_request_id": record.id}
    _requests.log(level, "request finished", extra=extra)


def shortened(text: str) -> str:
    """`text` without its middle, where a client got something long into it."""
    if len(text) <= 2 * _SHOWN_CHARACTERS:
        return text
    return f"{text[:_SHOWN_CHARACTERS]} ... {text[-_SHOWN_CHARACTERS:]}"


def printable(text: str) -> str:
    """`text` on one line, with control characters as escapes."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class TextFormatter(logging.Formatter):
    """2026-01-31 12:00:00.123 INFO    request finished route=/v1/completions ... id=cmpl-1"""

    def format(self, record: logging.LogRecord) -> str:
        fields = {**_fields(record), "id": _request_id(record)}
        parts = [_timestamp(record), f"{record.levelname:<7}", _message(self, record)]
        parts += [f"{name}={_shown(value)}" for name, value in fields.items() if value is not None]
        return printable(" ".join(parts))


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, request_id, and the line's fields."""

    def format(self, record: logging.LogRecord) -> str:
        content = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(self, record),
            "request_id": _request_id(record),
            **_fields(record),
        }
        return json.dumps({k: v for k, v in content.items() if v is not None}, default=str)


def _message(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    message = record.getMessage()
    if record.exc_info:
        message += "\n" + formatter.formatException(record.exc_info)
    return message


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return getattr(record, _FIELDS, {})


def _request_id(record: logging.LogRecord) -> str | None:
    return getattr(record, "octavo_request_id", None) or current_request_id.get()


def _timestamp(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)


def _shown(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r'[\s"=]', text) else text
