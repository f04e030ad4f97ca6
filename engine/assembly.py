"""Where concrete classes are named. Everything is imported when called: importing this module
imports no torch. It is also the entry of the engine process:

    python -m octavo.engine.assembly SOCKET_FD MEMORY_FD EPOCH PARENT_PID
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING

from .channel import Channel, Fatal, Notice, Progress, Ready, Start
from .config import EngineConfig
from .errors import OctavoError
from .executor.base import Capacity, Executor
from .executor.base import Progress as OnProgress
from .heartbeat import Pulse, inherited_memory
from .lifeline import die_with
from .supervisor import MAX_RESTARTS
from .watch import HANG_SECONDS

if TYPE_CHECKING:
    from .async_engine import AsyncEngine
    from .core import Engine, Line
    from .executor.inline import Launch
    from .supervisor import EngineProcess
    from .worker.runner import Runner
    from .worker.stream import Stream

log = logging.getLogger(__name__)
_COMPUTING_NICENESS = 5


def build_executor(config: EngineConfig, *, epoch: int = 0) -> Executor:
    """The executor that `config` asks for. `epoch` counts the incarnations of the engine."""
    from .executor.inline import InlineExecutor

    if config.test_fault:
        return InlineExecutor(config, _faulty_launch(epoch))
    return InlineExecutor(config)


def _faulty_launch(epoch: int) -> Launch:
    """Like `worker.launch.launch`, but what it makes goes wrong where the configuration says so."""
    from .faults.computer import FaultyComputer
    from .faults.fault import parse_fault
    from .worker.launch import launch

    def faulty(
        config: EngineConfig, progress: OnProgress, stream: Stream
    ) -> tuple[Runner, Capacity]:
        faults = [parse_fault(text) for text in config.test_fault]
        log.warning(
            "FAULTS ON PURPOSE, for tests only: this engine will go wrong (--test-fault %s)",
            ", ".join(map(str, faults)),
        )
        runner, capacity = launch(config, progress, stream)
        runner.computer = FaultyComputer(runner.computer, faults, epoch=epoch)
        return runner, capacity

    return faulty


def _line(config: EngineConfig, channel: Channel) -> Line:
    """What the engine speaks through."""
    if not config.test_fault:
        return channel
    from .faults.fault import parse_fault
    from .faults.line import LossyLine

    return LossyLine(channel, [parse_fault(text) for text in config.test_fault])


def build_engine(
    config: EngineConfig,
    progress: OnProgress,
    executor: Executor | None = None,
    pulse: Pulse | None = None,
) -> tuple[Engine, Capacity]:
    """A started engine in this process, and what it can do.

    Raises:
        ConfigError: the checkpoint or the machine does not allow it to start.
    """
    from .core import Engine
    from .scheduler.scheduler import Scheduler

    executor = executor or build_executor(config)
    capacity = executor.start(progress)
    scheduler = Scheduler(config, capacity)
    return Engine(scheduler, executor, overlap=capacity.overlap, pulse=pulse), capacity


def build_async_engine(
    config: EngineConfig, *, max_restarts: int = MAX_RESTARTS, hang_timeout: float = HANG_SECONDS
) -> AsyncEngine:
    """The engine in a process of its own. The process is started here and now, so that it loads
    while the caller still imports its web framework.

    Args:
        max_restarts: fruitless ones in a row, before it is given up.
        hang_timeout: seconds without progress that any step may take.
    """
    from .async_engine import AsyncEngine
    from .supervisor import RestartPolicy

    return AsyncEngine(
        lambda epoch: launch_process(config, epoch),
        host=launch_process(config, 0),
        restarts=RestartPolicy(limit=max_restarts),
        hang_timeout=hang_timeout,
    )


def build_threaded_engine(config: EngineConfig, executor: Executor | None = None) -> AsyncEngine:
    """The engine in a thread of this process: for tests and for use as a library."""
    from .async_engine import AsyncEngine
    from .supervisor import EngineThread

    def run(channel: Channel, pulse: Pulse) -> None:
        run_engine(config, channel, executor, pulse)

    return AsyncEngine(lambda epoch: EngineThread(run, epoch))


def launch_process(config: EngineConfig, epoch: int) -> EngineProcess:
    from .supervisor import EngineProcess

    return EngineProcess(config, epoch)


def run_engine(
    config: EngineConfig,
    channel: Channel,
    executor: Executor | None = None,
    pulse: Pulse | None = None,
    on_started: Callable[[], None] = lambda: None,
) -> None:
    """Start an engine and serve a channel until it says to shut down.

    What stops it from starting or going on is told over the channel. `on_started` is called before
    the first request can come.
    """
    from .core import serve
    from .device import without_gradients

    engine: Engine | None = None
    try:
        executor = executor or build_executor(config, epoch=channel.epoch)
        engine, capacity = build_engine(config, _reporter(channel), executor, pulse)
        on_started()
        channel.send(Ready(capacity))
        with without_gradients():  # once, not in every step; this thread is ours
            serve(engine, _line(config, channel))
    except OctavoError as error:
        channel.send(Fatal(type(error).__name__, str(error)))
    except OSError as error:
        # A broken pipe means that the front end is gone: there is nobody to tell.
        with contextlib.suppress(OSError):
            channel.send(Fatal(type(error).__name__, str(error)))
    finally:
        if engine is not None:
            engine.stop()


def _reporter(channel: Channel) -> Callable[[str, int, int], None]:
    def report(stage: str, done: int, total: int) -> None:
        channel.send(Progress(stage, done, total))

    return report


class _LogOverChannel(logging.Handler):
    """The engine process logs through the front end, which knows the format."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(message)s"))  # what else there is, a Notice tells
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            self._channel.send(Notice(record.levelno, record.name, self.format(record)))


def main(arguments: list[str]) -> None:
    """The engine process: one socket, one configuration, one engine."""
    fd, memory_fd, epoch, parent = (int(argument) for argument in arguments)
    die_with(parent)
    gc.disable()  # while it loads there is nothing to find
    # Between two parallel regions OpenMP's threads spin by default. With any neighbour on the same
    # cores they spin in its time: 2 threads were measured 40 times slower than with sleeping.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the front end's to handle
    channel = Channel(socket.socket(fileno=fd), epoch=epoch)
    logging.basicConfig(level=logging.INFO, handlers=[_LogOverChannel(channel)])
    try:
        # What arrived behind it can only be aborts of requests that this engine never saw.
        first, *_ = channel.receive(wait=True)
        if not isinstance(first, Start):
            raise TypeError(f"the first message must be Start, not {type(first).__name__}")
        _give_way(first.config)
        pulse = Pulse(inherited_memory(memory_fd))
        run_engine(first.config, channel, pulse=pulse, on_started=_keep_what_is_there)
    except EOFError:
        return
    except Exception as error:  # whatever ends this process, the front end is told what it was
        traceback.print_exc()
        with contextlib.suppress(OSError):
            channel.send(Fatal(type(error).__name__, f"{type(error).__name__}: {error}"))
        raise SystemExit(1) from None


def _give_way(config: EngineConfig) -> None:
    """Who computes on the cores that the front end needs too comes behind it: what that has to do
    is little, and a client waits for it. With all cores busy and ten times as many requests as can
    be served, refusals take half the time, and as many tokens are computed."""
    from .device import computes_on_cores

    if computes_on_cores(config.device):
        os.nice(_COMPUTING_NICENESS)  # of this thread, and of all that it will start


def _keep_what_is_there() -> None:
    """Garbage is looked for among what comes from now on. Looking through all that torch has
    brought along stops the process for a tenth of a second."""
    gc.freeze()
    gc.enable()


if __name__ == "__main__":
    main(sys.argv[1:])
