"""`http_server`: uvicorn as the daemon runs it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import uvicorn

from .acceptor import Acceptor
from .protocol import Limits, Protocol

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from .settings import Settings

_TICK_SECONDS = 1.0
_LAST_BYTES_SECONDS = 5  # for answers that are complete but not yet sent


def http_server(
    app: ASGIApp,
    settings: Settings,
    *,
    connections: int,
    on_refused: Callable[[int], None] = lambda status: None,
) -> Server:
    """A server for `app` with the limits that `settings` name, and so many connections.

    `on_refused` hears the status of what was refused before `app` could hear of it.
    """
    limits = Limits.of(settings, connections=connections)
    return Server(
        uvicorn.Config(
            app,
            http=functools.partial(Protocol, limits=limits, on_refused=on_refused),  # type: ignore[arg-type]
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=limits.keep_alive_seconds,  # type: ignore[arg-type]
            timeout_graceful_shutdown=_LAST_BYTES_SECONDS,
        )
    )


class Server(uvicorn.Server):
    """uvicorn's, which leaves signals to the daemon, sleeps while there is nothing to do, and takes
    connections by `Acceptor`."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._told_to_end = asyncio.Event()

    def end(self, *, force: bool = False) -> None:
        """`serve` returns soon: answers under way may finish, with `force` they may not."""
        self.should_exit, self.force_exit = True, force
        self._told_to_end.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        def protocol() -> asyncio.BaseProtocol:
            make = self.config.http_protocol_class
            return make(self.config, self.server_state, self.lifespan.state)  # type: ignore[call-arg]

        self.servers = [Acceptor(listener, protocol) for listener in sockets or ()]  # type: ignore[misc]
        self.started = True

    async def main_loop(self) -> None:
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK_SECONDS):  # for the `date` of answers
                    await self._told_to_end.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
