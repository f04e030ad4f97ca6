"""`InlineExecutor`: computes in the engine's own process."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ..config import EngineConfig
from ..device import has_streams, overlaps, pick_device
from ..params import SamplingParams
from ..step import StepOutput, StepPlan
from ..worker.launch import launch
from ..worker.runner import Runner
from ..worker.stream import AtOnce, OwnThread, Stream
from .base import Capacity, Progress

Launch = Callable[[EngineConfig, Progress, Stream], tuple[Runner, Capacity]]


class InlineExecutor:
    """Runs the whole model in this process.

    With overlap a step is launched when it is submitted. A GPU then computes beside us; so does a
    CPU, in a thread of its own that lets go of the interpreter's lock while it computes. Without,
    a step is computed when it is collected.
    """

    def __init__(self, config: EngineConfig, launch: Launch = launch) -> None:
        """`launch` makes the runner; what it gives the device goes through the stream."""
        self._config = config
        self._launch = launch
        device = pick_device(config.device)
        self._ahead = overlaps(config.overlap, device)
        threaded = self._ahead and not has_streams(device)
        self._stream: Stream = OwnThread() if threaded else AtOnce()
        self._runner: Runner | None = None
        self._next: StepPlan | None = None

    def start(self, progress: Progress) -> Capacity:
        make = partial(self._launch, self._config, progress, self._stream)
        self._runner, capacity = self._stream.run(make)()
        return capacity

    def ready(self, params: SamplingParams) -> bool:
        return self._started().ready(params)

    def submit(self, plan: StepPlan) -> None:
        runner = self._started()
        if self._ahead:
            runner.launch(plan)
        else:
            self._next = plan

    def collect(self) -> StepOutput:
        runner = self._started()
        plan, self._next = self._next, None
        return runner.land() if plan is None else runner.execute(plan)

    def improve(self, *, idle: bool) -> bool:
        return self._started().improve(idle=idle)

    def stop(self) -> None:
        self._stream.close()
        self._runner = None

    def _started(self) -> Runner:
        if self._runner is None:
            raise RuntimeError("the executor has not been started")
        return self._runner
