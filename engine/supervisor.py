"""Starting an engine and starting it again: `EngineProcess`, `EngineThread`, `RestartPolicy`.

The first two are `EngineHost`s: each runs one incarnation of the engine at the far end of a socket
pair, has a heartbeat in memory that both ends share, and can say whether it still lives.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from .channel import Channel, Start
from .config import EngineConfig
from .heartbeat import SIZE, Heartbeat, Pulse, shared_memory

STOP_GRACE_SECONDS = 5.0
MAX_RESTARTS = 5  # fruitless ones in a row
_REAP_SECONDS = 10.0
_DELAYS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)


class EngineHost(Protocol):
    """An engine that runs somewhere, reached through `socket`."""

    socket: socket.socket
    epoch: int
    heartbeat: Heartbeat

    def ending(self) -> str | None:
        """Why it is no longer alive, in words; None while it is."""

    def labour(self) -> float:
        """Seconds of CPU time that it has spent: they stand still where it is frozen."""

    def stop(self, grace: float = STOP_GRACE_SECONDS) -> None:
        """Wait so many seconds for it to leave by itself, then end it. Idempotent."""


Launch = Callable[[int], EngineHost]
"""launch(epoch) starts a new incarnation of the engine."""


class RestartPolicy:
    """When to start a dead engine again: at once, then after ever longer pauses, then not at all.

    Only fruitless deaths count, those without one completed step since the start: an engine that
    worked in between is as good as new, and deaths that narrow down which request causes them
    serve a purpose. More than `limit` fruitless deaths within `window` seconds mean that starting
    again does not help.
    """

    def __init__(self, *, limit: int = MAX_RESTARTS, window: float = 600.0) -> None:
        self._limit = limit
        self._window = window
        self._fruitless: list[float] = []

    def delay(self, *, completed_steps: bool, narrowed: bool = False, now: float) -> float | None:
        """Seconds to wait before the next start, or None to give up."""
        if completed_steps:
            self._fruitless.clear()
        if completed_steps or narrowed:
            return _DELAYS[0]
        self._fruitless = [t for t in self._fruitless if now - t < self._window]
        self._fruitless.append(now)
        deaths = len(self._fruitless)
        return None if deaths > self._limit else _DELAYS[min(deaths, len(_DELAYS)) - 1]


class EngineProcess:
    """The engine in a process of its own, started by exec with one inherited socket.

    The child leaves when the socket closes, and the kernel ends it when this process dies
    (`lifeline`), so no orphan survives a killed front end: launch it from a thread that stays.
    """

    def __init__(self, config: EngineConfig, epoch: int) -> None:
        self.socket, inherited = socket.socketpair()
        self.epoch = epoch
        memory, memory_fd = shared_memory()
        self.heartbeat = Heartbeat(memory)
        with inherited:
            try:
                self._process = subprocess.Popen(
                    [
                        sys.executable,
                        "-P",  # no module is taken from the folder it is started in
                        "-m",
                        "octavo.engine.assembly",
                        str(inherited.fileno()),
                        str(memory_fd),
                        str(epoch),
                        str(os.getpid()),
                    ],
                    pass_fds=[inherited.fileno(), memory_fd],
                    stdin=subprocess.DEVNULL,
                )
            finally:
                os.close(memory_fd)
        # The one message that must precede everything else, sent before any event loop exists.
        first = Channel(self.socket.dup(), epoch=epoch)
        first.send(Start(config))
        first.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def ending(self) -> str | None:
        code = self._process.poll()
        if code is None:
            return None
        if code < 0:
            return f"ended by signal {-code}"
        return f"exited with code {code}"

    def labour(self) -> float:
        try:
            status = Path(f"/proc/{self.pid}/stat").read_text()
        except OSError:
            return 0.0  # it is gone
        user, system = status.rpartition(")")[2].split()[11:13]  # proc_pid_stat(5)
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def stop(self, grace: float = STOP_GRACE_SECONDS) -> None:
        try:
            self._process.wait(grace)
        except subprocess.TimeoutExpired:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_REAP_SECONDS)  # for ever, where a device holds on to it


class EngineThread:
    """The engine in a thread of this process: for tests, and for use as a library."""

    def __init__(self, run: Callable[[Channel, Pulse], None], epoch: int) -> None:
        self.socket, far = socket.socketpair()
        self.epoch = epoch
        memory = mmap.mmap(-1, SIZE)
        self.heartbeat = Heartbeat(memory)
        self._error: BaseException | None = None
        self._thread = threading.Thread(
            target=self._main,
            args=(run, Channel(far, epoch=epoch), Pulse(memory)),
            name="octavo-engine",
        )
        self._thread.start()

    def _main(self, run: Callable[[Channel, Pulse], None], channel: Channel, pulse: Pulse) -> None:
        try:
            run(channel, pulse)
        except EOFError:
            pass  # the front end left first
        except BaseException as error:  # nothing is above it that would hear of it
            self._error = error
        finally:
            channel.close()

    def ending(self) -> str | None:
        if self._thread.is_alive():
            return None
        return f"ended by {self._error!r}" if self._error is not None else "ended"

    def labour(self) -> float:
        return time.process_time()

    def stop(self, grace: float = STOP_GRACE_SECONDS) -> None:
        self._thread.join(grace)
