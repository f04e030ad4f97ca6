"""SECURITY.md names tests for what it promises: each of them exists."""

from __future__ import annotations

import ast
import re

from octavo.server.middleware import PROBES

from .source import ROOT

TEXT = (ROOT / "SECURITY.md").read_text("utf-8")
_NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def test_every_test_that_is_named_exists() -> None:
    named = _NAMED.findall(TEXT)
    assert len(named) > 30
    missing = [f"{file}::{name}" for file, name in named if name not in _functions_of(file)]
    assert not missing, "\n".join(missing)


def _functions_of(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    functions = ast.FunctionDef | ast.AsyncFunctionDef
    return {node.name for node in ast.walk(tree) if isinstance(node, functions)}


def test_every_class_of_advisories_has_a_test() -> None:
    rows = [line for line in TEXT.splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 25
    without = [row.split("|")[1] for row in rows if not _NAMED.search(row.split("|")[3])]
    assert not without


def test_what_is_open_without_a_key_is_listed() -> None:
    (paragraph,) = [part for part in TEXT.split("\n\n") if part.startswith("Open without a key")]
    told = set(re.findall(r"`(/\w+)`", paragraph.partition("Everything else")[0]))
    assert told == PROBES
