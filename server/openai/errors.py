"""Errors on the wire: one table from exception class to status, type and code.

                                status  type                   code
    RequestError                400     invalid_request_error  invalid_value
    ├── ContextLengthExceeded   400     invalid_request_error  context_length_exceeded
    ├── InvalidKey              401     authentication_error   invalid_api_key
    ├── UnknownModel            404     invalid_request_error  model_not_found
    ├── UnknownPath             404     invalid_request_error  not_found
    ├── WrongMethod             405     invalid_request_error  method_not_allowed
    ├── MalformedRequest        400     invalid_request_error  malformed_request
    ├── BodyTimeout             408     invalid_request_error  request_timeout
    ├── HeadTimeout             408     invalid_request_error  request_timeout
    ├── DeadlineExceeded        408     timeout_error          deadline_exceeded
    ├── ReaderTooSlow           408     timeout_error          reader_too_slow
    ├── BodyTooLarge            413     invalid_request_error  body_too_large
    ├── TargetTooLong           414     invalid_request_error  target_too_long
    ├── WrongMediaType          415     invalid_request_error  unsupported_media_type
    └── HeadTooLarge            431     invalid_request_error  headers_too_large
    EngineError                 500     server_error           internal_error
    ├── EngineDead              503     unavailable            engine_unavailable
    ├── Draining                503     unavailable            shutting_down
    ├── TooManyConnections      503     unavailable            too_many_connections
    ├── Overloaded              429     rate_limit_error       rate_limit_exceeded
    └── RequestGivenUp          500     server_error           request_given_up
    anything else               500     server_error           internal_error

A class that is not listed has its parent's row. The body is always
`{"error": {"message", "type", "param", "code"}}` with all four keys (API contract, section 6).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec
from starlette.responses import Response

from octavo.engine.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    Draining,
    EngineDead,
    EngineError,
    OctavoError,
    Overloaded,
    ReaderTooSlow,
    RequestError,
    RequestGivenUp,
)

from ..observe.log import shortened

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request


class InvalidKey(RequestError):
    """An API key is asked for, and none or a wrong one came."""


class UnknownModel(RequestError):
    """No served model has this name."""


class UnknownPath(RequestError):
    """There is no such endpoint."""


class WrongMethod(RequestError):
    """The endpoint does not take this method."""


class BodyTimeout(RequestError):
    """The body did not arrive in time."""


class BodyTooLarge(RequestError):
    """The body is longer than the operator allows."""


class MalformedRequest(RequestError):
    """It is not HTTP/1.1, or may be read in more than one way."""


class HeadTimeout(RequestError):
    """The request's headers did not arrive in time."""


class TargetTooLong(RequestError):
    """The path and query are longer than any that is served."""


class HeadTooLarge(RequestError):
    """The headers are longer, or more, than the operator allows."""


class TooManyConnections(EngineError):
    """As many connections are open as there may be."""


class WrongMediaType(RequestError):
    """The body says that it is not JSON."""


@dataclass(frozen=True, slots=True)
class Row:
    """How one class of errors looks on the wire."""

    status: int
    type: str
    code: str
    headers: Mapping[str, str] = field(default_factory=dict)


# After 408 and 413 the rest of the body may still be on its way: the connection is of no more use.
_CLOSE = MappingProxyType({"connection": "close"})
_LATER = MappingProxyType({"retry-after": "2"})
_SOON = MappingProxyType({"retry-after": "1"})
# OpenAI's clients try again after a 408. Whose time is up has no use for an answer any more, and a
# server that was too slow for it no use for the same work again.
_NEVER = MappingProxyType({"x-should-retry": "false"})
_BEARER = MappingProxyType({"www-authenticate": "Bearer"})
_INVALID = "invalid_request_error"
_TIMEOUT = "timeout_error"
_BUG = Row(500, "server_error", "internal_error")

TABLE: Mapping[type[OctavoError], Row] = MappingProxyType(
    {
        RequestError: Row(400, _INVALID, "invalid_value"),
        ContextLengthExceeded: Row(400, _INVALID, "context_length_exceeded"),
        InvalidKey: Row(401, "authentication_error", "invalid_api_key", _BEARER),
        UnknownModel: Row(404, _INVALID, "model_not_found"),
        UnknownPath: Row(404, _INVALID, "not_found"),
        WrongMethod: Row(405, _INVALID, "method_not_allowed"),
        MalformedRequest: Row(400, _INVALID, "malformed_request", _CLOSE),
        BodyTimeout: Row(408, _INVALID, "request_timeout", _CLOSE),
        HeadTimeout: Row(408, _INVALID, "request_timeout", _CLOSE),
        DeadlineExceeded: Row(408, _TIMEOUT, "deadline_exceeded", _NEVER),
        ReaderTooSlow: Row(408, _TIMEOUT, "reader_too_slow", _NEVER),
        BodyTooLarge: Row(413, _INVALID, "body_too_large", _CLOSE),
        TargetTooLong: Row(414, _INVALID, "target_too_long", _CLOSE),
        WrongMediaType: Row(415, _INVALID, "unsupported_media_type"),
        HeadTooLarge: Row(431, _INVALID, "headers_too_large", _CLOSE),
        EngineError: _BUG,
        RequestGivenUp: Row(500, "server_error", "request_given_up"),
        EngineDead: Row(503, "unavailable", "engine_unavailable", _LATER),
        Draining: Row(503, "unavailable", "shutting_down", _LATER),
        TooManyConnections: Row(503, "unavailable", "too_many_connections", _SOON),
        Overloaded: Row(429, "rate_limit_error", "rate_limit_exceeded"),
    }
)


def row_of(error: BaseException) -> Row:
    """The row of the nearest listed class; what is not ours is a bug of the server."""
    return next((TABLE[kind] for kind in type(error).__mro__ if kind in TABLE), _BUG)


def shown_message(error: BaseException) -> str:
    """What a client may read. What is not an error of ours shows nothing of itself."""
    message = shortened(str(error)) if isinstance(error, OctavoError) else ""
    return message or "The server made a mistake; its log says more."


def error_body(error: BaseException) -> bytes:
    """The JSON error object."""
    row = row_of(error)
    param: str | None = getattr(error, "param", None)
    content = {
        "message": shown_message(error),
        "type": row.type,
        "param": None if param is None else shortened(param),
        "code": row.code,
    }
    return msgspec.json.encode({"error": content})


def error_answer(error: BaseException, headers: Mapping[str, str] | None = None) -> Response:
    """The whole HTTP answer to a request that ended in `error`."""
    row = row_of(error)
    return Response(
        error_body(error),
        status_code=row.status,
        headers={**row.headers, **_when_to_return(error), **(headers or {})},
        media_type="application/json",
    )


def _when_to_return(error: BaseException) -> Mapping[str, str]:
    """In whole seconds, as HTTP has it, and exactly, as OpenAI's clients read it."""
    if not isinstance(error, Overloaded):
        return {}
    return {
        "retry-after": str(math.ceil(error.retry_after)),
        "retry-after-ms": str(math.ceil(1000 * error.retry_after)),
    }


async def on_octavo_error(request: Request, error: Exception) -> Response:
    """For the framework: errors of ours that an endpoint raised; the middleware logs them."""
    request.scope["state"]["error"] = error
    return error_answer(error)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """For the framework: what its router refuses, 404 and 405."""
    status: int = getattr(error, "status_code", 500)
    headers = getattr(error, "headers", None) or {}
    method, path = request.method, request.url.path
    if status == 405:
        return error_answer(
            WrongMethod(f"{path} does not take {method}, but {headers.get('Allow', 'others')}."),
            headers,
        )
    if status == 404:
        return error_answer(UnknownPath(f"There is no {method} {path} here."), headers)
    return error_answer(error, headers)
