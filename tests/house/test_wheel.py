"""The built wheel holds every package and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from .source import FOLDERS, ROOT

DATA = (".json", ".toml", ".safetensors", ".md", ".jinja", ".cpp", ".h")


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


def build_wheel(folder: Path) -> Path:
    """The wheel of the tree as it stands, built in `folder` so that no old build leaks in."""
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
    )
    (wheel,) = folder.glob("octavo-*.whl")
    return wheel


def test_the_wheel_holds_every_package_and_nothing_else(tmp_path: Path) -> None:
    names = set(zipfile.ZipFile(build_wheel(tmp_path)).namelist())
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
