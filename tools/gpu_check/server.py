"""Block `server`: a daemon over random weights, asked over HTTP at growing rates."""

from __future__ import annotations

import importlib.util
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

from .models import SHAPES, folder_of
from .report import Missing, Options, Report

_NEEDED = ("fastapi", "uvicorn", "msgspec", "llguidance", "tokenizers", "httpx")
_RATES = (2.0, 8.0, 16.0, 32.0, 64.0)  # requests a second


def run(options: Options, report: Report) -> None:
    report.attempt("a rate sweep", lambda: _sweep(options, report))


def _sweep(options: Options, report: Report) -> None:
    lacking = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if lacking:
        raise Missing(f"the daemon needs {', '.join(lacking)}, not installed here")
    from octavo.loadtest.vocabulary import CHAT_TEMPLATE, tokenizer_config, tokenizer_json

    with tempfile.TemporaryDirectory() as parent:
        shape = "tiny" if options.small else "qwen3-0.6b"
        folder = folder_of(shape, Path(parent))
        numbers = SHAPES[shape]
        if options.small:
            numbers = {**numbers, "vocab_size": 512}
            (folder / "config.json").write_text(json.dumps(numbers), "utf-8")
        files = {
            "tokenizer.json": tokenizer_json(numbers["vocab_size"]),
            "tokenizer_config.json": tokenizer_config(numbers["max_position_embeddings"]),
        }
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content, ensure_ascii=False), "utf-8")
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, "utf-8")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        log = (Path(parent) / "log").open("w+")
        command = [
            sys.executable, "-m", "octavo.server.cli", "serve", str(folder), "--port", str(port),
            "--load-format", "dummy", "--device", options.device, "--served-model-name", "model",
            "--max-model-len", "256" if options.small else "4096",
            "--max-num-seqs", "8" if options.small else "256",
        ]  # fmt: skip
        daemon = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait_until_ready(daemon, port, log, options.seconds / 2)
            for rate in (2.0,) if options.small else _RATES:
                report.attempt(
                    f"{rate:g} requests/s",
                    partial(_rate, rate, port, Path(parent), options, report),
                )
        finally:
            daemon.terminate()
            daemon.wait(30)
            log.close()


def _wait_until_ready(daemon: subprocess.Popen[bytes], port: int, log, most: float) -> None:  # noqa: ANN001
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


def _rate(rate: float, port: int, folder: Path, options: Options, report: Report) -> None:
    """As many requests as come in ten seconds; what a client sees of them."""
    small = options.small
    out = folder / "rate.json"
    count = max(4, int(rate * (2 if small else 10)))
    command = [
        sys.executable, "-m", "octavo.server.cli", "bench", "serve",
        "--base-url", f"http://127.0.0.1:{port}", "--model", "model", "--rate", str(rate),
        "--requests", str(count), "--prompt-tokens", "20" if small else "500",
        "--output-tokens", "8" if small else "200", "--token-ids", "300..500", "--json", str(out),
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=options.seconds
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-500:] or done.stdout[-500:])
    total = json.loads(out.read_text("utf-8"))["total"]
    if total["errors"]:
        raise RuntimeError(f"{total['errors']} of {total['requests']}: {total['first_error']}")
    name = f"{rate:g} requests/s"
    report.figure(f"{name}: output", total["output_tokens_per_second"], "tokens/s")
    for latency in ("ttft", "tpot"):
        for share in ("p50", "p99"):
            value = total[latency][share] * 1e3
            report.figure(f"{name}: {latency.upper()} {share}", value, "ms")
