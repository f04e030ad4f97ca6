"""Decoding steps of a CPU, in one call: the kernels of a step are recorded and called again.

Python takes as long to call the kernels of a small model as they take to run, and while it does
nobody else in the process runs any. A replayed step holds no lock. Which kernels are called depends
on the number of sequences alone, so there is a recording for each number that came up; nothing is
padded, and nothing computed for the recording's sake: it is made of a step as that is computed.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from octavo.kernels.ops import NotRecordable, Recorder, Recording

from ..batch import Batch
from .graphs import Forwards, Yield
from .padding import Key, StaticBatch

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Recorded:
    """The memory that a recording reads, what is done, and the memory that it writes."""

    place: Batch
    recording: Recording
    results: Yield

    def replay(self, batch: Batch) -> Yield:
        place = self.place
        place.token_ids.copy_(batch.token_ids)
        place.positions.copy_(batch.positions)
        place.slot_mapping.copy_(batch.slot_mapping)
        place.context_lengths.copy_(batch.context_lengths)
        place.block_tables[:, : batch.block_tables.shape[1]].copy_(batch.block_tables)
        self.recording.replay()
        return self.results


class Replayed:
    """Replays steps in which each sequence has one token that wants logits; computes the rest
    kernel by kernel.

    A recording is used when it has proved itself: replayed for another step than the one it was
    made of, it has to give, bit by bit, what is computed for that.
    """

    def __init__(self, eager: Forwards, recorder: Recorder, static: StaticBatch) -> None:
        """`static` has room for the largest step that is recorded."""
        self._eager = eager
        self._recorder = recorder
        self._static = static
        self._most = static.tokens
        self._recorded: dict[int, _Recorded] = {}  # by sequences of the step
        self._unproven: dict[int, _Recorded] = {}
        self.replays = 0  # so far

    @property
    def recorded(self) -> int:
        return len(self._recorded)

    @property
    def planned(self) -> int:
        """What comes up is not known before."""
        return len(self._recorded)

    def __call__(self, batch: Batch) -> Yield:
        rows = len(batch.query_lengths)
        if len(batch.token_ids) != rows or not batch.all_logits or not 0 < rows <= self._most:
            return self._eager(batch)
        if (known := self._recorded.get(rows)) is not None:
            self.replays += 1
            return known.replay(batch)
        if rows in self._unproven:
            return self._prove(rows, batch)
        return self._record(rows, batch)

    def draw(
        self, logits: Tensor, temperature: Tensor, seeds: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        return None

    def improve(self, *, idle: bool) -> bool:
        return False

    def _record(self, rows: int, batch: Batch) -> Yield:
        key = Key(self._static.longest, rows, 1)
        place = self._static.of(key)
        self._static.fill(key, batch)
        try:
            recording, (hidden, logits) = self._recorder.record(partial(self._eager, place))
        except NotRecordable as why:
            self._give_up(str(why))
            return self._eager(batch)
        self._unproven[rows] = _Recorded(place, recording, (hidden, logits))
        return hidden, logits

    def _prove(self, rows: int, batch: Batch) -> Yield:
        recorded = self._unproven.pop(rows)
        replayed = recorded.replay(batch)
        made = self._eager(batch)
        if all(map(_same_bits, replayed, made)):
            self._recorded[rows] = recorded
        else:
            self._give_up(f"a replayed one of {rows} sequences was not the same")
        return made

    def _give_up(self, why: str) -> None:
        log.warning("decoding steps are computed kernel by kernel: %s", why)
        self._most = 0
        self._recorded.clear()
        self._unproven.clear()


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """NaN included."""
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8))
