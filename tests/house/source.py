"""Reading our own source: which module imports what, without importing anything."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("server", "engine", "kernels", "loadtest")


@dataclass(frozen=True, slots=True)
class Import:
    """One import statement's target. `deferred`: inside a function, or for the type checker."""

    target: str  # dotted, absolute: octavo.engine.step or torch.nn
    line: int
    relative: bool
    deferred: bool


@dataclass(frozen=True, slots=True)
class Module:
    name: str  # octavo.engine.step
    path: Path
    tree: ast.Module

    @property
    def package(self) -> str:
        is_package = self.path.name == "__init__.py"
        return self.name if is_package else self.name.rpartition(".")[0]


def modules() -> list[Module]:
    """Every module of the four folders."""
    found = []
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if parts[-1] == "__init__":
                parts = parts[:-1]
            found.append(
                Module(".".join(("octavo", *parts)), path, ast.parse(path.read_text("utf-8")))
            )
    return found


def imports(module: Module, known: frozenset[str]) -> Iterator[Import]:
    """All imports of a module; `from x import y` counts as x.y where that is a module of ours."""
    deferred_nodes = set(_deferred(module.tree))
    for node in ast.walk(module.tree):
        deferred = node in deferred_nodes
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, False, deferred)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(module, node)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                target = inner if inner in known else base
                yield Import(target, node.lineno, node.level > 0, deferred)


def _absolute(module: Module, node: ast.ImportFrom) -> str:
    if node.level == 0:
        return node.module or ""
    parts = module.package.split(".")
    parts = parts[: len(parts) - (node.level - 1)]
    return ".".join([*parts, node.module] if node.module else parts)


def _deferred(tree: ast.Module) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        inside_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for_checker = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if inside_function or for_checker:
            yield from ast.walk(node)
