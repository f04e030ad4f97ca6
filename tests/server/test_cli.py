"""The command line: one readable sentence and an exit status, never a traceback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from octavo.server.cli import main
from octavo.version import __version__


def octavo(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "octavo.server.cli", *words],
        env={**os.environ, "HF_HUB_OFFLINE": "1", **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == main(["--version"]) == 0
    assert capsys.readouterr().out == f"octavo {__version__}\n" * 2
    assert main([]) == main(["--help"]) == 0
    assert "octavo COMMAND" in capsys.readouterr().out
    assert main(["serve", "--port", "1", "--help"]) == 0
    assert "--max-model-len TOKENS|auto" in capsys.readouterr().out


def test_config_show_prints_values_and_origins(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "--port", "81", "--enforce-eager"]) == 0
    printed = capsys.readouterr()
    (row,) = (line for line in printed.out.splitlines() if line.startswith("port"))
    assert row.split() == ["port", "81", "--port"]
    assert "--enforce-eager has no effect" in printed.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["sevre"], "There is no command sevre; did you mean serve?"),
        (["serve", "--prot", "1"], "There is no flag --prot; did you mean --port?"),
        (["serve", "/no/such/model", "--port", "0"], "There is no folder /no/such/model"),
        (["serve", "no-org/no-model", "--port", "0"], "not in the local cache"),
        (["serve", "--chat-template", "/no/such", "--port", "0"], "The chat template '/no/such'"),
        (["config", "hide"], "usage: octavo config show"),
        (["complete", "x", "--url", "http://127.0.0.1:1"], "start one with `octavo serve`."),
        (["complete", "x", "--url", "nowhere"], "nowhere: "),
    ],
)
def test_what_cannot_be_done_is_one_sentence(words: list[str], sentence: str) -> None:
    done = octavo(*words)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("octavo: ")
    assert sentence in last
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_said_before_anything_is_read() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = octavo("serve", "/no/such/model", "--port", str(port))
    assert done.returncode == 1
    assert done.stderr == (
        f"octavo: Port {port} on 127.0.0.1 is in use; stop what uses it, "
        f"or choose another --port.\n"
    )


def test_a_reader_that_leaves_early_is_no_error_to_shout_about() -> None:
    command = f"{sys.executable} -m octavo.server.cli config show | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("module", ["typer", "rich", "fastapi", "huggingface_hub", "yaml", "httpx"])
def test_the_way_to_the_engines_start_imports_nothing_slow(module: str) -> None:
    """What `serve` imports before it starts the engine process."""
    rooms = "engine.assembly engine.async_engine server.cli server.listener server.models"
    rooms += " server.observe.log server.settings server.terminal"
    imports = ", ".join(f"octavo.{room}" for room in rooms.split())
    code = f"import sys, {imports}; sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
