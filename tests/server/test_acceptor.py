"""Connections are taken as they come, all that wait, whatever the daemon's loop is busy with."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from octavo.server.acceptor import Acceptor


class Greeter(asyncio.Protocol):
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        transport.write(b"welcome")
        transport.close()


class Exhausted(socket.socket):
    """A listener for which, once, there are no descriptors left."""

    failures = 1

    def accept(self) -> tuple[socket.socket, Any]:
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return super().accept()


def listening(kind: Callable[..., socket.socket] = socket.socket) -> socket.socket:
    listener = kind(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    return listener


async def read_to_end(client: socket.socket) -> bytes:
    client.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=client)
    try:
        async with asyncio.timeout(30):
            return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


def on_daemon_loop(work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)


def test_many_that_wait_are_taken_in_one_turn() -> None:
    async def work() -> None:
        loop, turns = asyncio.get_running_loop(), 0
        taken_in: list[int] = []
        everybody = asyncio.Event()

        class Counting(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                taken_in.append(turns)
                transport.close()
                if len(taken_in) == len(clients):
                    everybody.set()

        def turn() -> None:
            nonlocal turns
            turns += 1
            if not everybody.is_set():
                loop.call_soon(turn)

        with listening() as listener:
            clients = [socket.create_connection(listener.getsockname()) for _ in range(16)]
            acceptor = Acceptor(listener, Counting)
            turn()
            async with asyncio.timeout(30):
                await everybody.wait()
            acceptor.close()
        for client in clients:
            client.close()
        assert taken_in[-1] - taken_in[0] <= 1  # one each turn it would be 15

    on_daemon_loop(work())


def test_without_descriptors_newcomers_wait_until_there_are_some(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def work() -> None:
        with listening(Exhausted) as listener:
            acceptor = Acceptor(listener, Greeter)
            client = socket.create_connection(listener.getsockname())
            assert await read_to_end(client) == b"welcome"
            acceptor.close()

    on_daemon_loop(work())
    assert "no connection can be taken" in caplog.text


def test_nobody_is_taken_after_the_end() -> None:
    async def work() -> None:
        with listening() as listener:
            acceptor = Acceptor(listener, Greeter)
            first = socket.create_connection(listener.getsockname())
            assert await read_to_end(first) == b"welcome"
            acceptor.close()
            second = socket.create_connection(listener.getsockname())  # as far as the kernel
        assert await read_to_end(second) == b""

    on_daemon_loop(work())


def test_a_connection_that_cannot_be_opened_costs_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def work() -> None:
        made = 0

        def protocol() -> asyncio.Protocol:
            nonlocal made
            made += 1
            if made == 1:
                raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
            return Greeter()

        with listening() as listener:
            acceptor = Acceptor(listener, protocol)
            first = socket.create_connection(listener.getsockname())
            second = socket.create_connection(listener.getsockname())
            assert await read_to_end(first) == b""
            assert await read_to_end(second) == b"welcome"
            acceptor.close()

    on_daemon_loop(work())
