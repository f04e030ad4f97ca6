"""`InlineExecutor`: computes in the engine's own process."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ..config import EngineConfig
from ..params import SamplingParams
from ..step import StepOutput, StepPlan
from ..worker.launch import launch
from ..worker.runner import Runner
from ..worker.stream import AtOnce, OwnThread, Stream
from .base import Capacity, Progress

Launch = Callable[[EngineConfig, Progress, Stream], tuple[Runner, Capacity]]


class InlineExecutor:
    """Runs the whole model in this process.

    Planned ahead, a CPU computes in a thread of its own, which lets go of the interpreter's lock
    while it does; a GPU computes beside us anyway.
    """

    def __init__(self, config: EngineConfig, launch: Launch = launch) -> None:
        """`launch` makes the runner; what it gives the device goes through the stream."""
        self._config = config
        self._launch = launch
        self._stream: Stream = OwnThread() if config.overlap else AtOnce()
        self._runner: Runner | None = None

    def start(self, progress: Progress) -> Capacity:
        make = partial(self._launch, self._config, progress, self._stream)
        self._runner, capacity = self._stream.run(make)()
        return capacity

    def ready(self, params: SamplingParams) -> bool:
        return self._started().ready(params)

    def submit(self, plan: StepPlan) -> None:
        self._started().launch(plan)

    def collect(self) -> StepOutput:
        return self._started().land()

    def stop(self) -> None:
        self._stream.close()
        self._runner = None

    def _started(self) -> Runner:
        if self._runner is None:
            raise RuntimeError("the executor has not been started")
        return self._runner
