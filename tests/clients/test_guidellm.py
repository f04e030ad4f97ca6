"""guidellm measures the server, unchanged: chats and completions, streamed, as it sends them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from octavo.engine.bundled import TARGET

from ..e2e.daemon import Daemon
from .running import CLIENTS, output_of

pytestmark = pytest.mark.slow

REQUESTS, OUTPUT_TOKENS = 6, 16


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_benchmark(daemon: Daemon, tmp_path: Path, path: str) -> None:
    before = daemon.metric("octavo:generation_tokens_total")
    report = tmp_path / "report.json"
    options = {
        "--backend": f"kind=openai_http,target={daemon.url},model=octavo,request_format={path}",
        "--profile": "kind=concurrent,streams=2",
        "--constraint": f"kind=max_requests,count={REQUESTS}",
        "--tokenizer": f"kind=huggingface_auto,model={TARGET}",
        "--data": f"kind=synthetic_text,prompt_tokens=40,output_tokens={OUTPUT_TOKENS}",
        "--output": f"kind=json,path={report}",
    }
    arguments = [part for option in options.items() for part in option]
    output_of([CLIENTS / "bin" / "guidellm", "run", *arguments, "--disable-console"])

    (benchmark,) = json.loads(report.read_text())["benchmarks"]
    totals = benchmark["metrics"]["request_totals"]
    assert (totals["successful"], totals["errored"], totals["incomplete"]) == (REQUESTS, 0, 0)
    for request in benchmark["requests"]["successful"]:
        assert request["output_tokens"] == OUTPUT_TOKENS
        assert request["prompt_tokens"] >= 40
        assert request["time_to_first_token_ms"] < 1000 * request["request_latency"]
        assert request["output"]
    # It sends a few requests of its own to see whether the server is there.
    generated = daemon.metric("octavo:generation_tokens_total") - before
    assert generated >= REQUESTS * OUTPUT_TOKENS
