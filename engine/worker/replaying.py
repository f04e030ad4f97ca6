"""Decoding steps of a CPU, in one call: the kernels of a step are recorded and called again.

Python takes as long to call the kernels of a small model as they take to run, and while it does
nobody else in the process runs any. A replayed step holds no lock. Which kernels are called depends
on the numbers of sequences and tokens alone, where all tokens want logits: decodes, and drafts that
are verified. So there is a recording for each such pair that came up, with drafts in it when it did
so several times. Nothing is padded, and nothing computed for the recording's sake: it is made of a
step as that is computed.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from octavo.kernels.ops import NotRecordable, Recorder, Recording

from ..batch import Batch
from .graphs import Forwards, Yield
from .padding import StaticBatch

log = logging.getLogger(__name__)

_OFTEN = 3  # steps of as many tokens, drafts among them, before one is recorded


_Shape = tuple[int, int]  # sequences and tokens of a step


@dataclass(frozen=True, slots=True)
class _Recorded:
    """The memory that a recording reads, what is done, and the memory that it writes."""

    place: Batch
    recording: Recording
    results: Yield

    def replay(self, batch: Batch) -> Yield:
        _fill(self.place, batch)
        self.recording.replay()
        return self.results


class Replayed:
    """Replays steps all of whose tokens want logits; computes the rest kernel by kernel.

    A recording is used when it has proved itself: replayed for another step than the one it was
    made of, it has to give, bit by bit, what is computed for that.
    """

    def __init__(self, eager: Forwards, recorder: Recorder, static: StaticBatch) -> None:
        """`static` has room for the steps that are recorded."""
        self._eager = eager
        self._recorder = recorder
        self._static = static
        self._trusted = True
        self._recorded: dict[_Shape, _Recorded] = {}
        self._unproven: dict[_Shape, _Recorded] = {}
        self._seen: Counter[_Shape] = Counter()
        self.replays = 0  # so far
        self.learning = False

    @property
    def recorded(self) -> int:
        return len(self._recorded)

    @property
    def planned(self) -> int:
        """What comes up is not known before."""
        return len(self._recorded)

    def __call__(self, batch: Batch) -> Yield:
        self.learning = False
        # Not the tensors' own lengths: torch's code for that comes from memory between two steps.
        rows, tokens = shape = len(batch.query_lengths), sum(batch.query_lengths)
        if not (batch.all_logits and rows and self._trusted):
            return self._eager(batch)
        if (known := self._recorded.get(shape)) is not None:
            self.replays += 1
            return known.replay(batch)
        if shape in self._unproven:
            self.learning = True
            return self._prove(shape, batch)
        self._seen[shape] += 1
        place = self._static.ragged(batch.query_lengths)
        if place is None:
            return self._eager(batch)
        self.learning = True
        if tokens > rows and self._seen[shape] < _OFTEN:
            return self._eager(batch)
        return self._record(shape, place, batch)

    def draw(
        self, logits: Tensor, temperature: Tensor, seeds: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        return None

    def improve(self, *, idle: bool) -> bool:
        return False

    def _record(self, shape: _Shape, place: Batch, batch: Batch) -> Yield:
        _fill(place, batch)
        try:
            recording, (hidden, logits) = self._recorder.record(partial(self._eager, place))
        except NotRecordable as why:
            self._give_up(str(why))
            return self._eager(batch)
        self._unproven[shape] = _Recorded(place, recording, (hidden, logits))
        return hidden, logits

    def _prove(self, shape: _Shape, batch: Batch) -> Yield:
        recorded = self._unproven.pop(shape)
        replayed = recorded.replay(batch)
        made = self._eager(batch)
        if all(map(_same_bits, replayed, made)):
            self._recorded[shape] = recorded
        else:
            self._give_up(f"a replayed one of {shape[0]} sequences was not the same")
        return made

    def _give_up(self, why: str) -> None:
        log.warning("decoding steps are computed kernel by kernel: %s", why)
        self._trusted = False
        self._recorded.clear()
        self._unproven.clear()


def _fill(place: Batch, batch: Batch) -> None:
    if place.token_ids.data_ptr() != batch.token_ids.data_ptr():  # else all of it is there already
        place.token_ids.copy_(batch.token_ids)
        place.positions.copy_(batch.positions)
        place.slot_mapping.copy_(batch.slot_mapping)
        place.context_lengths.copy_(batch.context_lengths)
        place.block_tables[:, : batch.block_tables.shape[1]].copy_(batch.block_tables)
    if sum(batch.query_lengths) > len(batch.query_lengths):
        place.query_offsets.copy_(batch.query_offsets)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """NaN included."""
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8))
