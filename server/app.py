"""The application: endpoints put together (`create_app`), and the daemon around it (`serve`)."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import time
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from msgspec import Struct
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from octavo.engine.errors import ConfigError, EngineDead, OctavoError
from octavo.version import __version__

from .admin import Admin
from .admission import Admission
from .bodies import Bodies
from .generation import Generation
from .http_server import http_server
from .keys import read_keys
from .listener import connection_limit, url_of
from .middleware import QUEUED, Direct, Gate, KeyGuard, Reception
from .models import ModelPool, ServedModel
from .observe.metrics import Metrics
from .observe.throughput import Throughput
from .openai import answers, schema
from .openai.chat import Chat
from .openai.completions import Completions
from .openai.description import Description
from .openai.desk import Desk
from .openai.embeddings import EmbeddingList, EmbeddingRequest, Embeddings
from .openai.errors import on_http_exception, on_octavo_error
from .openai.models import Models
from .openai.responses import Responses
from .openai.responses_schema import ModelResponse, ResponsesRequest
from .settings import Settings
from .terminal import StartupProgress, banner
from .text.grammar_check import GrammarCheck
from .text.template_sandbox import TemplateFault
from .text.template_worker import Renderer, TemplateWorker
from .threads import Threads

if TYPE_CHECKING:
    from starlette.types import Scope

    from octavo.engine.async_engine import AsyncEngine

log = logging.getLogger(__name__)
Endpoint = Callable[[Request], Awaitable[Response]]
_LOOKS = (10_000, 10, 100)  # for garbage: a step of many streams makes no 10,000 things that last


def create_app(
    engine: AsyncEngine,
    models: ModelPool,
    settings: Settings,
    *,
    metrics: Metrics | None = None,
    grammar_check: Callable[[Path], GrammarCheck] = GrammarCheck,
    renderer: Callable[[], Renderer] = TemplateWorker,
) -> FastAPI:
    """The ASGI application over an engine that the caller starts and stops.

    It may be served before the engine is ready: /health says so, generation answers 503. When it
    is, tell `models.ready`. `app.state.admission` is where a caller asks for a drain, and
    `app.state.helpers` has what is to be closed at the end.
    """
    default = next(iter(models))
    metrics = metrics or Metrics(
        model_name=default.name, longest_context=default.config.context_length
    )
    engine.on_step(lambda stats: metrics.steps.note(stats, engine.restarts))
    engine.on_step(Throughput(metrics).on_step)
    admission = Admission(
        max_requests=settings.max_queue_requests,
        max_tokens=settings.max_queue_tokens,
        longest=settings.request_timeout or None,
        token_seconds=lambda: engine.stats.token_seconds,
    )
    metrics.follow_queue(
        requests=lambda: admission.requests.waiting, tokens=lambda: admission.tokens.waiting
    )
    bodies = Bodies(settings.max_body_memory)
    checks = {model.folder: grammar_check(model.folder) for model in models}
    own, strangers = renderer(), renderer()
    threads = Threads()
    desk = Desk(
        settings=settings,
        engine=engine,
        models=models,
        admission=admission,
        generation=Generation(engine, metrics, at_once=settings.max_num_seqs),
        threads=threads,
        checks=checks,
        renderer=own,
        strangers_renderer=strangers,
        fingerprint=_fingerprint(settings, default),
    )
    app = FastAPI(
        title="octavo",
        version=__version__,
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # the path that the key guard saw is the one that counts
        exception_handlers={OctavoError: on_octavo_error, HTTPException: on_http_exception},
    )
    app.state.admission = admission
    app.state.bodies = bodies
    app.state.threads = threads
    app.state.renderer = own
    app.state.helpers = (*checks.values(), own, strangers, threads)
    endpoints = _add_routes(app, desk, metrics)
    # The last one added is the outermost.
    app.add_middleware(Direct, endpoints={path: endpoints[path] for path in QUEUED})
    app.add_middleware(Gate, admission=admission, bodies=bodies)
    if keys := read_keys(settings):
        salted = settings.prefix_cache_salt == "key"
        app.add_middleware(KeyGuard, keys=keys, salted=salted)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=settings.allowed_origins,
        allow_methods=("*",),
        allow_headers=("*",),
        expose_headers=("x-request-id", "openai-processing-ms", "retry-after", "retry-after-ms"),
    )
    app.add_middleware(
        Reception,
        metrics=metrics,
        log_requests=settings.log_requests,
        root_path=(settings.root_path or "").rstrip("/"),
    )
    return app


def serve(
    settings: Settings,
    *,
    folder: Path,
    engine: AsyncEngine,
    listener: socket.socket,
    progress: StartupProgress,
) -> None:
    """Run the daemon until a signal ends it. `engine` is launched, `listener` listens already.

    The first SIGTERM or SIGINT drains: not ready at once, newcomers are refused, what runs may
    finish within the drain timeout. The second one ends the process at once.

    Raises:
        ConfigError, EngineDead: the engine could not be started.
    """
    import uvloop

    began = time.monotonic()
    model = ServedModel.load(folder, settings)
    daemon = _Daemon(settings, model, engine, listener, progress, began)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(daemon.run())


class _Daemon:
    """The order in which things begin and end."""

    def __init__(
        self,
        settings: Settings,
        model: ServedModel,
        engine: AsyncEngine,
        listener: socket.socket,
        progress: StartupProgress,
        began: float,
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._listener = listener
        self._progress = progress
        self._began = began
        self._models = ModelPool((model,))
        self._metrics = Metrics(model_name=model.name, longest_context=model.config.context_length)
        app = create_app(engine, self._models, settings, metrics=self._metrics)
        self._admission: Admission = app.state.admission
        self._renderer: Renderer = app.state.renderer
        self._helpers: tuple[GrammarCheck | Renderer | Threads, ...] = app.state.helpers
        self._folder = model.folder
        self._server = http_server(
            app,
            settings,
            connections=connection_limit(settings.max_connections),
            on_refused=self._metrics.on_refused,
        )

    async def run(self) -> None:
        told_to_stop = _signalled()
        http = asyncio.create_task(self._server.serve(sockets=[self._listener]))
        starting = asyncio.create_task(self._start_engine())
        stopping = asyncio.create_task(told_to_stop.wait())
        waiting: list[asyncio.Task[Any]] = [starting, stopping]
        try:
            await asyncio.wait((starting, stopping, http), return_when="FIRST_COMPLETED")
            if starting.done():
                await starting
                gone = asyncio.create_task(self._engine.gone())
                waiting.append(gone)
                await asyncio.wait((stopping, http, gone), return_when="FIRST_COMPLETED")
                if gone.done():  # whoever supervises this process may have better luck
                    raise EngineDead(f"The engine is gone: {self._engine.status.detail}.")
                await self._drain()
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            # Streams that outlived the drain end with an error event, not in mid-air.
            await self._engine.stop()
            self._server.end()
            await http
            for helper in self._helpers:
                await helper.close()

    async def _start_engine(self) -> None:
        await self._check_templates()
        await self._engine.start(self._progress)
        capacity = self._engine.capacity
        self._models.ready(capacity.max_model_len)
        self._metrics.on_ready(self._settings.engine_config(self._folder), capacity)
        # Libraries and settings stay for good. Looking through them for garbage, again and again,
        # was seen to stop the event loop for up to 170 ms.
        gc.freeze()
        gc.set_threshold(*_LOOKS)
        seconds = time.monotonic() - self._began
        model = next(iter(self._models))
        self._progress.ready(banner(model, capacity, url_of(self._listener), seconds))

    async def _check_templates(self) -> None:
        """Raises ConfigError. While it looks, the engine's process is loading already."""
        for template in (model.template for model in self._models):
            for name, source in template.sources.items() if template is not None else ():
                try:
                    await self._renderer.check(source)
                except TemplateFault as fault:
                    raise ConfigError(
                        f"The chat template {name!r} cannot be used: {fault}."
                    ) from None

    async def _drain(self) -> None:
        self._admission.draining = True
        log.info("shutting down: %d requests may finish", self._admission.live)
        try:
            async with asyncio.timeout(self._settings.drain_timeout):
                await self._admission.idle()
        except TimeoutError:
            log.warning("%d requests did not finish in time", self._admission.live)


def _signalled() -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT; from then on they have their default effect."""
    event = asyncio.Event()
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)

    def on_signal() -> None:
        event.set()
        for number in signals:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in signals:
        loop.add_signal_handler(number, on_signal)
    return event


class _Route(Route):
    """A route to an endpoint that reads the request itself. FastAPI's own would look for what it
    is to be given, which takes longer than all routing."""

    def __init__(
        self,
        path: str,
        endpoint: Endpoint,
        methods: tuple[str, ...],
    ) -> None:
        super().__init__(path, endpoint)
        self.methods = set(methods)  # HEAD only where it is listed

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, found = super().matches(scope)
        return match, {**found, "route": self}


def _add_routes(app: FastAPI, desk: Desk, metrics: Metrics) -> dict[str, Endpoint]:
    """Returns the endpoints by path."""
    endpoints: dict[str, Endpoint] = {}
    admin, models = Admin(desk, metrics), Models(desk)
    description = Description(app.title, app.version)
    app.openapi = description.document  # type: ignore[method-assign]

    def add(
        path: str,
        endpoint: Endpoint,
        *methods: str,
        takes: type[Struct] | None = None,
        gives: type[Struct] | None = None,
        streams: bool = False,
    ) -> None:
        endpoints[path] = endpoint
        app.router.routes.append(_Route(path, endpoint, methods))
        for method in methods:
            description.add(path, endpoint, method, takes=takes, gives=gives, streams=streams)

    add("/v1/completions", Completions(desk).create, "POST",
        takes=schema.CompletionRequest, gives=answers.Completion, streams=True)  # fmt: skip
    add("/v1/chat/completions", Chat(desk).create, "POST",
        takes=schema.ChatRequest, gives=answers.ChatCompletion, streams=True)  # fmt: skip
    add("/v1/responses", Responses(desk).create, "POST",
        takes=ResponsesRequest, gives=ModelResponse, streams=True)  # fmt: skip
    add("/v1/embeddings", Embeddings(desk).create, "POST",
        takes=EmbeddingRequest, gives=EmbeddingList)  # fmt: skip
    add("/v1/models", models.list_all, "GET", gives=answers.ModelList)
    add("/v1/models/{model:path}", models.show, "GET", gives=answers.ModelEntry)
    add("/tokenize", models.tokenize, "POST", takes=schema.TokenizeRequest, gives=answers.Tokenized)
    add("/detokenize", models.detokenize, "POST",
        takes=schema.DetokenizeRequest, gives=answers.Detokenized)  # fmt: skip
    add("/tokenizer_info", models.tokenizer_info, "GET")
    for path in ("/health", "/readyz"):
        add(path, admin.ready, "GET", "HEAD")
    add("/livez", admin.live, "GET", "HEAD")
    add("/ping", admin.live, "GET", "POST")
    add("/version", admin.version, "GET")
    add("/load", admin.load, "GET")
    add("/metrics", admin.metrics, "GET")
    return endpoints


def _fingerprint(settings: Settings, model: ServedModel) -> str:
    configuration = (__version__, model.name, settings.engine_config(model.folder))
    return f"fp_{zlib.crc32(repr(configuration).encode()):08x}"
