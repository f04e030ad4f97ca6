"""`Transfer`: arrays of a step to the device in one copy, and its results back in one.

Copies cost a few microseconds each, however small, and one from pageable memory makes the host
wait. So what a step needs is laid out in one pinned buffer and sent at once, without waiting. What
it yields comes back beside the next step's work, on a stream of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .device import Marker, SideStream, marker_of, side_stream_of

Array = npt.NDArray[Any]

_ALIGNMENT = 16  # bytes: what vector loads, and kernels compiled for aligned pointers, ask for
_SMALLEST = 1 << 16


class Transfer(Protocol):
    """Between host memory and one device's."""

    def send(self, *arrays: Array) -> list[Tensor]:
        """The arrays as tensors on the device, of the same shapes and dtypes.

        The arrays may be changed when this returns, if they are not the device's own memory.
        """

    def receive(self, *tensors: Tensor) -> Callable[[], list[Array]]:
        """Begin to bring the tensors' values to the host. Returns the way to them as arrays, to be
        gone once: it waits for the device to have come this far, and not for what follows."""


def transfer_to(device: torch.device) -> Transfer:
    """The way to move values to and from `device`."""
    make_marker, side = marker_of(device), side_stream_of(device)
    if make_marker is None or side is None:
        return Shared()
    return Pinned(device, make_marker, side)


class Shared:
    """The device computes in host memory: nothing is copied."""

    def send(self, *arrays: Array) -> list[Tensor]:
        return [torch.from_numpy(array) for array in arrays]

    def receive(self, *tensors: Tensor) -> Callable[[], list[Array]]:
        return lambda: [tensor.numpy() for tensor in tensors]


@dataclass(slots=True)
class _Buffer:
    """Host memory, and when the device has last read it or written it."""

    memory: Tensor  # uint8
    bytes: npt.NDArray[np.uint8]  # the same memory
    done: Marker
    ready: Marker  # where what it is to hold has been computed


class Pinned:
    """Through page-locked buffers. The outgoing ones are used in turn: one is written again when
    its copy has been made. An incoming one is used again when it has been read: there are as many
    as there are results on their way.

    This has not run on a GPU yet.
    """

    def __init__(
        self,
        device: torch.device,
        make_marker: Callable[[], Marker],
        side: SideStream,
        *,
        buffers: int = 3,
    ) -> None:
        self._device = device
        self._make_marker = make_marker
        self._side = side
        self._outgoing = [self._buffer(_SMALLEST) for _ in range(buffers)]
        self._incoming: list[_Buffer] = []  # in which nothing is awaited
        self._next = 0

    @torch.inference_mode()
    def send(self, *arrays: Array) -> list[Tensor]:
        packing = _Packing.of(arrays)
        buffer = self._outgoing[self._next]
        self._next = (self._next + 1) % len(self._outgoing)
        host = self._room(buffer, packing.total)
        packing.pack(arrays, buffer.bytes)
        memory = torch.empty(packing.total, dtype=torch.uint8, device=self._device)
        memory.copy_(host, non_blocking=True)
        buffer.done.record()
        return packing.views(memory, arrays)

    def receive(self, *tensors: Tensor) -> Callable[[], list[Array]]:
        # A copy of its own: the next step may write where the tensors are. Kept until it has been
        # read, for nobody else knows that the other stream needs it.
        packed = torch.cat([_bytes(tensor) for tensor in tensors])
        buffer = self._incoming.pop() if self._incoming else self._buffer(_SMALLEST)
        host = self._room(buffer, len(packed))
        buffer.ready.record()
        with self._side:
            buffer.ready.wait()
            host.copy_(packed, non_blocking=True)
            buffer.done.record()
        kept = [packed]

        def arrived() -> list[Array]:
            buffer.done.synchronize()
            kept.clear()
            arrays: list[Array] = []
            begin = 0
            for tensor in tensors:
                part = host[begin : begin + tensor.nbytes].clone()  # aligned, and ours
                arrays.append(part.view(tensor.dtype).view(tensor.shape).numpy())
                begin += tensor.nbytes
            self._incoming.append(buffer)
            return arrays

        return arrived

    def _room(self, buffer: _Buffer, total: int) -> Tensor:
        """`total` bytes of a buffer that the device has done with."""
        buffer.done.synchronize()
        if len(buffer.memory) < total:
            grown = self._buffer(1 << (total - 1).bit_length())
            buffer.memory, buffer.bytes = grown.memory, grown.bytes
            buffer.done, buffer.ready = grown.done, grown.ready
        return buffer.memory[:total]

    def _buffer(self, total: int) -> _Buffer:
        memory = torch.empty(total, dtype=torch.uint8, pin_memory=self._device.type != "cpu")
        return _Buffer(memory, memory.numpy(), self._make_marker(), self._make_marker())


def beside(values: Array | Tensor, like: Tensor) -> Tensor:
    """Values of the host on the device of `like`, where it works on them next. Nobody waits: from
    memory that is not page-locked the host would, for all that the device has still to do."""
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(values)
    if like.device == tensor.device:
        return tensor
    return tensor.pin_memory().to(like.device, non_blocking=True)


def together(like: Tensor, *arrays: Array) -> list[Tensor]:
    """Several arrays as `beside`, in one copy."""
    # Copied, because torch takes no column of a structured array, not even one with a single row.
    arrays = tuple(array.copy() for array in arrays)
    if like.device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    packing = _Packing.of(arrays)
    host = torch.empty(packing.total, dtype=torch.uint8, pin_memory=True)
    packing.pack(arrays, host.numpy())
    return packing.views(host.to(like.device, non_blocking=True), arrays)


@dataclass(frozen=True, slots=True)
class _Packing:
    """Where arrays lie in one buffer: those of a dtype behind each other, each of them aligned.

    So all of them are a few calls of torch away, however many there are: a view and a split for
    each dtype.
    """

    groups: dict[np.dtype[Any], list[int]]  # indexes of the arrays that have it
    begins: dict[int, int]  # where an array begins, in bytes, by index
    sizes: list[int]  # bytes of each group

    @classmethod
    def of(cls, arrays: Sequence[Array]) -> _Packing:
        groups: dict[np.dtype[Any], list[int]] = {}
        for i, array in enumerate(arrays):
            groups.setdefault(array.dtype, []).append(i)
        order = [i for members in groups.values() for i in members]
        lengths = [_aligned(arrays[i].nbytes) for i in order]
        begins = dict(zip(order, accumulate(lengths, initial=0), strict=False))
        sizes = [sum(_aligned(arrays[i].nbytes) for i in group) for group in groups.values()]
        return cls(groups, begins, sizes)

    @property
    def total(self) -> int:
        return sum(self.sizes)

    def pack(self, arrays: Sequence[Array], memory: npt.NDArray[np.uint8]) -> None:
        """By numpy: a call of torch takes several times as long."""
        for i, begin in self.begins.items():
            array = arrays[i]
            place = memory[begin : begin + array.nbytes].view(array.dtype)
            place.reshape(array.shape)[...] = array

    def views(self, memory: Tensor, arrays: Sequence[Array]) -> list[Tensor]:
        """Tensors like the arrays, of what was packed to `memory` (uint8)."""
        tensors: dict[int, Tensor] = {}
        parts = memory.split_with_sizes(self.sizes)
        for part, (dtype, group) in zip(parts, self.groups.items(), strict=True):
            lengths: list[int] = []
            for i in group:
                size = arrays[i].nbytes
                lengths += arrays[i].size, (_aligned(size) - size) // dtype.itemsize
            pieces = part.view(_dtype_of(dtype)).split_with_sizes(lengths)[::2]
            tensors |= zip(group, pieces, strict=True)
        return [
            tensors[i] if array.ndim == 1 else tensors[i].view(array.shape)
            for i, array in enumerate(arrays)
        ]


@cache
def _dtype_of(dtype: np.dtype[Any]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _bytes(tensor: Tensor) -> Tensor:
    flat = tensor if tensor.ndim == 1 else tensor.contiguous().view(math.prod(tensor.shape))
    return flat.contiguous().view(torch.uint8)
