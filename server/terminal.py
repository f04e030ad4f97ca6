"""What a person at a terminal sees of the daemon's start: stages, and at the end a banner."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from octavo.engine.executor.base import Capacity

    from .models import ServedModel

log = logging.getLogger(__name__)
SILENCE_SECONDS = 2.0
_REDRAW_SECONDS = 0.1
_CLEAR_LINE = "\r\x1b[K"


class StartupProgress:
    """Says what is being done, with no silence over two seconds, from any thread.

    On a terminal one line is drawn over and over; elsewhere each stage is a line, and a stage
    that takes long gets more of them. Call it as progress(stage, done, total), total 0 for unknown.
    Where lines are for machines (`log_format` "json"), each one is a record of the log.
    """

    def __init__(self, stream: TextIO | None = None, *, log_format: str = "text") -> None:
        self._stream = stream or sys.stderr
        self._logged = log_format == "json"
        self._live = self._stream.isatty() and not self._logged
        self._stage = ""
        self._done = self._total = 0
        self._began = self._written = time.monotonic()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._pulse = threading.Thread(target=self._keep_telling, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._pulse.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, stage: str, done: int, total: int) -> None:
        with self._lock:
            if self._closed.is_set():
                return
            new_stage = stage != self._stage
            if new_stage:
                self._began = time.monotonic()
            self._stage, self._done, self._total = stage, done, total
            if new_stage or self._due(_REDRAW_SECONDS if self._live else SILENCE_SECONDS):
                self._write()

    def close(self) -> None:
        """No more of it; the line on a terminal is wiped. Idempotent."""
        with self._lock:
            if not self._closed.is_set() and self._live and self._stage:
                _put(self._stream, _CLEAR_LINE)
            self._closed.set()

    def ready(self, banner: str) -> None:
        """The last word: no more of it, and the banner on standard output."""
        self.close()
        if self._logged:
            log.info("%s", banner)
            return
        _put(sys.stdout, banner + "\n")

    def _keep_telling(self) -> None:
        every = _REDRAW_SECONDS * 5 if self._live else SILENCE_SECONDS / 4
        while not self._closed.wait(every):
            with self._lock:
                if self._stage and self._due(every if self._live else SILENCE_SECONDS * 0.75):
                    self._write()

    def _due(self, seconds: float) -> bool:
        return time.monotonic() - self._written >= seconds

    def _write(self) -> None:
        self._written = time.monotonic()
        words = [self._stage]
        if self._total:
            words.append(f"{100 * self._done // self._total} %")
        if (elapsed := self._written - self._began) >= 1:
            words.append(f"({elapsed:.0f} s)")
        line = " ".join(words)
        if self._logged:
            log.info("%s", line)
            return
        _put(self._stream, f"{_CLEAR_LINE}{line}" if self._live else f"{line}\n")


def _put(stream: TextIO, text: str) -> None:
    """A full disk, or a reader that has left, keeps no daemon from starting."""
    with contextlib.suppress(OSError):
        stream.write(text)
        stream.flush()


def banner(model: ServedModel, capacity: Capacity, url: str, seconds: float) -> str:
    """What is served, how much of it fits, and what to type next."""
    tokens = capacity.num_blocks * capacity.block_size
    full = tokens // capacity.max_model_len
    size = f"{capacity.parameters / 1e6:.3g} M parameters"
    if capacity.parameters >= 1e9:
        size = f"{capacity.parameters / 1e9:.3g} B parameters"
    rows = [
        ("model", f"{model.name}  ({model.config.architecture}, {size})"),
        ("computed", f"{capacity.dtype} on {capacity.device}"),
        ("context", f"{capacity.max_model_len} tokens"),
        (
            "KV cache",
            f"{capacity.num_blocks} blocks of {capacity.block_size} tokens, "
            f"{capacity.kv_bytes / 2**20:.1f} MiB: {full} requests of full length",
        ),
        ("API", f"{url}/v1"),
        ("health", f"{url}/health   metrics: {url}/metrics"),
    ]
    if model.name != model.names[-1]:
        rows.insert(1, ("also as", ", ".join(model.names[1:])))
    width = max(len(name) for name, _ in rows)
    lines = [f"octavo is ready after {seconds:.1f} s", ""]
    lines += [f"  {name:<{width}}  {text}" for name, text in rows]
    body = '{"prompt":"Once upon a time","max_tokens":64,"stream":true}'
    lines += [
        "",
        f"  curl {url}/v1/completions -H 'Content-Type: application/json' \\",
        f"    -d '{body}'",
        "",
    ]
    return "\n".join(lines)
