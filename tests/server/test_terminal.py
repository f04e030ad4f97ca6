"""The start as a person sees it, and the port taken first."""

from __future__ import annotations

import contextlib
import io
import socket
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from octavo.engine.errors import ConfigError
from octavo.engine.executor.base import Capacity
from octavo.server import terminal
from octavo.server.listener import listen, url_of
from octavo.server.models import ServedModel, find_model
from octavo.server.settings import Settings
from octavo.server.terminal import StartupProgress, banner

CAPACITY = Capacity(
    num_blocks=1000,
    block_size=16,
    num_host_blocks=0,
    max_model_len=2048,
    vocab_size=4096,
    eos_token_ids=(1,),
    recompute_seconds_per_token=0.0,
    swap_seconds_per_block=0.0,
    dtype="bfloat16",
    device="cpu",
    kv_bytes=3 * 2**20,
    weight_bytes=2**20,
    parameters=11_012_352,
)


class Stream(io.StringIO):
    """A stream that says whether it is a terminal, and when something was written to it."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal
        self.written = threading.Semaphore(0)

    def isatty(self) -> bool:
        return self._terminal

    def write(self, text: str) -> int:
        count = super().write(text)
        self.written.release()
        return count


def test_elsewhere_than_on_a_terminal_each_stage_is_a_plain_line() -> None:
    stream = Stream(terminal=False)
    with StartupProgress(stream) as progress:
        progress("reading weights", 0, 10)
        for done in range(1, 10):
            progress("reading weights", done, 10)
        progress("measuring", 0, 0)
    assert stream.getvalue() == "reading weights 0 %\nmeasuring\n"


def test_on_a_terminal_one_line_is_redrawn_and_wiped() -> None:
    stream = Stream(terminal=True)
    with StartupProgress(stream) as progress:
        progress("reading weights", 5, 10)
        progress("measuring", 0, 0)
    assert stream.getvalue() == "\r\x1b[Kreading weights 50 %\r\x1b[Kmeasuring\r\x1b[K"
    progress("too late", 0, 0)
    progress.close()
    assert "too late" not in stream.getvalue()


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_long_silent_stage_goes_on_telling(
    monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    monkeypatch.setattr(terminal, "SILENCE_SECONDS", 0.02)
    monkeypatch.setattr(terminal, "_REDRAW_SECONDS", 0.002)
    stream = Stream(terminal=is_terminal)
    with StartupProgress(stream) as progress:
        progress("thinking", 0, 0)
        for _ in range(4):  # nobody calls, and yet lines come
            assert stream.written.acquire(timeout=30)
    assert stream.getvalue().count("thinking") >= 4


def test_for_machines_every_line_of_the_start_is_a_record(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("INFO", "octavo")
    stream = Stream(terminal=True)
    with StartupProgress(stream, log_format="json") as progress:
        progress("reading weights", 5, 10)
        progress.ready("octavo is ready")
    assert caplog.messages == ["reading weights 50 %", "octavo is ready"]
    assert stream.getvalue() == capsys.readouterr().out == ""


def test_a_full_disk_does_not_keep_it_from_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr("sys.stdout", full)
        with StartupProgress(full) as progress:
            progress("measuring", 0, 0)
            progress.ready("octavo is ready")
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.close()  # what could not be written is still in its buffer


def test_the_banner_says_what_fits_and_what_to_type() -> None:
    settings = Settings(served_model_name=("octavo", "small"))
    model = ServedModel.load(find_model(settings, lambda *_: None), settings)
    text = banner(model, CAPACITY, "http://127.0.0.1:8000", 1.234)
    for words in (
        "ready after 1.2 s",
        "octavo  (LlamaForCausalLM, 11 M parameters)",
        "small",
        "bfloat16 on cpu",
        "2048 tokens",
        "1000 blocks of 16 tokens, 3.0 MiB: 7 requests of full length",
        "http://127.0.0.1:8000/v1",
        "curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' \\",
    ):
        assert words in text
    assert max(map(len, text.splitlines())) <= 100
    assert "7 B parameters" in banner(model, replace(CAPACITY, parameters=7 * 10**9), "u", 1)


def test_a_port_in_use_is_found_out_at_once() -> None:
    with listen("127.0.0.1", 0, unread_seconds=60) as listener:
        port = listener.getsockname()[1]
        assert url_of(listener) == f"http://127.0.0.1:{port}"
        with pytest.raises(ConfigError, match=f"Port {port} on 127.0.0.1 is in use"):
            listen("127.0.0.1", port, unread_seconds=60)
        socket.create_connection(("127.0.0.1", port), timeout=5).close()  # it waits, not refused


def test_addresses_that_are_not_ours_are_refused_in_a_sentence() -> None:
    with pytest.raises(ConfigError, match=r"not an address of this machine"):
        listen("192.0.2.1", 0, unread_seconds=60)  # RFC 5737: for documentation only
    with pytest.raises(ConfigError, match="cannot be resolved"):
        listen("no such host", 0, unread_seconds=60)


def test_any_address_is_shown_as_this_machine() -> None:
    with listen("0.0.0.0", 0, unread_seconds=60) as listener:
        assert url_of(listener).startswith("http://127.0.0.1:")
