"""The built wheel holds every package and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from octavo.kernels.cpu.build import LEVELS, find_compiler

from .source import FOLDERS, ROOT

DATA = (".json", ".toml", ".safetensors", ".md", ".jinja", ".cpp", ".cu", ".h")


def tracked_files() -> list[Path]:
    """What git knows or would add: the tree as a fresh clone has it."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [Path(line) for line in listed.splitlines()]


def build_wheel(folder: Path, programs: str) -> Path:
    """The wheel of the tree as it stands, built in `folder` so that no old build leaks in.

    `programs`: the folders to look for them in, a C++ compiler among them."""
    tree = folder / "tree"
    for path in tracked_files():
        if not (ROOT / path).is_symlink() and not (ROOT / path).is_file():
            continue  # deleted, not yet committed
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, tree / path, follow_symlinks=False)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)],
        cwd=tree,
        check=True,
        capture_output=True,
        env={**os.environ, "PATH": programs},
    )
    (wheel,) = folder.glob("octavo-*.whl")
    return wheel


def test_the_wheel_holds_every_package_and_nothing_else(tmp_path: Path) -> None:
    """Without a compiler: then it fits every machine."""
    wheel = build_wheel(tmp_path, programs=str(tmp_path))
    assert wheel.name.endswith("-py3-none-any.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    held = {name for name in names if ".dist-info/" not in name}

    sources = [p for p in tracked_files() if p.parts[0] in FOLDERS and (ROOT / p).is_file()]
    expected = {f"octavo/{path}" for path in sources if path.suffix == ".py"}
    expected |= {f"octavo/{path.name}" for path in (ROOT / "src/octavo").glob("*.py")}
    expected.add("octavo/py.typed")

    python = {name for name in held if name.endswith((".py", ".typed"))}
    assert python == expected
    strangers = {name for name in held - python if not name.endswith(DATA)}
    assert not strangers
    bundled = [p for p in sources if p.parts[:2] == ("engine", "bundled") and p.suffix != ".py"]
    assert {f"octavo/{p}" for p in bundled} <= held
    kernels = [p for p in sources if p.suffix in (".cpp", ".cu", ".h")]
    assert kernels and {f"octavo/{p}" for p in kernels} <= held


@pytest.mark.slow
def test_with_a_compiler_it_carries_kernels_for_every_level_and_is_for_one_platform(
    tmp_path: Path,
) -> None:
    wheel = build_wheel(tmp_path, programs=str(Path(find_compiler()).parent) + ":/usr/bin:/bin")
    assert "-py3-none-linux_" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    for level in LEVELS:
        assert (
            len([n for n in names if n.startswith(f"octavo/kernels/cpu/built/octavo-{level}-")])
            == 1
        )
