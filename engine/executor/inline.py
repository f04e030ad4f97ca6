"""`InlineExecutor`: computes in the engine's own process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from ..config import EngineConfig
from ..params import SamplingParams
from ..step import StepOutput, StepPlan
from ..worker.launch import launch
from ..worker.runner import Runner
from .base import Capacity, Progress

T = TypeVar("T")
Launch = Callable[[EngineConfig, Progress], tuple[Runner, Capacity]]


class InlineExecutor:
    """Runs the whole model in this process.

    With an overlap of 1 a thread of its own computes, plan after plan: `submit` returns at once,
    and step k + 1 is planned while torch, which lets go of the interpreter's lock, computes step
    k. With 0 a plan is computed when it is collected, by whoever collects it.
    """

    def __init__(self, config: EngineConfig, launch: Launch = launch) -> None:
        """`launch` makes the runner, in the thread that will use it."""
        self._config = config
        self._launch = launch
        # Everything runs in the thread that will compute: torch's workers belong to one thread.
        self._thread = ThreadPoolExecutor(1, "octavo-compute") if config.overlap else None
        self._runner: Runner | None = None
        self._pending: deque[Callable[[], StepOutput]] = deque()

    def start(self, progress: Progress) -> Capacity:
        self._runner, capacity = self._call(lambda: self._launch(self._config, progress))()
        return capacity

    def ready(self, params: SamplingParams) -> bool:
        return self._started().ready(params)

    def submit(self, plan: StepPlan) -> None:
        runner = self._started()
        self._pending.append(self._call(lambda: runner.execute(plan)))

    def collect(self) -> StepOutput:
        return self._pending.popleft()()

    def stop(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
        self._pending.clear()
        self._runner = None

    def _started(self) -> Runner:
        if self._runner is None:
            raise RuntimeError("the executor has not been started")
        return self._runner

    def _call(self, work: Callable[[], T]) -> Callable[[], T]:
        """A way to the result of `work`, which runs in our thread, or when the result is wanted."""
        if self._thread is None:
            return work
        future: Future[T] = self._thread.submit(work)
        return future.result
