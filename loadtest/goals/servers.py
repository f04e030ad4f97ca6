"""Servers as child processes: start, wait until ready, how much processor time they used, stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..client import Client
from ..run import run

_READY_SECONDS = 600.0  # vLLM compiles its kernels at its first start
_STOP_SECONDS = 20.0
_LOOK_SECONDS = 0.1
_IDLE_SHARE = 0.15  # of a core
_UNSET = ("-u", "OMP_NUM_THREADS", "-u", "OMP_WAIT_POLICY", "-u", "MKL_NUM_THREADS")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How one server is started. {port} in the command is the port that it gets."""

    name: str  # as the figures call it: octavo, octavo int8, llama.cpp, vllm ...
    command: Sequence[str]
    ready_path: str = "/health"
    environment: Mapping[str, str] = field(default_factory=dict)
    model: str = "model"  # the name to ask it for


class NotStarted(Exception):
    """A server did not become ready; the message says what it last wrote."""


class Server:
    """One running server. Its output goes to a file."""

    def __init__(self, launch: Launch, log: Path) -> None:
        """Start it and wait until it is ready. Raises NotStarted."""
        self.launch = launch
        self.port = _free_port()
        self._log = log
        words = [word.replace("{port}", str(self.port)) for word in launch.command]
        # A clean start: what the caller told its own libraries must not slow a peer down.
        words = ["env", *_UNSET, *(f"{k}={v}" for k, v in launch.environment.items()), *words]
        began = time.perf_counter()
        try:
            with log.open("wb") as output:
                self._process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            raise NotStarted(f"it cannot be run: {error}") from error
        try:
            run(self._wait())
        except BaseException:
            self.stop()
            raise
        self.start_seconds = time.perf_counter() - began

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return self._process.pid

    def cpu_seconds(self, *, children: bool) -> float:
        """Processor time used so far, by its first process alone or with all below it."""
        pids = [self.pid, *_descendants(self.pid)] if children else [self.pid]
        return sum(map(_cpu_seconds, pids))

    def rest(self, *, most_seconds: float) -> None:
        """Wait until it does next to nothing: one that is ready may be getting ready for more. Who
        never rests is waited for that long."""
        end = time.perf_counter() + most_seconds
        used = self.cpu_seconds(children=True)
        while time.perf_counter() < end:
            time.sleep(_LOOK_SECONDS)
            before, used = used, self.cpu_seconds(children=True)
            if used - before <= _IDLE_SHARE * _LOOK_SECONDS:
                return

    def signal(self, number: signal.Signals) -> None:
        """To its process and all below it."""
        for pid in (self.pid, *_descendants(self.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def stop(self) -> None:
        """End the process and all it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    async def _wait(self) -> None:
        client, limit = Client(self.url), time.perf_counter() + _READY_SECONDS
        try:
            while True:
                with contextlib.suppress(OSError):
                    status, _ = await client.get(self.launch.ready_path)
                    if status == 200:
                        return
                if self._process.poll() is not None:
                    raise NotStarted(
                        f"it ended with {self._process.returncode}: {self.last_words()}"
                    )
                if time.perf_counter() > limit:
                    raise NotStarted(f"not ready in {_READY_SECONDS:.0f} s: {self.last_words()}")
                await asyncio.sleep(_LOOK_SECONDS)
        finally:
            client.close()

    def last_words(self) -> str:
        """The last line that it wrote."""
        lines = self._log.read_text("utf-8", "replace").strip().splitlines()
        return lines[-1][-300:] if lines else "it wrote nothing"


@contextlib.contextmanager
def paused(servers: Sequence[Server]) -> Iterator[None]:
    """Within, they stand still: some look for work all the time, at the cost of whoever has it."""
    for server in servers:
        server.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for server in servers:
            server.signal(signal.SIGCONT)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the command's name; none when it has gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _cpu_seconds(pid: int) -> float:
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / _TICKS if fields else 0.0


def _descendants(pid: int) -> list[int]:
    parents = {
        int(path.name): int(fields[1])
        for path in Path("/proc").iterdir()
        if path.name.isdigit() and (fields := _stat(int(path.name)))
    }
    found, below = list[int](), [pid]
    while below := [child for child, parent in parents.items() if parent in below]:
        found += below
    return found
