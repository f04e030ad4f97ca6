"""Compiles `csrc/` to one shared library per instruction set. Standard library only: `setup.py`
runs it too, so that wheels carry all libraries.

A library is named by what it was made of, so that one never stands in for another. It is looked
for in `built/` beside this file, where a wheel has it, then in the user's cache, and compiled when
it is in neither.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType

SOURCES = Path(__file__).parent / "csrc"
BUILT = Path(__file__).parent / "built"
CACHE = Path("~/.cache/octavo/kernels")

_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")
# Instruction sets, best first, with the flags that the compiler needs for each.
LEVELS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "avx512_bf16": (*_AVX512, "-mavx512bf16", "-mavx512vnni"),
        "avx512": _AVX512,
        "avx2": _AVX2,
    }
)
# No -ffast-math: sums keep their order. No contraction: whether a product and a sum are rounded
# once or twice may not depend on what the compiler makes of the code around them.
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fno-math-errno", "-ffp-contract=off", "-pthread")
_LINK_FLAGS = ("-shared", "-s", "-pthread", "-static-libgcc", "-static-libstdc++")
_COMPILERS = ("g++", "clang++", "c++")


class NotBuilt(Exception):
    """There is no library, and none could be made; says why."""


def library(level: str, notice: Callable[[str], None] = lambda line: None) -> Path:
    """The shared library for `level`, compiled now if it never was.

    Raises:
        NotBuilt: there is no compiler, or it failed.
    """
    shipped = BUILT / _name(level, "")
    if shipped.exists():
        return shipped
    compiler = find_compiler()
    name = _name(level, _identity(compiler))
    cached = CACHE.expanduser() / name
    if cached.exists():
        return cached
    notice(f"compiling the {level} kernels with {Path(compiler).name}, once")
    began = time.monotonic()
    compiled = _compile(compiler, level, _writable(cached.parent) / name)
    notice(f"compiled {compiled} in {time.monotonic() - began:.1f} s")
    return compiled


def build_all(folder: Path) -> list[Path]:
    """The libraries of all levels, in `folder`, where a wheel carries them.

    Raises:
        NotBuilt: there is no compiler, or it failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    compiler = find_compiler()
    return [_compile(compiler, level, folder / _name(level, "")) for level in LEVELS]


def compile_sources(
    compiler: str, sources: Sequence[Path], flags: Sequence[str], target: Path
) -> None:
    """Compile each file, several at a time, and link them to the shared library `target`.

    Raises:
        NotBuilt: the compiler failed; with the end of what it said.
    """
    with tempfile.TemporaryDirectory(prefix="octavo-build-") as folder:
        objects = [str(Path(folder, f"{source.stem}.o")) for source in sources]
        commands = [
            [compiler, *flags, "-c", str(source), "-o", to]
            for source, to in zip(sources, objects, strict=True)
        ]
        with ThreadPoolExecutor(os.cpu_count()) as several:
            list(several.map(_run, commands))
        _run([compiler, *flags, *_LINK_FLAGS, *objects, "-o", str(target)])


def _compile(compiler: str, level: str, target: Path) -> Path:
    # Whoever builds the same at the same time makes the same: the last rename wins.
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(descriptor)
    try:
        compile_sources(compiler, _sources(), (*_FLAGS, *LEVELS[level]), Path(temporary))
        Path(temporary).chmod(0o755)
        Path(temporary).replace(target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
    return target


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise NotBuilt(f"{command[0]} could not be started: {error}") from None
    if done.returncode:
        raise NotBuilt(f"{Path(command[0]).name} failed: {done.stderr.strip()[-500:]}")


def _sources() -> list[Path]:
    return sorted(SOURCES.glob("*.cpp"))


def find_compiler() -> str:
    """The path of a C++ compiler. Raises NotBuilt: there is none."""
    for name in _COMPILERS:
        if found := shutil.which(name):
            return found
    raise NotBuilt(f"no C++ compiler was found (looked for {', '.join(_COMPILERS)})")


def _identity(compiler: str) -> str:
    """Tells one version of a compiler from another without starting it."""
    file = Path(compiler).resolve()
    status = file.stat()
    return f"{file} {status.st_size} {status.st_mtime_ns}"


def _name(level: str, compiler: str) -> str:
    made_of = hashlib.sha256(repr((_FLAGS, _LINK_FLAGS, LEVELS[level], compiler)).encode())
    for source in sorted(SOURCES.iterdir()):
        made_of.update(source.name.encode() + b"\0" + source.read_bytes())
    return f"octavo-{level}-{made_of.hexdigest()[:16]}.so"


def _writable(folder: Path) -> Path:
    """`folder`, or a temporary one of this process's own where that cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return Path(tempfile.mkdtemp(prefix="octavo-kernels-"))


def main() -> None:
    """`python -m octavo.kernels.cpu.build`: compile for every level into the user's cache."""
    for level in LEVELS:
        print(library(level, lambda line: print(f"octavo: {line}", file=sys.stderr)))


if __name__ == "__main__":
    main()
