"""A daemon to be drilled: started by its command, reached by HTTP, hurt by signals."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from .answer import get
from .processes import alive, children, command_of, held_by, tree

START_LIMIT_SECONDS = 180.0
_COMMAND = (sys.executable, "-m", "octavo.server.cli", "serve")
_ENGINE = "octavo.engine"  # in the command line of the process that computes
_AUDIT = "octavo:kv_block_audit_failures_total"
_IDLE = ("octavo:num_requests_running", "octavo:num_requests_waiting", "octavo:kv_cache_usage_perc")


class Broken(Exception):
    """The daemon is not what a drill needs: it does not start, or has gone."""


class Daemon:
    """`start_seconds`: from the command to the first 200 of /readyz."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, log: Path) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        self.start_seconds = 0.0

    @property
    def pid(self) -> int:
        return self.process.pid

    def engine(self) -> int | None:
        """The process that computes; None while there is none."""
        found = [pid for pid in children(self.pid) if _ENGINE in command_of(pid) and alive(pid)]
        return found[0] if found else None

    def processes(self) -> list[int]:
        return tree(self.pid)

    def descriptors(self) -> int:
        return held_by(self.processes()).descriptors

    def memory(self) -> int:
        return held_by(self.processes()).bytes

    async def ready(self) -> bool:
        with contextlib.suppress(OSError, EOFError, TimeoutError):
            return (await get(self.url, "/readyz"))[0] == 200
        return False

    async def metrics(self) -> dict[str, float]:
        """By name, summed over all labels; none where the daemon does not answer."""
        found: dict[str, float] = {}
        try:
            _, content = await get(self.url, "/metrics")
        except (OSError, EOFError, TimeoutError):
            return found
        for line in content.decode().splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                name = name.partition("{")[0]
                found[name] = found.get(name, 0.0) + float(value)
        return found

    async def audit_failures(self) -> float:
        """Errors found in the accounting of KV blocks; nan where nobody says."""
        return (await self.metrics()).get(_AUDIT, math.nan)

    async def idle_after(self, limit: float) -> float:
        """Seconds until nothing runs, waits or holds a block; inf where `limit` was not enough."""
        began = time.perf_counter()
        while True:
            metrics = await self.metrics()
            waited = time.perf_counter() - began
            if metrics and not any(metrics[name] for name in _IDLE):
                return waited
            if waited > limit:
                return float("inf")
            await asyncio.sleep(0.02)

    async def become_ready(self, limit: float) -> float:
        """Seconds until it was ready. Raises Broken."""
        began = time.perf_counter()
        while not await self.ready():
            waited = time.perf_counter() - began
            if self.process.returncode is not None or waited > limit:
                raise Broken(f"it was not ready after {waited:.1f} s: {self.last_words()}")
            await asyncio.sleep(0.01)
        return time.perf_counter() - began

    def last_words(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def stop(self) -> int:
        """Its exit status, after SIGTERM. Nothing of it is left afterwards."""
        pids = self.processes()
        if self.process.returncode is None:
            self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(90):
                return await self.process.wait()
        except TimeoutError:
            return -1
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            await self.process.wait()


@contextlib.asynccontextmanager
async def serving(*arguments: str) -> AsyncIterator[Daemon]:
    """A daemon of the bundled model that is ready; ended afterwards. Raises Broken."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with tempfile.TemporaryDirectory(prefix="octavo-drill-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as sink:
            process = await asyncio.create_subprocess_exec(
                *_COMMAND,
                *("--port", str(port), "--no-log-requests"),
                *arguments,
                stdout=sink,
                stderr=sink,
            )
        daemon = Daemon(process, port, log)
        try:
            daemon.start_seconds = await daemon.become_ready(START_LIMIT_SECONDS)
            yield daemon
        finally:
            await daemon.stop()
