"""Why what comes over a connection is refused before it is a request, and how that is told."""

from __future__ import annotations

import uuid

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from octavo.engine.errors import OctavoError

from .openai.errors import MalformedRequest, error_body, row_of


def ambiguity(version: str, headers: list[tuple[bytes, bytes]]) -> str | None:
    """What other programs might read in another way, after all that the parser refuses itself."""
    if version not in ("1.0", "1.1"):
        return f"HTTP/{version} is not spoken here"
    hosts = sum(name == b"host" for name, _ in headers)
    if hosts > 1 or (hosts == 0 and version == "1.1"):
        return "it must have one Host header"
    codings = [value for name, value in headers if name == b"transfer-encoding"]
    if codings and (version == "1.0" or [coding.lower() for coding in codings] != [b"chunked"]):
        return "the only Transfer-Encoding is chunked, in HTTP/1.1"
    return None


def malformed(error: httptools.HttpParserError) -> MalformedRequest:
    """What the parser complains of, as an error of ours."""
    if isinstance(error, httptools.HttpParserCallbackError):
        return MalformedRequest("The request's target cannot be understood.")
    return MalformedRequest(f"The request is not valid HTTP/1.1: {str(error).rstrip('.')}.")


def answer_of(error: OctavoError) -> bytes:
    """A whole answer, the last one of its connection."""
    row, body = row_of(error), error_body(error)
    headers = {
        **row.headers,
        "connection": "close",
        "content-type": "application/json",
        "content-length": str(len(body)),
        "x-request-id": uuid.uuid4().hex,
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return STATUS_LINE[row.status] + lines.encode() + b"\r\n" + body
