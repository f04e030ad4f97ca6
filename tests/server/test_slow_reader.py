"""A client that does not read: bounded memory, and nobody else's time."""

from __future__ import annotations

import asyncio
import json
import socket
from dataclasses import replace
from typing import Any

import httpx
import pytest

from octavo.server.listener import listen

from ..fakes.executor import FakeExecutor
from .paged import paged, until
from .serving import chunks, listening, model

COMPLETIONS = "/v1/completions"


async def test_a_stream_that_is_not_read_is_given_up_and_the_others_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    executor = FakeExecutor(num_blocks=1200, max_model_len=16_000)
    served = replace(model(), max_model_len=16_000)
    body: dict[str, Any] = {"prompt": "a", "stream": True, "ignore_eos": True}
    async with paged(executor, served=served) as server, listening(server) as url:
        host, port = httpx.URL(url).host, httpx.URL(url).port
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect((host, port))
            content = json.dumps({**body, "max_tokens": 15_000, "logprobs": 20}).encode()
            head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}"
            client.sendall(head.encode() + b"\r\n\r\n" + content)
            async with httpx.AsyncClient(timeout=60) as others:
                for _ in range(3):
                    answers = await asyncio.gather(
                        *(others.post(url + COMPLETIONS, json=body) for _ in range(8))
                    )
                    assert all(len(chunks(answer.text)) == 16 for answer in answers)
                await until(lambda: "is given up: its client reads too slowly" in caplog.text)
                # What is left of it is text, in the buffers of two sockets.
                await until(lambda: server.engine.stats.blocks_used == 0)
                assert server.engine.stats.running == 0
                assert (await others.get(url + "/health")).status_code == 200
                assert server.admission.live == 1


def test_the_system_ends_a_connection_whose_client_takes_nothing() -> None:
    with listen("127.0.0.1", 0, unread_seconds=1.0) as listener:
        listener.setblocking(True)
        with socket.create_connection(listener.getsockname()):
            connection, _ = listener.accept()
            with connection, pytest.raises(TimeoutError):
                while True:
                    connection.sendall(b"x" * 65_536)
