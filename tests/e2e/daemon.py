"""A real `octavo serve` in a process of its own, for tests."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from octavo.loadtest.drills.processes import children, command_of

START_LIMIT_SECONDS = 120.0
STOP_LIMIT_SECONDS = 30.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True, slots=True)
class Daemon:
    url: str
    pid: int
    log: Path

    @property
    def engine(self) -> int:
        """The process that computes; helpers of the front end are others of its children."""
        (engine,) = (pid for pid in children(self.pid) if "engine.assembly" in command_of(pid))
        return engine

    def metric(self, name: str) -> float:
        """The sum over all label sets of one metric, as /metrics has it now."""
        lines = httpx.get(f"{self.url}/metrics", timeout=30).text.splitlines()
        values = [
            float(line.rsplit(" ", 1)[1])
            for line in lines
            if line.startswith((f"{name} ", f"{name}{{"))
        ]
        assert values, f"/metrics has no {name}"
        return sum(values)

    def wait_until_idle(self, seconds: float = 10.0) -> None:
        """Until nothing runs, waits or holds a block; fails when that takes too long."""
        names = ("octavo:num_requests_running", "octavo:num_requests_waiting")
        deadline = time.monotonic() + seconds
        while any(self.metric(name) for name in (*names, "octavo:kv_cache_usage_perc")):
            assert time.monotonic() < deadline, f"still busy: {[self.metric(n) for n in names]}"
            time.sleep(0.05)  # between two looks at a condition that is awaited


@contextlib.contextmanager
def serving(
    folder: Path,
    *arguments: str,
    environment: dict[str, str] | None = None,
    leaves_with: int = 0,
) -> Iterator[Daemon]:
    """A daemon that is ready, on a free port; its log goes to `folder`. Ended with SIGTERM where it
    has not ended before, and must leave with `leaves_with` (-9: killed)."""
    port = free_port()
    log = folder / f"octavo-{port}.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "octavo.server.cli", "serve", *arguments, "--port", str(port)],
            stdout=sink,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_ready(url, process, log)
        yield Daemon(url, process.pid, log)
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_LIMIT_SECONDS) == leaves_with, log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_LIMIT_SECONDS
    while True:
        assert process.poll() is None, f"the daemon ended early:\n{log.read_text()}"
        assert time.monotonic() < deadline, f"the daemon is not ready:\n{log.read_text()}"
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz").status_code == 200:
                return
        time.sleep(0.05)  # between two looks at a condition that is awaited
