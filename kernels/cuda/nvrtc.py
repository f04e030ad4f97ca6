"""Compiling CUDA C++ when it is needed, by NVIDIA's run-time compiler, and launching it.

Both libraries are called by their C interfaces: the compiler comes with torch's CUDA builds, needs
neither a GPU nor a header, and is looked for among Python's packages, then where the system has
libraries; the driver is there where a GPU is.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PACKAGES = ("nvidia.cuda_nvrtc", "nvidia.cu13")
_SIZES = (ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t))


class CompilationFailed(Exception):
    """What the compiler said."""


@functools.cache
def find_compiler() -> ctypes.CDLL | None:
    """The compiler's library, or None where there is none."""
    found = [str(file) for package in _PACKAGES for file in _libraries_of(package)]
    found += [name for name in (ctypes.util.find_library("nvrtc"),) if name]
    for name in found:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _libraries_of(package: str) -> list[Path]:
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        return []
    folders = list(spec.submodule_search_locations or ()) if spec else []
    files = [file for folder in folders for file in Path(folder).glob("lib/libnvrtc.so.*")]
    return sorted(file for file in files if "builtins" not in file.name)


def compile_cubin(source: str, *, architecture: str, defines: Mapping[str, int]) -> bytes:
    """Machine code of CUDA C++ for an architecture such as "sm_90".

    Raises:
        CompilationFailed: the compiler refused; its words.
    """
    compiler = find_compiler()
    if compiler is None:
        raise CompilationFailed("there is no NVRTC library; torch's CUDA builds bring one")
    program = ctypes.c_void_p()
    _check(
        compiler.nvrtcCreateProgram(
            ctypes.byref(program), source.encode(), b"octavo.cu", 0, None, None
        )
    )
    try:
        options = [f"--gpu-architecture={architecture}", "--std=c++17"]
        options += [f"--define-macro={name}={value}" for name, value in defines.items()]
        array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        if compiler.nvrtcCompileProgram(program, len(options), array):
            told = _take(compiler, "nvrtcGetProgramLog", program)
            raise CompilationFailed(told.rstrip(b"\0").decode(errors="replace"))
        return _take(compiler, "nvrtcGetCUBIN", program)
    finally:
        compiler.nvrtcDestroyProgram(ctypes.byref(program))


def _take(compiler: ctypes.CDLL, what: str, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    _check(getattr(compiler, f"{what}Size")(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(getattr(compiler, what)(program, buffer))
    return buffer.raw


def _check(code: int) -> None:
    if code:
        raise CompilationFailed(f"NVRTC answered with error {code}")


@dataclass(frozen=True, slots=True)
class Function:
    """A kernel in the current device's memory, kept for the life of the process."""

    handle: ctypes.c_void_p
    types: Sequence[type[Any]]

    @classmethod
    def load(
        cls,
        cubin: bytes,
        name: str,
        types: Sequence[type[Any]],
    ) -> Function:
        """The kernel `name` of machine code; `types` of its arguments."""
        module, handle = ctypes.c_void_p(), ctypes.c_void_p()
        _check_driver(_driver().cuModuleLoadData(ctypes.byref(module), cubin))
        _check_driver(_driver().cuModuleGetFunction(ctypes.byref(handle), module, name.encode()))
        return cls(handle, types)

    def __call__(
        self, grid: tuple[int, int, int], threads: int, stream: int, *arguments: float
    ) -> None:
        """Launch on a stream of the current device. Pointers are integers."""
        held = [type_(value) for type_, value in zip(self.types, arguments, strict=True)]
        places = (ctypes.c_void_p * len(held))(
            *(ctypes.cast(ctypes.byref(value), ctypes.c_void_p) for value in held)
        )
        _check_driver(
            _driver().cuLaunchKernel(
                self.handle, *grid, threads, 1, 1, 0, ctypes.c_void_p(stream), places, None
            )
        )


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _check_driver(code: int) -> None:
    if code:
        raise RuntimeError(f"The CUDA driver answered with error {code}.")
