"""Memory: for what is read from end to end in every step, weights and the KV cache, and for what a
step makes and lets go of."""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import threading
import weakref

import numpy as np
import torch
from torch import Tensor

_LARGE_PAGE = 2 << 20
_CHUNK = 32 * _LARGE_PAGE
_LINE = 64  # bytes
_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE of Linux 5.14, which Python's mmap does not name
_SMALL = 1 << 17  # numbers of a tensor
_GRAIN = 1 << 18  # bytes


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """A tensor of zeros that the system fills when they are first touched: `torch.zeros` writes
    them all, which takes seconds for a large cache.

    On a CPU in large pages, where the system has them: one core reads weights a tenth to a quarter
    faster through them. Small tensors have no use for one.
    """
    size = math.prod(shape) * dtype.itemsize
    if (device is not None and device.type != "cpu") or size < _LARGE_PAGE // 4:
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.frombuffer(_pages(size), dtype=dtype).view(shape)


def populate(tensor: Tensor) -> bool:
    """Have the system give a contiguous tensor on a CPU its pages now, and not when each is first
    written: a large page is filled with zeros then, and a virtual machine may have to ask its host
    for it. What the tensor holds stays as it is. False where the system does not do that.
    """
    begin = tensor.data_ptr() & -mmap.PAGESIZE
    size = tensor.data_ptr() + tensor.nbytes - begin
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return bool(advise(begin, size, _POPULATE_WRITE) == 0)


class Arena:
    """Tensors one behind the other in a few mappings, so that also those share large pages that
    are smaller than one and written before the next is made. A mapping is given back with the last
    tensor in it."""

    def __init__(self) -> None:
        self._latest: weakref.ref[mmap.mmap] | None = None
        self._used = 0  # bytes of the latest mapping

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of zeros, like the function's, on a CPU."""
        count = math.prod(shape)
        size = count * dtype.itemsize
        if size == 0 or size > _CHUNK // 2:
            return zeros(shape, dtype)
        pages = self._latest() if self._latest is not None else None
        if pages is None or self._used + size > _CHUNK:
            pages, self._used = _pages(_CHUNK), 0
            self._latest = weakref.ref(pages)
        tensor = torch.frombuffer(pages, dtype=dtype, count=count, offset=self._used)
        self._used += -(-size // _LINE) * _LINE
        return tensor.view(shape)


class Workspace:
    """Memory of large tensors that a step makes and lets go of: when nothing views it any more, it
    is used again.

    C libraries give such memory back to the system, which clears every page anew when it is asked
    for it: a quarter of a step with 2048 tokens of a small model. Here as many pieces are kept as
    tensors were there at once, and each as large as was asked of it.
    """

    def __init__(self) -> None:
        self._unused: list[mmap.mmap] = []
        self._lock = threading.Lock()

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor on the CPU with anything in it."""
        count = math.prod(shape)
        if count < _SMALL:
            return torch.empty(shape, dtype=dtype)
        size = count * dtype.itemsize
        with self._lock:
            pages = self._take(size)
        memory = np.frombuffer(pages, dtype=np.uint8, count=size)
        # torch keeps this array for as long as any tensor views it.
        weakref.finalize(memory, self._unused.append, pages).atexit = False
        return torch.from_numpy(memory).view(dtype).view(shape)

    def _take(self, size: int) -> mmap.mmap:
        """The smallest unused piece that suffices; or a new one, for which the largest of those
        that do not is given up."""
        unused = sorted(self._unused, key=len)
        for pages in unused:
            if len(pages) >= size:
                self._unused.remove(pages)
                return pages
        if unused:
            self._unused.remove(unused[-1])
        return _pages(-(-size // _GRAIN) * _GRAIN)


def _pages(size: int) -> mmap.mmap:
    """A mapping, in large pages where the system has them: it is there as long as a tensor is that
    views it. Mappings of one kind lie next to each other, and what crosses from one to the next may
    be one page."""
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        pages.madvise(mmap.MADV_HUGEPAGE)
    return pages
