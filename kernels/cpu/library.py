"""A compiled library, and how tensors are handed to it."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import c_float, c_int64, c_void_p
from functools import cache
from pathlib import Path
from threading import get_ident
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..memory import Workspace
from . import build

_LOG = logging.getLogger("octavo.kernels")
POINTER, COUNT, FLOAT = c_void_p, c_int64, c_float  # kinds of arguments
SUFFIXES = {torch.float32: "f32", torch.bfloat16: "bf16"}
# What /proc/cpuinfo must name for each level, as far as a CPU could have the one and not the other.
_NEEDS = {
    "avx512_bf16": {"avx512_bf16", "avx512_vnni", "avx512f", "avx512bw", "avx512dq", "avx512vl"},
    "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
    "avx2": {"avx2", "fma", "f16c"},
}

Function = Callable[..., None]


class Noted(NamedTuple):
    """A call that was made."""

    name: str
    again: int | None  # the address of `octavo_again_<name>`, see csrc/replay.h, where there is one
    arguments: tuple[tuple[type[Any], Any], ...]  # their kinds and values


class Library:
    """The C functions of one level, and memory for what they give."""

    def __init__(self, path: Path) -> None:
        """Raises OSError: not a library that can be loaded here."""
        self._loaded = ctypes.CDLL(str(path))
        self._noting: dict[int, list[Noted]] = {}  # by thread: where its calls are noted
        self._workspace = Workspace()

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Memory for what a function gives."""
        if self._noting and get_ident() in self._noting:
            return torch.empty(shape, dtype=dtype)  # whoever notes our calls gives it
        return self._workspace.empty(shape, dtype)

    def function(self, name: str, *arguments: type[Any]) -> Function:
        """The function `octavo_<name>`, which returns nothing."""
        found = self._loaded[f"octavo_{name}"]
        found.argtypes, found.restype = arguments, None
        noting = self._noting
        replayable: Any = getattr(self._loaded, f"octavo_again_{name}", None)
        again = replayable and ctypes.cast(replayable, c_void_p).value

        def call(*values: Any) -> None:
            if noting and (noted := noting.get(get_ident())) is not None:
                noted.append(Noted(name, again, tuple(zip(arguments, values, strict=True))))
            found(*values)

        return call

    @contextmanager
    def noting(self) -> Iterator[list[Noted]]:
        """The calls that this thread makes meanwhile, in their order."""
        own = get_ident()
        if own in self._noting:
            raise RuntimeError("this thread's calls are being noted already")
        noted: list[Noted] = []
        self._noting[own] = noted
        try:
            yield noted
        finally:
            del self._noting[own]

    def functions(self, name: str, *arguments: type[Any]) -> dict[torch.dtype, Function]:
        """`octavo_<name>_f32` and `octavo_<name>_bf16`, by the dtype they are for."""
        return {
            dtype: self.function(f"{name}_{suffix}", *arguments)
            for dtype, suffix in SUFFIXES.items()
        }


def dense(x: Tensor) -> Tensor:
    """`x`, its elements one after the other in memory."""
    return x if x.is_contiguous() else x.contiguous()


@cache
def levels() -> tuple[str, ...]:
    """The levels this machine's CPU has, best first."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        return ()
    line = next((line for line in text.splitlines() if line.startswith("flags")), "")
    has = set(line.split())
    return tuple(level for level in build.LEVELS if _NEEDS[level] <= has)


def load(level: str) -> Library | None:
    """The library of a level that this CPU has, compiled now if need be; None, and one line in the
    log that says why, where that is not possible."""
    try:
        return Library(build.library(level, _LOG.info))
    except (build.NotBuilt, OSError) as error:
        _LOG.warning(
            "The C++ kernels (%s) are not there, slower ones in torch stand in: %s. Install g++ or "
            "clang++, or use a wheel of octavo, which carries them.",
            level,
            error,
        )
        return None
