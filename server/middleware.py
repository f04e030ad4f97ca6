"""What every HTTP answer has in common: an id, its time, a log line, and the API key before it.

Plain ASGI: nothing here buffers a stream or hides that a client has left.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request

from octavo.engine.errors import DeadlineExceeded, Draining, EngineError, OctavoError, Overloaded

from .observe.log import current_request_id, log_finished
from .observe.tally import Tally
from .openai.errors import InvalidKey, error_answer, row_of

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from .admission import Admission
    from .bodies import Bodies
    from .observe.metrics import Metrics

log = logging.getLogger(__name__)

# Who asks these needs no key, and no line is logged; everything that is not listed needs one.
PROBES = frozenset(("/health", "/livez", "/readyz", "/ping", "/version", "/metrics", "/load"))
_CLIENT_LEFT = 499  # a status for log and metrics only
# What is a route to generate, and therefore stands in the queue.
QUEUED = frozenset(("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/embeddings"))
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
_PRINTABLE_ID = re.compile(r"[\x21-\x7e]+")
_LONGEST_ID = 128
_PIECE_BYTES = 256 << 10


class Reception:
    """The outermost layer: opens a tally for each request, and closes it with log and metrics.

    Also the last resort: an exception that nobody expected becomes a 500 without details.
    """

    def __init__(
        self, app: ASGIApp, *, metrics: Metrics, log_requests: bool, root_path: str = ""
    ) -> None:
        """`root_path`: where a proxy shows the API; requests may come with it or without."""
        self._app = app
        self._root_path = root_path
        self._metrics = metrics
        self._log_requests = log_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Where another application has put this one, its paths do begin with that.
        scope["root_path"] = scope.get("root_path") or self._root_path
        tally = Tally(id=_request_id(Headers(scope=scope)))
        state = scope.setdefault("state", {})
        # Between here and an endpoint all look at beginnings and ends only: the events of streams
        # pass them by, which saves a tenth of the time that a token takes.
        state["tally"], state["send_part"] = tally, send
        current_request_id.set(tally.id)
        status = _CLIENT_LEFT
        begun = ended = False

        async def send_marked(message: Message) -> None:
            nonlocal status, begun, ended
            if message["type"] == "http.response.start":
                begun, status = True, message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = tally.id
                elapsed = 1000 * (time.monotonic() - tally.arrival)
                headers["openai-processing-ms"] = str(round(elapsed))
            elif not message.get("more_body", False):
                ended = True
            await send(message)

        try:
            await self._app(scope, receive, send_marked)
        except ClientDisconnect:
            status = _CLIENT_LEFT
        except Exception as error:  # the last resort
            log.exception("a bug of the server")
            if begun:
                tally.fail(error, row_of(error).status)
            else:
                scope["state"]["error"] = error
                await error_answer(error)(scope, receive, send_marked)
        finally:
            self._close(scope, tally, tally.status or (status if ended else _CLIENT_LEFT))
            del state["send_part"]  # which knows the scope that this stands in

    def _close(self, scope: Scope, tally: Tally, status: int) -> None:
        if tally.failure is None:
            tally.failure = scope["state"].get("error")
        route = scope["state"].get("route") or getattr(scope.get("route"), "path", "none")
        record = tally.record(route=route, status=status)
        self._metrics.on_http(
            handler=route,
            method=scope["method"] if scope["method"] in _METHODS else "other",
            status=status,
            seconds=record.total_seconds,
        )
        if tally.generating:
            self._metrics.on_finished(record)
        elif scope["method"] == "POST" and (reason := _rejection(tally.failure, status)):
            self._metrics.on_rejected(reason)
        if isinstance(tally.failure, DeadlineExceeded):
            self._metrics.on_expired()
        if self._log_requests and route not in PROBES:
            log_finished(record)


class Gate:
    """Sends those away for whom there is no room, before a byte of their body is read; and takes
    back what the others held of queue and memory, however they ended."""

    def __init__(self, app: ASGIApp, *, admission: Admission, bodies: Bodies) -> None:
        self._app = app
        self._admission = admission
        self._bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        state = scope["state"]
        share = state["share"] = self._bodies.share()
        permit = state["permit"] = self._admission.permit()
        try:
            if _path(scope) in QUEUED:
                permit.require_room()
        except EngineError as error:
            # Its traceback has frames that know the scope in which it is kept.
            state["error"], state["route"] = error.with_traceback(None), _path(scope)
            await error_answer(error)(scope, receive, send)
            return
        try:
            await self._app(scope, receive, _by_pieces(send))
        finally:
            permit.release()
            share.release()


class Direct:
    """Calls the endpoints that generate. All else goes on to the framework, whose router, with what
    it wraps around each of its routes, takes a sixth of the time that a short request costs."""

    def __init__(
        self, app: ASGIApp, *, endpoints: Mapping[str, Callable[[Request], Awaitable[Response]]]
    ) -> None:
        """`endpoints`: of POST, by path."""
        self._app = app
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = _path(scope) if scope["type"] == "http" and scope["method"] == "POST" else ""
        endpoint = self._endpoints.get(path)
        if endpoint is None:
            await self._app(scope, receive, send)
            return
        scope["state"]["route"] = path
        try:
            response = await endpoint(Request(scope, receive, send))
        except OctavoError as error:
            scope["state"]["error"] = error
            response = error_answer(error)
        await response(scope, receive, send)


class KeyGuard:
    """Lets nobody in without one of the keys, except to the probes."""

    def __init__(self, app: ASGIApp, *, keys: Sequence[str], salted: bool) -> None:
        """`salted`: each key has a prefix cache of its own."""
        self._app = app
        self._salted = salted
        self._digests = [_digest(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._may_pass(scope):
            await self._app(scope, receive, send)
            return
        error = InvalidKey("This server needs an API key: Authorization: Bearer KEY.")
        scope["state"]["error"] = error
        await error_answer(error)(scope, receive, send)

    def _may_pass(self, scope: Scope) -> bool:
        if _path(scope) in PROBES:
            return True
        given_keys = Headers(scope=scope).getlist("authorization")
        if len(given_keys) != 1:  # of two, a proxy may have looked at the other one
            return False
        scheme, _, key = given_keys[0].partition(" ")
        given = _digest(key.strip())
        # Every key is compared, in a time that tells nothing of how much of it was right.
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        if scheme.lower() != "bearer" or not any(matches):
            return False
        if self._salted:
            scope["state"]["tally"].cache_owner = f"key {matches.index(True)}"
        return True


def _by_pieces(send: Send) -> Send:
    """A long answer goes out as fast as its client takes it, and is held until then: the HTTP
    server would take all of it at once, and call that sent."""

    async def send_slowly(message: Message) -> None:
        body: bytes = message.get("body", b"")
        last = max(0, len(body) - 1) // _PIECE_BYTES * _PIECE_BYTES
        for begin in range(0, last, _PIECE_BYTES):
            piece = body[begin : begin + _PIECE_BYTES]
            await send({**message, "body": piece, "more_body": True})
        await send({**message, "body": body[last:]} if last else message)

    return send_slowly


def _path(scope: Scope) -> str:
    """As this server calls it, whatever a proxy puts before it."""
    path: str = scope["path"]
    return path.removeprefix(scope["root_path"])


def _rejection(error: BaseException | None, status: int) -> str | None:
    """Why a request that never came as far as the engine did not; None: it was no refusal."""
    match error:
        case Overloaded():
            return error.reason
        case Draining():
            return "draining"
    return {401: "unauthorized", 503: "unavailable"}.get(
        status, "invalid" if 400 <= status < _CLIENT_LEFT else None
    )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _request_id(headers: Headers) -> str:
    """The client's own id where it is usable, else a new one."""
    given = headers.get("x-request-id", "")[:_LONGEST_ID]
    return given if _PRINTABLE_ID.fullmatch(given) else uuid.uuid4().hex
