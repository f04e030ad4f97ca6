"""`Pulse` and `Heartbeat`: what the engine does, in memory that the front end can read at any time.

The memory is shared with one incarnation of the engine and has no name in the file system. The
engine writes a record before it lets a step run and after it has ended; the front end reads it to
see whether there is progress, and after a death to see which requests stood in the fatal step.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

_CHECKSUM = struct.Struct("<I")
_HEAD = struct.Struct("<IQIqddd?")  # bytes of the names, then the fields of Beat in order
_SLOTS = (64, 1 << 19)  # where the two records begin
_MAX_NAMES = _SLOTS[1] - _SLOTS[0] - _CHECKSUM.size - _HEAD.size
_TRIES = 64

SIZE = 1 << 20  # bytes; pages that are never written cost nothing


@dataclass(frozen=True, slots=True)
class Beat:
    """One record. Times are time.monotonic() seconds, which all processes of a machine share."""

    completed: int = 0  # steps, by this incarnation
    pending: int = 0  # requests that the engine has
    step: int = 0  # number of the oldest step in flight
    at: float = 0.0  # of the last sign of life
    began: float = 0.0  # when the oldest step in flight began
    predicted: float = 0.0  # seconds that it is thought to take
    stumbled: bool = False  # planning raised an exception: any request may have been the cause
    in_flight: tuple[str, ...] = ()  # request ids of the steps that have not ended


class _Flight(NamedTuple):
    step: int
    request_ids: tuple[str, ...]
    seconds: float


class Pulse:
    """The engine's end: the only writer. A write takes a few microseconds.

    Two records take turns and one byte says which of them counts: a writer that is killed in the
    middle of a record leaves the one before.
    """

    def __init__(
        self,
        memory: mmap.mmap | bytearray | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`memory` of SIZE bytes; None: nobody reads it."""
        self._memory = bytearray(SIZE) if memory is None else memory
        self._clock = clock
        self._flights: deque[_Flight] = deque()
        self._completed = 0
        self._pending = 0
        self._began = 0.0
        self._stumbled = False
        self._named: list[tuple[str, ...]] = []  # by flight
        self._names = b"[]"
        self._write()

    def beat(self, pending: int) -> None:
        """The engine is alive and has so many requests."""
        self._pending = pending
        self._write()

    def launch(self, step: int, request_ids: Iterable[str], seconds: float) -> None:
        """A step is about to run, and is thought to take so long."""
        if not self._flights:
            self._began = self._clock()
        self._flights.append(_Flight(step, tuple(request_ids), seconds))
        self._name()
        self._write()

    def land(self, *, completed: bool = True) -> None:
        """The oldest step in flight has ended; not `completed`: with an exception."""
        self._flights.popleft()
        self._completed += completed
        self._began = self._clock()
        self._name()
        self._write()

    def stumble(self) -> None:
        """The engine is about to end because it cannot plan."""
        self._stumbled = True
        self._write()

    def _name(self) -> None:
        """Remember the names of those in flight, until others fly."""
        flying = [flight.request_ids for flight in self._flights]
        if not flying or flying == self._named:
            return  # as from one decoding step to the next
        self._named = flying
        named = list(dict.fromkeys(chain.from_iterable(flying)))
        self._names = json.dumps(named).encode()
        while len(self._names) > _MAX_NAMES:
            del named[len(named) // 2 :]
            self._names = json.dumps(named).encode()

    def _write(self) -> None:
        oldest = self._flights[0] if self._flights else None
        names = self._names if oldest else b"[]"
        head = _HEAD.pack(
            len(names),
            self._completed,
            self._pending,
            oldest.step if oldest else 0,
            self._clock(),
            self._began if oldest else 0.0,
            oldest.seconds if oldest else 0.0,
            self._stumbled,
        )
        record = head + names
        record = _CHECKSUM.pack(zlib.crc32(record)) + record
        other = 1 - self._memory[0]
        start = _SLOTS[other]
        self._memory[start : start + len(record)] = record
        self._memory[0] = other


class Heartbeat:
    """The front end's end: reads, never waits, and never sees half a record."""

    def __init__(self, memory: mmap.mmap | bytearray) -> None:
        self._memory = memory

    def read(self) -> Beat:
        """The last record; an empty one if there is none yet."""
        for _ in range(_TRIES):  # a record is torn only if two were written while one was read
            beat = self._record(_SLOTS[self._memory[0]])
            if beat is not None:
                return beat
        return Beat()

    def _record(self, start: int) -> Beat | None:
        """What stands there, if it is whole."""
        after = start + _CHECKSUM.size
        head = self._memory[after : after + _HEAD.size]
        size, completed, pending, step, at, began, predicted, stumbled = _HEAD.unpack(head)
        if size > _MAX_NAMES:
            return None
        names = self._memory[after + _HEAD.size : after + _HEAD.size + size]
        (checksum,) = _CHECKSUM.unpack_from(self._memory, start)
        if zlib.crc32(names, zlib.crc32(head)) != checksum:
            return None
        named = tuple(json.loads(names))
        return Beat(completed, pending, step, at, began, predicted, stumbled, named)


def shared_memory() -> tuple[mmap.mmap, int]:
    """Memory for one incarnation, and the descriptor to hand to its process (the caller's to
    close). It is gone with the last process that has it."""
    fd = os.memfd_create("octavo-heartbeat")
    os.ftruncate(fd, SIZE)
    return mmap.mmap(fd, SIZE), fd


def inherited_memory(fd: int) -> mmap.mmap:
    """The same memory in the process that was given the descriptor, which is closed."""
    memory = mmap.mmap(fd, SIZE)
    os.close(fd)
    return memory
