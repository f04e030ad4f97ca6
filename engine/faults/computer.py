"""`FaultyComputer`: computes like the one it has, and goes wrong where it was told to."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence

from ..params import SamplingParams
from ..step import Slice, SliceResult, StepPlan
from ..worker.runner import Computes
from .fault import Fault

_EXIT_CODE = 70


class FaultyComputer:
    """Strikes before it computes. `raise` and `oom` are exceptions out of `compute`, which its
    caller answers like any other; the rest befalls the whole process."""

    def __init__(self, inner: Computes, faults: Sequence[Fault], *, epoch: int) -> None:
        self._inner = inner
        self._faults = [fault for fault in faults if fault.epoch in (None, epoch)]
        self._step = -1
        self._struck: set[Fault] = set()  # those of this step
        self._marked: dict[Fault, set[int]] = {fault: set() for fault in self._faults}

    def ready(self, params: SamplingParams) -> bool:
        return self._inner.ready(params)

    def begin(self, plan: StepPlan) -> None:
        self._step = plan.number
        self._struck.clear()
        for sequences in self._marked.values():
            sequences.difference_update(plan.retired)
        self._inner.begin(plan)

    def compute(self, slices: Sequence[Slice]) -> list[SliceResult]:
        self._mark(slices)
        for fault in self._faults:
            if self._due(fault, slices):
                _strike(fault)
        return self._inner.compute(slices)

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
        if fault in self._struck:
            return False
        self._struck.add(fault)
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
