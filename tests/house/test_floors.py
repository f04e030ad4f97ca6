"""The floors of ARCHITECTURE.md: who may import whom. Two wings, no circles."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from .source import Import, Module, imports, modules

WORDS = ("sequence", "step", "params", "config", "registry", "checkpoint", "errors", "lifeline")
JOINT = (
    "heartbeat",
    "watch",
    "quarantine",
    "channel",
    "core",
    "supervisor",
    "live_request",
    "request_table",
    "incarnation",
    "async_engine",
)
# The compute wing from top to bottom: a room may import itself and what comes after it.
COMPUTE = (
    ("executor",),
    ("worker",),
    ("speculative",),
    ("weights",),
    ("models",),
    ("layers",),
    ("attention", "sampling", "quantization"),
    ("batch",),
    ("kv_cache",),
    ("swap",),
    ("transfer",),
    ("parallel", "device"),
)
SERVER_TOP = (
    "app",
    "cli",
    "offline",
    "bench_offline",
    "terminal",
    "chat_client",
    "listener",
    "keys",
    "standard_streams",
)
SERVER_HTTP = (
    "openai",
    "admin",
    "middleware",
    "protocol",
    "cycle",
    "refusal",
    "http_server",
    "acceptor",
)
SERVER_TEXT = (
    "generation",
    "admission",
    "bodies",
    "threads",
    "models",
    "text",
    "observe",
    "settings",
)

MODULES = modules()
KNOWN = frozenset(module.name for module in MODULES)


def room(name: str) -> tuple[str, str]:
    """('engine', 'scheduler') for octavo.engine.scheduler.policy."""
    parts = [*name.split("."), "", ""]
    return parts[1], parts[2]


def allowed(importer: str, target: str) -> bool:
    """Whether one module of ours may import another."""
    (wing, here), (other, there) = room(importer), room(target)
    if wing == other and here == there:
        return True
    if wing in ("kernels", "loadtest"):
        return wing == other
    if wing == "engine":
        return _engine_may(importer, here, target, other, there)
    return _server_may(here, target, other, there)


def _engine_may(importer: str, here: str, target: str, other: str, there: str) -> bool:
    if other == "kernels":
        rooms = {room for rooms in COMPUTE for room in rooms}
        return here in rooms and there in ("ops", "registry", "memory", "")
    if other != "engine":
        return False
    if here in WORDS:
        return there in WORDS
    if there in WORDS or there == "":
        return True
    if here == "assembly":
        return True  # the only file that names concrete classes; it does so when called
    if target == "octavo.engine.executor.base":
        return (
            here in JOINT
            or importer.startswith("octavo.engine.executor.")
            or here
            in (
                "scheduler",
                "cache",
                "worker",
            )
        )
    if here in JOINT:
        return there in (*JOINT, "scheduler")
    if here == "faults":  # wraps what it makes go wrong
        return there in ("channel", "worker")
    if here == "scheduler":
        return there == "cache"
    floors = {r: level for level, rooms in enumerate(COMPUTE) for r in rooms}
    if here in floors and there in floors:
        return floors[there] > floors[here]
    return False


def _server_may(here: str, target: str, other: str, there: str) -> bool:
    words = ("params", "step", "errors", "config", "registry", "checkpoint", "lifeline")
    if other == "version":
        return True
    if other == "server":
        below = {
            **dict.fromkeys(SERVER_TOP, (*SERVER_TOP, *SERVER_HTTP, *SERVER_TEXT)),
            **dict.fromkeys(SERVER_HTTP, (*SERVER_HTTP, *SERVER_TEXT)),
            "generation": ("models", "text", "observe", "settings", "admission"),
            "admission": (),
            "bodies": (),
            "threads": (),
            "models": ("text", "observe", "settings", "hub"),
            "text": (),
            "observe": (),
            "settings": (),
        }
        return there == "" or there in below.get(here, ())
    if other == "engine":
        if here in SERVER_TOP:
            return there in (*words, "assembly", "async_engine", "executor", "bundled", "")
        if here in SERVER_HTTP:
            return there in (*words, "async_engine")
        if target == "octavo.engine.faults.fault":
            return here == "settings"  # its syntax is checked there
        return there in (*words, "async_engine", "assembly", "executor", "bundled")
    return other == "loadtest" and here in SERVER_TOP


def edges() -> Iterator[tuple[Module, Import]]:
    for module in MODULES:
        for imported in imports(module, KNOWN):
            yield module, imported


def test_every_import_of_ours_stays_on_its_floors() -> None:
    broken = [
        f"{module.name}:{imported.line} imports {imported.target}"
        for module, imported in edges()
        if imported.target.startswith("octavo.") and not allowed(module.name, imported.target)
    ]
    assert not broken, "\n".join(broken)


def test_inside_a_folder_imports_are_relative_and_across_folders_absolute() -> None:
    broken = []
    for module, imported in edges():
        if not imported.target.startswith("octavo."):
            continue
        same_folder = room(module.name)[0] == room(imported.target)[0]
        if same_folder != imported.relative and imported.target != "octavo.version":
            broken.append(f"{module.name}:{imported.line} {imported.target}")
    assert not broken, "\n".join(broken)


def test_modules_import_each_other_without_circles() -> None:
    graph: dict[str, set[str]] = {name: set() for name in KNOWN}
    for module, imported in edges():
        if imported.target in KNOWN and not imported.deferred and imported.target != module.name:
            graph[module.name].add(imported.target)
    state: dict[str, str] = {}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        state[name] = "open"
        for target in graph[name]:
            assert state.get(target) != "open", " -> ".join((*trail, name, target))
            if target not in state:
                visit(target, (*trail, name))
        state[name] = "closed"

    for name in graph:
        if name not in state:
            visit(name, ())


LIBRARIES = {
    # library: the only rooms that may import it
    "torch": ("kernels", *(f"engine.{r}" for rooms in COMPUTE for r in rooms)),
    "numpy": ("kernels", *(f"engine.{r}" for rooms in COMPUTE for r in rooms), "loadtest"),
    "triton": ("kernels",),
    "llguidance": ("engine.sampling", "server.text.grammar_helper"),
    "msgspec": ("engine.channel", "server"),
    "fastapi": ("server",),
    "starlette": ("server",),
    "uvicorn": ("server",),
    "transformers": ("engine.models", "server.text"),
    "pickle": (),
    "marshal": (),
    "shelve": (),
    "multiprocessing": (),
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_is_imported_only_where_it_belongs(library: str) -> None:
    homes = LIBRARIES[library]
    broken = [
        f"{module.name}:{imported.line}"
        for module, imported in edges()
        if imported.target.split(".")[0] == library
        and not any(f"{module.name}.".startswith(f"octavo.{home}.") for home in homes)
    ]
    assert not broken, f"{library} is imported by {broken}"


def test_executor_base_knows_no_tensors() -> None:
    (base,) = (m for m in MODULES if m.name == "octavo.engine.executor.base")
    assert {i.target.split(".")[0] for i in imports(base, KNOWN)}.isdisjoint({"torch", "numpy"})


@pytest.mark.parametrize(
    "name",
    [
        "octavo",
        "octavo.engine.assembly",
        "octavo.engine.async_engine",
        "octavo.engine.core",
        "octavo.engine.scheduler.scheduler",
        "octavo.server.app",
        "octavo.server.cli",
    ],
)
def test_importing_it_imports_no_torch(name: str) -> None:
    code = f"import sys, {name}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
