"""Compiling the C++ kernels: once, by whoever is first, and never in silence when it fails."""

from __future__ import annotations

import logging
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from octavo.kernels import registry
from octavo.kernels.cpu import build, library, offer

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="there is no C++ compiler"
)


@pytest.fixture
def one_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source folder with a single function, and an empty cache."""
    sources = tmp_path / "csrc"
    sources.mkdir()
    (sources / "one.cpp").write_text('extern "C" void octavo_one(int* x) { *x = 1; }')
    monkeypatch.setattr(build, "SOURCES", sources)
    monkeypatch.setattr(build, "BUILT", tmp_path / "built")
    monkeypatch.setattr(build, "CACHE", tmp_path / "cache")
    return sources


def test_a_library_is_compiled_once(one_source: Path) -> None:
    said: list[str] = []
    first = build.library("avx2", said.append)
    assert said and "avx2" in said[0]
    assert build.library("avx2", said.append) == first
    assert len(said) == 2  # begun and done, and nothing the second time
    assert [file for file in first.parent.iterdir() if file != first] == []


def test_other_sources_make_another_library(one_source: Path) -> None:
    first = build.library("avx2")
    (one_source / "one.cpp").write_text('extern "C" void octavo_one(int* x) { *x = 2; }')
    assert build.library("avx2") != first


def test_several_may_compile_at_the_same_time(one_source: Path) -> None:
    with ThreadPoolExecutor(4) as several:
        made = set(several.map(build.library, ["avx2"] * 4))
    (path,) = made
    library.Library(path).function("one", library.POINTER)


def test_a_cache_that_cannot_be_written_is_done_without(
    one_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(build, "CACHE", tmp_path / "file" / "cache")
    path = build.library("avx2")
    assert path.exists()
    shutil.rmtree(path.parent)


def test_what_was_built_ahead_needs_no_compiler(
    one_source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = build.build_all(build.BUILT)
    assert len(built) == len(build.LEVELS)
    monkeypatch.setattr(build, "_COMPILERS", ())
    assert [build.library(level) for level in build.LEVELS] == built


@pytest.mark.parametrize("broken", ["no compiler", "sources"])
def test_without_a_library_the_reference_stands_in_and_one_line_says_so(
    broken: str,
    one_source: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if broken == "no compiler":
        monkeypatch.setattr(build, "_COMPILERS", ("no-such-compiler",))
    else:
        (one_source / "one.cpp").write_text("this is not C++")
    level = next(iter(library.levels()), None)
    if level is None:
        pytest.skip("this CPU has none of the levels")
    with caplog.at_level(logging.WARNING):
        assert offer.offer(level) == {}
    (line,) = caplog.messages
    assert "slower ones in torch stand in" in line
    assert ("no C++ compiler" if broken == "no compiler" else "failed") in line


def test_a_level_may_be_forced() -> None:
    device = torch.device("cpu")
    for level in library.levels():
        providers = registry.providers_with(level)
        assert providers["cpu"][0] == f"cpu.{level}"
        assert registry.explain(device, providers)["silu_mul"] == f"cpu.{level}"
    assert not any("cpu." in name for name in registry.providers_with("reference")["cpu"])
    with pytest.raises(NotImplementedError, match=r"'avx1024', only for reference"):
        registry.providers_with("avx1024")
