"""Work noted while it is done, so that it can be done again in one call into the library.

What a call is given are addresses and numbers, and these are noted as they are. So nothing else may
have a part in the work: not an operation of torch's, whose result would be that of the first time
for ever. torch itself is asked to show each operation before it is done (`TorchDispatchMode`), and
but for making tensors, empty or of zeros, and looking at tensors in another way none is let pass.
"""

from __future__ import annotations

import math
import struct
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..memory import zeros
from ..ops import MakeRecorder, NotRecordable, Recorder, Recording
from .library import COUNT, FLOAT, POINTER, Function, Library, Noted

_aten = torch.ops.aten
_SMALLEST = 64  # bytes: a cache line


def recorder(library: Library) -> MakeRecorder:
    replay = library.function("replay", POINTER, COUNT)
    clear = library.function("clear", POINTER, COUNT)

    def make() -> Recorder:
        return _Recorder(library, replay, clear)

    return make


class _Recorder:
    """See `ops.Recorder`."""

    def __init__(self, library: Library, replay: Function, clear: Function) -> None:
        self._library = library
        self._replay = replay
        self._clear = clear
        self._arena = _Arena()

    def record(
        self, work: Callable[[], tuple[Tensor, ...]]
    ) -> tuple[Recording, tuple[Tensor, ...]]:
        with self._library.noting() as noted, _Watch(self._arena, self._clear):
            made = work()
        if not noted:
            raise NotRecordable("no op of these kernels was called")
        return _Recording(self._replay, noted), tuple(map(self._arena.lasting, made))


class _Recording:
    """See `ops.Recording`."""

    def __init__(self, replay: Function, noted: Sequence[Noted]) -> None:
        self._replay = replay
        functions = np.array([_replayable(call) for call in noted], dtype=np.int64)
        arguments = [[_slot(kind, value) for kind, value in call.arguments] for call in noted]
        self._slots = np.array([slot for slots in arguments for slot in slots], dtype=np.int64)
        begins = np.cumsum([0, *map(len, arguments)])[: len(noted)] * self._slots.itemsize
        self._calls = np.stack((functions, self._slots.ctypes.data + begins), axis=1)
        self._address, self._count = self._calls.ctypes.data, len(noted)

    def replay(self) -> None:
        self._replay(self._address, self._count)


def _replayable(call: Noted) -> int:
    if call.again is None:
        raise NotRecordable(f"{call.name} cannot be called again (see csrc/replay.h)")
    return call.again


def _slot(kind: type[Any], value: Any) -> int:
    """What stands for an argument in the 8 bytes that it has in a list of calls."""
    if value is None:
        return 0
    if kind is FLOAT:
        return int.from_bytes(struct.pack("<fxxxx", value), "little")
    if not isinstance(value, int):
        raise NotRecordable(f"an argument is {type(value).__name__}, neither address nor number")
    return value


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Of torch's operations, lets those pass that compute nothing; gives new tensors memory."""

    def __init__(self, arena: _Arena, clear: Function) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._arena = arena
        self._clear = clear

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Else torch loads its compiler, only to have it look away, when it first asks: one to
        three seconds that an answer under way waits for."""
        return False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in (_aten.empty.memory_format, _aten.zeros.default):
            made = self._arena.empty(args[0], kwargs.get("dtype") or torch.get_default_dtype())
            if func is _aten.zeros.default:
                self._clear(made.data_ptr(), made.nbytes)
            return made
        if func is _aten.new_empty.default:
            return self._arena.empty(args[1], kwargs.get("dtype") or args[0].dtype)
        if func.is_view:
            return func(*args, **kwargs)
        raise NotRecordable(f"{func} is an operation of torch's")


class _Arena:
    """Memory for the tensors of recordings, of which no two are made or replayed at a time.

    It is used again within a recording as soon as the last view of a tensor is gone, as memory is
    that is freed: what was written last is in the cache.
    """

    def __init__(self) -> None:
        self._blocks: list[Tensor] = []  # uint8, their sizes are powers of two
        self._free: dict[int, list[int]] = {}  # by size, what is to be used next being the last

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        nbytes = math.prod(shape) * dtype.itemsize
        size = max(_SMALLEST, 1 << (nbytes - 1).bit_length()) if nbytes else _SMALLEST
        free = self._free.setdefault(size, [])
        if not free:
            free.append(len(self._blocks))
            self._blocks.append(zeros((size,), torch.uint8))
        block = free.pop()
        memory = self._blocks[block].numpy()[:nbytes]
        # torch keeps this array for as long as any tensor views it.
        weakref.finalize(memory, free.append, block).atexit = False
        return torch.from_numpy(memory).view(dtype).view(tuple(shape))

    def lasting(self, tensor: Tensor) -> Tensor:
        """The same memory, while others may already be using it again."""
        if not tensor.is_contiguous():
            raise NotRecordable("a result has gaps")
        address = tensor.data_ptr()
        for block in self._blocks:
            offset = address - block.data_ptr()
            if 0 <= offset < len(block):
                part = block[offset : offset + tensor.nbytes]
                return part.view(tensor.dtype).view(tensor.shape)
        return tensor
