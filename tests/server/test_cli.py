"""The command line: one readable sentence and an exit status, never a traceback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

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
    assert main(["config", "show", "--port", "81", "--enable-chunked-prefill"]) == 0
    printed = capsys.readouterr()
    (row,) = (line for line in printed.out.splitlines() if line.startswith("port"))
    assert row.split() == ["port", "81", "--port"]
    assert "--enable-chunked-prefill has no effect" in printed.err


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


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_the_last_sentence_is_for_whom_the_log_is(log_format: str) -> None:
    done = octavo("serve", "/no/such/model", "--port", "0", "--log-format", log_format)
    assert done.returncode == 1
    if log_format == "text":
        assert done.stderr.splitlines()[-1].startswith("octavo: There is no folder /no/such/model")
        return
    records = [json.loads(line) for line in done.stderr.splitlines()]
    assert records[-1]["level"] == "error"
    assert records[-1]["message"].startswith("There is no folder /no/such/model")


def test_a_checkpoint_cannot_steer_the_terminal_that_a_complaint_is_printed_on(
    tmp_path: Path,
) -> None:
    forged = "\x1b[2J\u202e\u2028octavo: all is well\r"
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [forged]}))
    done = octavo("serve", str(tmp_path), "--port", "0")
    assert done.returncode == 1
    assert "\x1b" not in done.stderr
    assert "\u202e" not in done.stderr
    assert "all is well" in done.stderr.splitlines()[-1]
    assert not done.stderr.splitlines()[-1].startswith("octavo: all is well")


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_closed_standard_streams_are_nobodys_trouble(closed: str) -> None:
    """Nothing that is opened later gets the number of one, and the exit status is the true one."""
    script = "import socket, sys\nfrom octavo.server.cli import main\n"
    script += "status = main(['version'])\n"
    script += "sys.exit(status or socket.socket().fileno() < 3)"
    shell = f'exec "$0" -c "$1" {closed}'
    done = subprocess.run(["sh", "-c", shell, sys.executable, script], check=False, timeout=60)
    assert done.returncode == 0


def test_a_full_disk_behind_standard_output_is_an_error_without_a_traceback() -> None:
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-m", "octavo.server.cli", "version"],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
            timeout=60,
        )
    assert b"Traceback" not in done.stderr
    assert done.returncode in (0, 1)
