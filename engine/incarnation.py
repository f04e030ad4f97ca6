"""`Incarnation`: one engine as the front end sees it, from its launch to its end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator

from . import errors
from .channel import (
    AsyncChannel,
    Fatal,
    Message,
    Missing,
    Notice,
    Progress,
    Ready,
    StepReport,
)
from .errors import ConfigError, EngineDead
from .executor.base import Capacity
from .executor.base import Progress as OnProgress
from .heartbeat import Beat
from .supervisor import STOP_GRACE_SECONDS, EngineHost
from .watch import Watch

log = logging.getLogger(__name__)

_IDLE_START = 30.0  # seconds


class Incarnation:
    """A host, the channel to it, and what is thought of it."""

    def __init__(self, host: EngineHost, channel: AsyncChannel, watch: Watch) -> None:
        self._host = host
        self._channel = channel
        self._watch = watch
        self._reports = 0  # that came from it
        self._ready_since = 0.0
        self._told: str | None = None  # by itself, of its end
        self._condemned: str | None = None  # why it is not to go on

    @classmethod
    async def meet(cls, host: EngineHost, watch: Watch) -> Incarnation:
        """The one that has been launched with `host`."""
        return cls(host, await AsyncChannel.open(host.socket, epoch=host.epoch), watch)

    @property
    def beat(self) -> Beat:
        """The last one, also when it is gone."""
        return self._host.heartbeat.read()

    @property
    def age(self) -> float:
        """Seconds since it became ready."""
        return time.monotonic() - self._ready_since

    def send(self, message: Message) -> None:
        self._channel.send(message)

    async def started(self, progress: OnProgress, *, patience: float = _IDLE_START) -> Capacity:
        """Wait until it is ready.

        Args:
            patience: seconds that it may spend without doing anything at all.

        Raises:
            ConfigError: the checkpoint or the machine does not allow it to start.
            EngineDead: it ended for another reason.
        """
        watching = asyncio.create_task(self._expect_labour(patience))
        try:
            return await self._started(progress)
        except EOFError:
            raise EngineDead(f"The engine did not start: it {await self.end()}.") from None
        finally:
            watching.cancel()

    async def _expect_labour(self, patience: float) -> None:
        """Starting takes as long as it takes, but never without work."""
        before = -1.0
        while (spent := self._host.labour()) != before:
            before = spent
            await asyncio.sleep(patience)
        self.condemn(f"did nothing at all for {patience:g} s")

    async def _started(self, progress: OnProgress) -> Capacity:
        while True:
            match message := await self._channel.receive():
                case Progress(stage, done, total):
                    progress(stage, done, total)
                case Notice(level, name, text):
                    logging.getLogger(name).log(level, "%s", text)
                case Ready(capacity):
                    self._ready_since = time.monotonic()
                    return capacity
                case Fatal(name, text):
                    await asyncio.to_thread(self._host.stop)
                    raise _fatal(name, text)
                case _:
                    await asyncio.to_thread(self._host.stop)
                    raise EngineDead(f"A starting engine sends no {type(message).__name__}.")

    async def messages(self) -> AsyncGenerator[StepReport | Missing, None]:
        """What it brings, in order and without a gap, until it is gone or condemned."""
        try:
            while True:
                match await self._channel.receive():
                    case StepReport(number=number) as report:
                        if number != self._reports:
                            self.condemn(f"lost report {self._reports}")
                            return
                        self._reports += 1
                        yield report
                    case Missing() as answer:
                        yield answer
                    case Notice(level, name, text):
                        logging.getLogger(name).log(level, "%s", text)
                    case Fatal(_, text):
                        self._told = f"ended: {text}"
                    case message:
                        raise TypeError(f"a running engine sends no {type(message).__name__}")
        except EOFError:
            return
        except Exception as error:  # it cannot be understood: another one may do better
            log.exception("the engine talks nonsense")
            self.condemn(f"talked nonsense ({error})")

    def look(self, *, awaited: bool) -> str:
        """Look whether it makes progress; what is strange, or nothing. Condemns one that hangs.

        Args:
            awaited: somebody waits for what it is to bring.
        """
        self._watch.look(self.beat, awaited=awaited, now=time.monotonic())
        if self._watch.hung:
            self.condemn(self._watch.finding)
        return self._watch.finding

    def condemn(self, why: str) -> None:
        """It is of no more use: `messages` end."""
        self._condemned = self._condemned or why
        self._channel.abandon()

    async def end(self) -> str:
        """Have it gone, and say why it is."""
        self._channel.abandon()
        await self.stop(0.0 if self._condemned else STOP_GRACE_SECONDS)
        return self._condemned or self._told or self._host.ending() or "closed its channel"

    async def stop(self, grace: float) -> None:
        """Give it so many seconds to leave by itself, then end it."""
        await asyncio.to_thread(self._host.stop, grace)

    async def close(self) -> None:
        await self._channel.close()


def _fatal(name: str, text: str) -> ConfigError | EngineDead:
    """The error a dying engine named, as one of ours."""
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, ConfigError):
        return kind(text)
    return EngineDead(text)
