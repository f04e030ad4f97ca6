"""`FaultyComputer`: computes like the one it has, and goes wrong where it was told to."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Sequence

from ..params import SamplingParams
from ..step import Slice, SliceResult, StepPlan
from ..worker.computer import Launched
from ..worker.runner import Computes
from .fault import Fault

_EXIT_CODE = 70


class FaultyComputer:
    """Strikes before it launches. `raise` and `oom` are exceptions out of `launch`, which its
    caller answers like any other; the rest befalls the whole process."""

    def __init__(self, inner: Computes, faults: Sequence[Fault], *, epoch: int) -> None:
        self._inner = inner
        self._faults = [fault for fault in faults if fault.epoch in (None, epoch)]
        self._step = -1
        self._struck: set[tuple[Fault, int]] = set()  # with the step
        self._marked: dict[Fault, set[int]] = {fault: set() for fault in self._faults}

    def ready(self, params: SamplingParams) -> bool:
        return self._inner.ready(params)

    def begin(self, plan: StepPlan) -> None:
        self._step = plan.number
        self._inner.begin(plan)

    def forget(self, sequences: Iterable[int]) -> None:
        gone = set(sequences)
        for marked in self._marked.values():
            marked -= gone
        self._inner.forget(gone)

    def launch(self, slices: Sequence[Slice]) -> Launched:
        self._mark(slices)
        for fault in self._faults:
            if self._due(fault, slices):
                _strike(fault)
        return self._inner.launch(slices)

    def sample(self, launched: Launched) -> None:
        self._inner.sample(launched)

    def land(self, launched: Launched) -> list[SliceResult]:
        return self._inner.land(launched)

    def rewind(self) -> None:
        self._inner.rewind()

    def _mark(self, slices: Sequence[Slice]) -> None:
        """Remember the sequences whose prompt has a fault's token."""
        for part in slices:
            if part.history is None:
                continue
            prompt = part.history.token_ids[: part.history.prompt_length]
            for fault, sequences in self._marked.items():
                if fault.token in prompt:
                    sequences.add(part.sequence)

    def _due(self, fault: Fault, slices: Sequence[Slice]) -> bool:
        if fault.step not in (None, self._step):
            return False
        if fault.token is not None:
            return any(part.sequence in self._marked[fault] for part in slices)
        if (fault, self._step) in self._struck:
            return False
        self._struck.add((fault, self._step))
        return True


def _strike(fault: Fault) -> None:
    match fault.action:
        case "raise":
            raise RuntimeError(f"a fault on purpose: {fault}")
        case "oom":
            raise MemoryError(f"a fault on purpose: {fault}")
        case "delay":
            time.sleep(fault.seconds)
        case "exit":
            os._exit(_EXIT_CODE)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
