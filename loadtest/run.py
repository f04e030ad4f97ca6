"""Run a workload against a server: a closed loop of `concurrency` clients, each with a connection
of its own that sends its next request when the last one has ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from .client import Client, Exchange
from .report import Report
from .workload import Workload


async def measure(
    workload: Workload,
    *,
    base_url: str,
    model: str,
    api_key: str | None = None,
    on_done: Callable[[Exchange], None] | None = None,
) -> Report:
    """Send every request of the workload and report.

    `base_url` is the server's root, as in http://127.0.0.1:8000. `on_done` sees each exchange as
    it ends, for a progress bar.
    """
    bodies = workload.bodies(model)
    exchanges: list[Exchange] = []

    async def send_until_none_is_left(client: Client) -> None:
        for body in bodies:  # shared: each body goes to the client that is free first
            exchange = await client.post("/v1/completions", body)
            exchanges.append(exchange)
            if on_done is not None:
                on_done(exchange)

    clients = [Client(base_url, api_key) for _ in range(workload.concurrency)]
    began, cpu = time.perf_counter(), time.process_time()
    try:
        await asyncio.gather(*(send_until_none_is_left(client) for client in clients))
    finally:
        for client in clients:
            await client.close()
    seconds = time.perf_counter() - began
    return Report.of(exchanges, seconds=seconds, client_cpu=time.process_time() - cpu)
