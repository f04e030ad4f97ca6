"""`octavo bench start`: how long a server takes from its command to its first token, side by side
with `python -c "import torch"`, the part of it that no server on torch can save."""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from .client import Client

_LIMIT_SECONDS = 120.0


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="octavo bench start", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, too")
    parser.add_argument("serve", nargs="*", help="arguments of octavo serve, after --")
    chosen = parser.parse_args(words)
    imports: list[float] = []
    readies: list[float] = []
    tokens: list[float] = []
    for number in range(chosen.rounds + 1):
        imported = _import_torch()
        ready, token = asyncio.run(_first_token(chosen.serve))
        if number:  # the first round only fills the page cache
            imports.append(imported)
            readies.append(ready)
            tokens.append(token)
    figures = {
        "import torch, s": statistics.median(imports),
        "ready, s": statistics.median(readies),
        "first token, s": statistics.median(tokens),
        "first token over import torch": statistics.median(tokens) / statistics.median(imports),
    }
    for name, figure in figures.items():
        sys.stdout.write(f"{name:<32} {figure:.2f}\n")
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def _import_torch() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.perf_counter() - began


async def _first_token(arguments: Sequence[str]) -> tuple[float, float]:
    """Seconds from the command to the first 200 of /readyz, and to the first token after it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    client = Client(f"http://127.0.0.1:{port}")
    began = time.perf_counter()
    command = ("-m", "octavo.server.cli", "serve", *arguments, "--port", str(port))
    silent = asyncio.subprocess.DEVNULL
    server = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdout=silent, stderr=silent
    )
    try:
        while not await _is_ready(client):
            if server.returncode is not None or time.perf_counter() - began > _LIMIT_SECONDS:
                raise SystemExit("octavo bench: the server did not become ready")
            await asyncio.sleep(0.01)
        ready = time.perf_counter() - began
        body: dict[str, object] = {"prompt": "Once upon a time", "max_tokens": 1, "stream": True}
        exchange = await client.post("/v1/completions", body)
        if exchange.status != 200:
            raise SystemExit(f"octavo bench: the first request failed: {exchange.error}")
        return ready, exchange.arrivals[0] - began
    finally:
        client.close()
        if server.returncode is None:
            server.terminate()
        await server.wait()


async def _is_ready(client: Client) -> bool:
    try:
        status, _ = await client.get("/readyz")
    except OSError:
        client.close()
        return False
    return status == 200
