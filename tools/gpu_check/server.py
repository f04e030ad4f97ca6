"""Block `server`: a daemon over random weights, asked over HTTP at growing rates."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from .absent import is_installed
from .models import SHAPES, Offline, folder_of, prompts
from .report import Missing, Options, Report

_NEEDED = ("fastapi", "uvicorn", "msgspec", "llguidance", "tokenizers", "httpx")
_RATES = (2.0, 8.0, 16.0, 32.0, 64.0)  # requests a second


def run(options: Options, report: Report) -> None:
    with tempfile.TemporaryDirectory() as parent:
        served = _Served(Path(parent), options, report)
        report.attempt("a rate sweep", served.sweep)
        report.attempt("server against offline", served.beside_offline)


class _Served:
    """A daemon over random weights, and the same engine without one."""

    def __init__(self, parent: Path, options: Options, report: Report) -> None:
        self._parent, self._options, self._report = parent, options, report
        self._shape = "tiny" if options.small else "qwen3-0.6b"
        self._folder = folder_of(self._shape, parent)
        self._all_at_once: dict[str, Any] | None = None

    def sweep(self) -> None:
        options, report = self._options, self._report
        lacking = [name for name in _NEEDED if not is_installed(name)]
        if lacking:
            raise Missing(f"the daemon needs {', '.join(lacking)}, not installed here")
        self._write_tokenizer()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        log = (self._parent / "log").open("w+")
        command = [
            sys.executable, "-m", "octavo.server.cli", "serve", str(self._folder),
            "--port", str(port), "--load-format", "dummy", "--device", options.device,
            "--served-model-name", "model",
            "--max-model-len", "256" if options.small else "4096",
            "--max-num-seqs", "8" if options.small else "256",
        ]  # fmt: skip
        daemon = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait_until_ready(daemon, port, log, options.seconds / 2)
            report.attempt("all at once, over HTTP", partial(self._crowd, port))
            for rate in (2.0,) if options.small else _RATES:
                report.attempt(f"{rate:g} requests/s", partial(self._rate, rate, port))
        finally:
            daemon.terminate()
            daemon.wait(30)
            log.close()

    def beside_offline(self) -> None:
        """The crowd's load, given to an engine without a front end."""
        if self._all_at_once is None:
            raise Missing("the server's own figure is not there")
        options = self._options
        options.need(40)
        requests, prompt, output = _crowd_of(options.small)
        engine = Offline(
            self._folder,
            device=options.device,
            max_num_seqs=8 if options.small else 256,
            max_model_len=256 if options.small else 4096,
        )
        try:
            engine.record_graphs()
            vocab = 300
            for warm, count in (("w", 4), ("r", requests)):
                given = prompts(count, prompt, prompt, vocab=vocab, seed=count)
                for number, ids in enumerate(given):
                    engine.add(f"{warm}{number}", ids, max_tokens=output, temperature=0.0)
                took = engine.run()
        finally:
            engine.close()
        offline = requests * output / took
        served = self._all_at_once["output_tokens_per_second"]
        self._report.figure("all at once, offline", offline, "tokens/s")
        self._report.figure("server against offline", served / offline, "x")

    def _write_tokenizer(self) -> None:
        from octavo.loadtest.vocabulary import CHAT_TEMPLATE, tokenizer_config, tokenizer_json

        numbers = SHAPES[self._shape]
        if self._options.small:
            numbers = {**numbers, "vocab_size": 512}
            (self._folder / "config.json").write_text(json.dumps(numbers), "utf-8")
        files = {
            "tokenizer.json": tokenizer_json(numbers["vocab_size"]),
            "tokenizer_config.json": tokenizer_config(numbers["max_position_embeddings"]),
        }
        for name, content in files.items():
            (self._folder / name).write_text(json.dumps(content, ensure_ascii=False), "utf-8")
        (self._folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, "utf-8")

    def _crowd(self, port: int) -> None:
        requests, prompt, output = _crowd_of(self._options.small)
        total = self._loaded(
            port, "--concurrency", requests, "--requests", requests,
            "--prompt-tokens", prompt, "--output-tokens", output,
        )  # fmt: skip
        self._all_at_once = total
        rate = total["output_tokens_per_second"]
        self._report.figure("all at once, over HTTP", rate, "tokens/s")

    def _rate(self, rate: float, port: int) -> None:
        """As many requests as come in ten seconds; what a client sees of them."""
        small = self._options.small
        if not small:
            self._options.need(30)
        total = self._loaded(
            port, "--rate", rate, "--requests", max(4, int(rate * (2 if small else 10))),
            "--prompt-tokens", 20 if small else 500, "--output-tokens", 8 if small else 200,
        )  # fmt: skip
        name = f"{rate:g} requests/s"
        self._report.figure(f"{name}: output", total["output_tokens_per_second"], "tokens/s")
        for latency in ("ttft", "tpot"):
            for share in ("p50", "p99"):
                value = total[latency][share] * 1e3
                self._report.figure(f"{name}: {latency.upper()} {share}", value, "ms")

    def _loaded(self, port: int, *words: object) -> dict[str, Any]:
        """What `octavo bench serve` says of a load in all."""
        out = self._parent / "load.json"
        command = [
            sys.executable, "-m", "octavo.server.cli", "bench", "serve",
            "--base-url", f"http://127.0.0.1:{port}", "--model", "model", *map(str, words),
            "--token-ids", "300..500", "--json", str(out),
        ]  # fmt: skip
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=self._options.seconds
        )
        if done.returncode != 0:
            raise RuntimeError(done.stderr[-500:] or done.stdout[-500:])
        total: dict[str, Any] = json.loads(out.read_text("utf-8"))["total"]
        if total["errors"]:
            raise RuntimeError(f"{total['errors']} of {total['requests']}: {total['first_error']}")
        return total


def _crowd_of(small: bool) -> tuple[int, int, int]:
    """Requests, and tokens of a prompt and of an answer."""
    return (4, 20, 8) if small else (256, 500, 400)


def _wait_until_ready(daemon: subprocess.Popen[bytes], port: int, log: TextIO, most: float) -> None:
    began = time.monotonic()
    while time.monotonic() - began < most:
        if daemon.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    log.seek(0)
    raise RuntimeError(f"the daemon did not get ready: {log.read()[-1000:]}")
