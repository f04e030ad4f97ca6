"""`octavo bench serve`: a workload against any OpenAI-compatible server, from the command line."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from .client import Client, Exchange
from .run import measure
from .workload import Workload


def main(words: Sequence[str]) -> int:
    """Run one workload and print its report; the exit status is 1 when a request failed."""
    parser = argparse.ArgumentParser(
        prog="octavo bench serve", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--base-url", default="http://127.0.0.1:8000", metavar="URL")
    parser.add_argument("--model", help="a served name; unset: the first the server lists")
    parser.add_argument("--api-key")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--shared-prefix", type=int, default=0, metavar="TOKENS")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--warm-up", type=int, default=4, metavar="REQUESTS")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report here, too")
    chosen = parser.parse_args(words)
    if chosen.prompt_tokens <= chosen.shared_prefix:
        parser.error("--prompt-tokens must be more than --shared-prefix")
    return asyncio.run(_run(chosen))


async def _run(chosen: argparse.Namespace) -> int:
    model = chosen.model or await first_model(chosen.base_url, chosen.api_key)
    workload = Workload(
        requests=chosen.requests,
        concurrency=chosen.concurrency,
        prompt_tokens=chosen.prompt_tokens,
        output_tokens=chosen.output_tokens,
        shared_prefix=chosen.shared_prefix,
        temperature=chosen.temperature,
        seed=chosen.seed,
    )
    if chosen.warm_up:
        warm_up = Workload(
            requests=chosen.warm_up,
            concurrency=chosen.concurrency,
            prompt_tokens=chosen.prompt_tokens,
            output_tokens=chosen.output_tokens,
            seed=chosen.seed + 1,
        )
        await measure(warm_up, base_url=chosen.base_url, model=model, api_key=chosen.api_key)
    report = await measure(
        workload,
        base_url=chosen.base_url,
        model=model,
        api_key=chosen.api_key,
        on_done=_Bar(chosen.requests).advance,
    )
    sys.stdout.write("\n".join(report.lines()) + "\n")
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(report.as_json(), indent=1) + "\n")
    return 1 if report.errors else 0


async def first_model(base_url: str, api_key: str | None) -> str:
    """The name of the first model a server lists."""
    client = Client(base_url, api_key)
    try:
        status, body = await client.get("/v1/models")
    finally:
        await client.close()
    if status != 200:
        raise SystemExit(f"octavo bench: {base_url}/v1/models answers {status}")
    return str(json.loads(body)["data"][0]["id"])


class _Bar:
    """Requests done, drawn over one line of a terminal; silent elsewhere."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._live = sys.stderr.isatty()

    def advance(self, exchange: Exchange) -> None:
        del exchange
        self._done += 1
        if self._live:
            end = "\n" if self._done == self._total else ""
            sys.stderr.write(f"\r{self._done} of {self._total} requests{end}")
            sys.stderr.flush()
