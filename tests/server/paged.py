"""The whole server over the true engine loop, with a fake executor below it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from octavo.engine.assembly import run_engine
from octavo.engine.async_engine import AsyncEngine
from octavo.engine.channel import Channel
from octavo.engine.config import EngineConfig
from octavo.engine.heartbeat import Pulse
from octavo.engine.supervisor import EngineThread
from octavo.server.app import create_app
from octavo.server.models import ModelPool, ServedModel
from octavo.server.observe.metrics import Metrics
from octavo.server.settings import Settings
from octavo.server.text.grammar_check import GrammarCheck
from octavo.server.text.template_worker import InProcess

from ..fakes.executor import FakeExecutor
from .serving import model


@contextlib.asynccontextmanager
async def paged(
    executor: FakeExecutor | None = None,
    *,
    grammar_check: Callable[[Path], Any] = GrammarCheck,
    served: ServedModel | None = None,
    max_num_seqs: int = 64,
    **settings: Any,
) -> AsyncIterator[Paged]:
    """One that has started. At its end nothing may be left of any request."""
    executor = executor or FakeExecutor()
    config = EngineConfig(model="fake", max_num_seqs=max_num_seqs)

    def run(channel: Channel, pulse: Pulse) -> None:
        run_engine(config, channel, executor, pulse)

    engine = AsyncEngine(lambda epoch: EngineThread(run, epoch))
    await engine.start(lambda stage, done, total: None)
    chosen = Settings(max_num_seqs=max_num_seqs, **settings)
    server = Paged(engine, executor, served or model(), chosen, grammar_check)
    try:
        yield server
        await server.until_empty()
    finally:
        await engine.stop()
        for check in server.app.state.helpers:
            await check.close()


class Paged:
    """`app` is what `listening` serves."""

    def __init__(
        self,
        engine: AsyncEngine,
        executor: FakeExecutor,
        served: ServedModel,
        settings: Settings,
        grammar_check: Callable[[Path], Any],
    ) -> None:
        self.engine = engine
        self.executor = executor
        self.settings = settings
        self.metrics = Metrics(model_name="tiny", longest_context=512)
        self.app = create_app(
            engine,
            ModelPool((served,)),
            settings,
            metrics=self.metrics,
            grammar_check=grammar_check,
            renderer=InProcess,
        )
        self.admission = self.app.state.admission

    def metric(self, name: str) -> float:
        """The sum over all label sets, as /metrics has it."""
        lines = self.metrics.render().decode().splitlines()
        values = [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name}{{")]
        assert values, name
        return sum(values)

    @property
    def empty(self) -> bool:
        """Whether no request is left anywhere, and no block held."""
        stats, admission = self.engine.stats, self.admission
        return not any(
            (
                *(stats.running, stats.waiting, stats.blocks_used, self.engine.live_requests),
                *(admission.live, admission.requests.waiting, admission.tokens.waiting),
            )
        )

    async def until_empty(self) -> None:
        await until(lambda: self.empty)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that must come."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)
