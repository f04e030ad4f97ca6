"""Recorded forward passes: a step whose slices are all alike is given to a GPU in one call.

Launching the kernels of a small model one by one takes the host longer than the GPU takes to run
them. Where every slice has the same number of tokens and all of them want logits (decodes, drafts
being verified), the sequence of kernels depends on the number of sequences only. So it is recorded
(a CUDA graph) for some numbers, the batch is padded to the next of them, and replayed.

Drafts are chains so far: the tree masks of `ops.PagedSlices` are tested, and no plan asks for them.

Nobody waits for that: the server answers at once, launching kernels one by one, and graphs are
recorded while it has nothing to do, or, while it has, for the number it needs most, now and then.

What is given to `Graphed` as its recorder decides whether this is real. The real one,
`GpuRecorder`, has not run on a GPU yet. What a CPU does instead is in `replaying.py`.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from typing import Protocol

import torch
from torch import Tensor

from ..batch import Batch
from ..device import check_alive, is_out_of_memory, release_memory
from ..kv_cache import KVCache
from ..models.base import Model
from .memory import size
from .padding import STEADY, Key, StaticBatch

log = logging.getLogger(__name__)

Yield = tuple[Tensor, Tensor]
"""Hidden states [tokens, hidden], and logits of `batch.logits_rows`, float32 [rows, vocab]."""
Draw = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""`ops.draw` without a narrowing."""

_OFTEN = 16  # steps that would have used a graph, until a busy server stops to record it
_PAUSE = 1.0  # seconds between two recordings of a busy server
_FLOOR = 512 << 20  # bytes that stay free


class Forwards(Protocol):
    """Computes batches, and may get faster at it."""

    @property
    def recorded(self) -> int:
        """Graphs there are."""

    @property
    def planned(self) -> int:
        """Graphs there will be."""

    @property
    def learning(self) -> bool:
        """Whether the last call took longer than the next ones like it, for a recording's sake."""

    def __call__(self, batch: Batch) -> Yield:
        """Stores the batch's keys and values. What it returns is good until the next call."""

    def draw(
        self, logits: Tensor, temperature: Tensor, seeds: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """See `sampling.sampler.Draws`."""

    def improve(self, *, idle: bool) -> bool:
        """Record a graph, if one is missing and this is a good moment. Returns whether any is
        still missing."""


class Eager:
    """Kernel by kernel."""

    recorded = planned = 0
    learning = False

    def __init__(self, model: Model, kv: KVCache) -> None:
        self._model = model
        self._kv = kv

    def __call__(self, batch: Batch) -> Yield:
        hidden = self._model.forward(batch, self._kv)
        if not len(batch.logits_rows):
            return hidden, hidden[:0]
        wanted = hidden if batch.all_logits else hidden[batch.logits_rows]
        return hidden, self._model.logits(wanted)

    def draw(
        self, logits: Tensor, temperature: Tensor, seeds: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        return None

    def improve(self, *, idle: bool) -> bool:
        return False


class Recording(Protocol):
    """Work that was recorded."""

    def replay(self) -> None:
        """Do it again, on the same memory."""


class Recorder(Protocol):
    """Records work of a device."""

    def record(
        self, work: Callable[[], tuple[Tensor, Tensor]]
    ) -> tuple[Recording, tuple[Tensor, Tensor]]:
        """Do the work once, so that all it needs is there; then record it. Returns the tensors
        that each replay writes."""

    def free(self) -> int:
        """Bytes that the device has free."""


class GpuRecorder:
    """CUDA graphs that share one pool of memory: no two are replayed at the same time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        # Libraries keep a workspace for each stream: warmed on the one that records.
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def record(
        self, work: Callable[[], tuple[Tensor, Tensor]]
    ) -> tuple[Recording, tuple[Tensor, Tensor]]:
        torch.cuda.synchronize(self._device)
        with torch.cuda.stream(self._stream):
            work()
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            made = work()
        return graph, made

    def free(self) -> int:
        return torch.cuda.mem_get_info(self._device)[0]


class Graphed:
    """Replays what has been recorded, and computes the rest kernel by kernel."""

    learning = False  # it records between steps

    def __init__(
        self,
        compute: Callable[[Batch], Yield],
        recorder: Recorder,
        keys: Sequence[Key],
        static: StaticBatch,
        clock: Callable[[], float] = time.monotonic,
        *,
        draw: Draw | None = None,
        reserved: int = 0,
    ) -> None:
        """`draw`: recorded by itself behind each forward pass, so that what comes late, a grammar's
        mask, holds up the draw alone. `reserved`: bytes that graphs are expected to take."""
        self._compute = compute
        self._recorder = recorder
        self._static = static
        self._clock = clock
        self._missing = list(keys)
        self._graphs: dict[Key, tuple[Recording, Yield]] = {}
        self._draw = draw
        self._draws: dict[Key, tuple[Recording, tuple[Tensor, Tensor]]] = {}
        self._replayed: Key | None = None  # by the last call
        self._results: Yield | None = None  # of whichever graph was replayed last
        self._yields = lru_cache(maxsize=STEADY)(self._yield)
        self._numbers = lru_cache(maxsize=STEADY)(self._numbers_of)
        self._drawings = lru_cache(maxsize=STEADY)(self._drawn)
        self._wanted: Counter[Key] = Counter()
        self._last = float("-inf")
        self._seconds = 0.0
        self._reserved = reserved
        self._taken = 0  # bytes, by all graphs there are
        self._shrunk = False
        self.planned = len(self._missing)

    @property
    def recorded(self) -> int:
        return len(self._graphs)

    def __call__(self, batch: Batch) -> Yield:
        self._replayed = key = self._key(batch, self._graphs)
        if key is None:
            wanted = self._key(batch, self._missing)
            if wanted is not None:
                self._wanted[wanted] += 1
            return self._compute(batch)
        self._static.fill(key, batch)
        self._graphs[key][0].replay()
        hidden, logits = self._yields(key, len(batch.token_ids))
        return hidden, logits if batch.all_logits else logits[batch.logits_rows]

    def _yield(self, key: Key, tokens: int) -> Yield:
        """What a graph leaves, without the padding."""
        hidden, logits = self._graphs[key][1]
        return hidden[:tokens], logits[:tokens]

    def draw(
        self, logits: Tensor, temperature: Tensor, seeds: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """Replays the draw from the logits of the last call, if that was a replay."""
        key = self._replayed
        if key not in self._draws or logits.data_ptr() != self._graphs[key][1][1].data_ptr():
            return None
        given = (temperature, seeds, positions)
        for place, values in zip(self._numbers(len(logits)), given, strict=True):
            place.copy_(values)
        self._draws[key][0].replay()
        return self._drawings(key, len(logits))

    def _numbers_of(self, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Where draws look for temperatures, seeds and positions."""
        static = self._static
        return static.temperature[:rows], static.seeds[:rows], static.draw_positions[:rows]

    def _drawn(self, key: Key, rows: int) -> tuple[Tensor, Tensor]:
        """What a recorded draw leaves, without the padding."""
        chosen, outcomes = self._draws[key][1]
        return chosen[:rows], outcomes[:rows]

    def improve(self, *, idle: bool) -> bool:
        if not self._missing:
            return False
        if idle:
            self._record(self._missing[0])
        elif self._clock() - self._last >= _PAUSE:
            often = [key for key, count in self._wanted.items() if count >= _OFTEN]
            if often:
                self._record(max(often, key=self._wanted.__getitem__))
        return bool(self._missing)

    def _key(self, batch: Batch, among: Iterable[Key]) -> Key | None:
        """The smallest graph that fits, of those `among`."""
        rows, tokens = len(batch.query_lengths), len(batch.token_ids)
        if not rows or tokens % rows or len(batch.logits_rows) != tokens:
            return None
        queries = tokens // rows
        if any(length != queries for length in batch.query_lengths):
            return None
        longest = max(batch.context_lengths_host)
        fitting = [
            key
            for key in among
            if key.queries == queries and key.rows >= rows and key.longest >= longest
        ]
        # Half full at least: the rest of a padded batch is computed for nothing.
        fitting = [key for key in fitting if key.rows <= 2 * rows]
        return min(fitting, default=None, key=lambda key: (key.rows, key.longest))

    def _record(self, key: Key) -> None:
        self._missing.remove(key)
        self._wanted.pop(key, None)
        if not self._graphs and self.planned == len(self._missing) + 1:
            log.info("recording %d graphs; until then steps go kernel by kernel", self.planned)
        free = self._recorder.free()
        if free < _FLOOR:
            self._give_up(key, f"less than {_FLOOR >> 20} MiB of the GPU's memory is free")
            return
        began = self._clock()
        batch = self._static.of(key)
        try:
            with torch.inference_mode():
                self._static.fill(key, None)
                graph = self._recorder.record(lambda: self._kept(self._compute(batch)))
                if self._draw is not None:
                    self._draws[key] = self._recorder.record(self._drawing(key, graph[1][1]))
                self._graphs[key] = graph
        except Exception as error:  # steps can do without: no reason to end the engine
            check_alive(error)
            if not is_out_of_memory(error):
                self._missing.clear()
                self.planned = len(self._graphs)
                log.exception("graphs are not used: %s could not be recorded", key)
            else:
                release_memory()
                self._give_up(key, "the GPU's memory does not suffice")
        self._taken += max(0, free - self._recorder.free())
        self._last = self._clock()
        self._seconds += self._last - began
        self._tell()

    def _kept(self, made: Yield) -> Yield:
        """Copied to where the results of all graphs go: logits are large, and each graph would keep
        its own. The copy costs less than a hundredth of a large step."""
        hidden, logits = made
        if self._results is None:
            rows = self._static.tokens
            self._results = (
                hidden.new_empty(rows, *hidden.shape[1:]),
                logits.new_empty(rows, *logits.shape[1:]),
            )
        places = (self._results[0][: len(hidden)], self._results[1][: len(logits)])
        for place, tensor in zip(places, made, strict=True):
            place.copy_(tensor)
        return places

    def _drawing(self, key: Key, logits: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
        """A draw from the logits that the key's forward pass leaves behind."""
        assert self._draw is not None
        return partial(self._draw, logits, *self._numbers_of(key.rows * key.queries))

    def _give_up(self, key: Key, why: str) -> None:
        """Once the larger ones, then all that are missing."""
        left = [] if self._shrunk else [k for k in self._missing if k.rows < key.rows // 2]
        log.warning(
            "%d graphs are not recorded, %s: such steps are computed kernel by kernel",
            len(self._missing) - len(left) + 1,
            why,
        )
        self._shrunk = True
        self._missing = left
        self.planned = len(self._graphs) + len(left)

    def _tell(self) -> None:
        """Progress: each quarter of the way."""
        done = len(self._graphs)
        if not self._missing:
            log.log(
                logging.WARNING if self._taken > self._reserved else logging.INFO,
                "%d graphs recorded in %.1f s of the engine's time; they take %s of the GPU's "
                "memory, and %s were reserved for them",
                done,
                self._seconds,
                size(self._taken),
                size(self._reserved),
            )
        elif done % max(1, self.planned // 4) == 0:
            log.info("%d of %d graphs recorded", done, self.planned)
