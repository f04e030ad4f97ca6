"""House rules that a reader of one file cannot see: what may be written where."""

from __future__ import annotations

import ast
import importlib.util
import re

import pytest

from .source import FOLDERS, modules

MODULES = modules()
SOURCES = {module.name: module.path.read_text("utf-8") for module in MODULES}


def places(pattern: str) -> set[str]:
    expression = re.compile(pattern)
    return {name for name, text in SOURCES.items() if expression.search(text)}


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_is_importable_only_below_octavo(folder: str) -> None:
    assert importlib.util.find_spec(f"octavo.{folder}") is not None
    assert importlib.util.find_spec(folder) is None


def test_the_environment_is_read_only_by_the_settings() -> None:
    # `os.environ.setdefault` is how a library that is imported later is told something.
    readers = places(r"os\.environ(?!\.setdefault\()|os\.getenv|\bgetenv\(")
    assert all(name.startswith("octavo.server.settings") for name in readers), readers


def test_nothing_is_unpickled_or_evaluated() -> None:
    found = places(r"torch\.load\(|(?<![\w.])eval\(|(?<![\w.])exec\(|\bpickle\b.*\bloads?\b")
    assert not found


def test_the_word_cuda_appears_only_where_devices_are_told_apart() -> None:
    homes = (
        "octavo.kernels",
        "octavo.engine.device",
        "octavo.engine.worker.graphs",
        "octavo.server.settings.declared",  # operators type it
    )
    found = {name for name in places(r"(?i)cuda") if not name.startswith(homes)}
    assert not found


def test_no_phase_is_named() -> None:
    assert not places(r"is_prefill|is_decode")


def test_no_module_keeps_mutable_state_or_hands_it_out() -> None:
    for module in MODULES:
        for node in ast.walk(module.tree):
            assert not isinstance(node, ast.Global), f"{module.name} uses `global`"
    assert not places(r"def get_\w*context\(")


def test_no_file_has_a_name_that_says_nothing() -> None:
    vague = {"utils", "util", "helpers", "common", "misc", "base_utils"}
    assert not {name for name in SOURCES if name.rpartition(".")[2] in vague}


def test_every_module_states_its_promise() -> None:
    silent = [module.name for module in MODULES if not ast.get_docstring(module.tree)]
    assert not silent
