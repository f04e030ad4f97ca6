"""The commands from their flags to their files, against a server that answers from a string."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from octavo.loadtest.command import main as serve
from octavo.loadtest.compare import main as compare
from octavo.loadtest.page import main as page
from octavo.loadtest.sweep import main as sweep
from octavo.server.bench_offline import main as offline
from octavo.server.cli import main as octavo

from .test_measuring import chunk, event, four_tokens, one_answer, server

SMALL = ["--model", "m", "--requests", "6", "--concurrency", "3", "--warm-up", "1"]


async def in_thread(main: object, *words: str) -> int:
    """The command as the shell runs it: with an event loop of its own."""
    return await asyncio.to_thread(main, list(words))  # type: ignore[arg-type]


async def test_bench_serve_writes_table_json_and_page_that_the_others_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, html = tmp_path / "a.json", tmp_path / "b.json", tmp_path / "both.html"
    async with server(four_tokens) as url:
        for out in (first, second):
            words = ["--base-url", url, *SMALL, "--slo-ttft", "60", "--json", str(out)]
            assert await in_thread(serve, *words) == 0
    said = capsys.readouterr().out
    assert "requests          6 (0 failed)" in said
    assert "(100% kept the SLO)" in said
    total = json.loads(first.read_text())["total"]
    assert (total["requests"], total["output_tokens"]) == (6, 24)
    assert compare([str(first), str(second)]) == 0
    assert "output tokens/s" in capsys.readouterr().out
    assert page([str(first), str(second), "--html", str(html)]) == 0
    assert html.read_text().count("<svg") == 5


async def test_text_is_calibrated_by_what_the_server_counts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def counting(writer: asyncio.StreamWriter, body: bytes) -> None:
        asked = json.loads(body)
        words = len(asked["messages"][0]["content"].split())
        usage = {"completion_tokens": 1, "prompt_tokens": 2 * words + 7}
        if asked["stream"]:
            text = event(choices=[{"delta": {"content": "a"}}])
            text += event(choices=[], usage=usage) + b"data: [DONE]\n\n"
            head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            head += b"Transfer-Encoding: chunked\r\n\r\n"
            writer.write(head + chunk(text) + b"0\r\n\r\n")
        else:
            choices = [{"message": {"content": "a"}}]
            told = json.dumps({"choices": choices, "usage": usage}).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(told) + told)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                body = await reader.readexactly(length)
                if body:
                    await counting(writer, body)
                else:
                    writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    words = ["--base-url", url, *SMALL, "--prompts", "chat", "--prompt-tokens", "107"]
    assert await in_thread(serve, *words) == 0
    listening.close()
    assert f"cached tokens     0 of {6 * 107}" in capsys.readouterr().out


async def test_bench_sweep_ends_with_a_rate_that_kept_the_level(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "best.json"
    async with server(one_answer) as url:
        words = ["--base-url", url, *SMALL, "--no-stream", "--slo-ttft", "60", "--json", str(out)]
        assert await in_thread(sweep, *words, "--rate-limit", "4000") == 0
    assert "highest rate" in capsys.readouterr().out
    result = json.loads(out.read_text())
    assert result["rate"] == max(trial["rate"] for trial in result["trials"])


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--scenario", "nothing"], "there is no scenario nothing; there are a, b, c"),
        (["--prompt-tokens", "x"], "prompt-tokens"),
        (["--requests", "0"], "must be 1 or more"),
    ],
)
def test_wrong_flags_are_told(
    words: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        serve(words)
    assert why in capsys.readouterr().err


def test_a_file_that_is_no_result_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.json"
    other.write_text("{}")
    with pytest.raises(SystemExit):
        compare([str(other), str(other)])
    assert "is no result of" in capsys.readouterr().err


def test_bench_offline_counts_what_the_library_makes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "model", tmp_path / "out.json"
    assert octavo(["bench", "make-model", "--shape", "tiny", str(folder)]) == 0
    load = ["--requests", "4", "--streams", "2", "--prompt-tokens", "8", "--output-tokens", "5"]
    # The tiny vocabulary has ids up to 1023.
    words = [*load, "--rounds", "1", "--token-ids", "300..900", "--json", str(out)]
    assert offline([*words, str(folder), "--kv-memory", "16MiB", "--max-model-len", "64"]) == 0
    figures = json.loads(out.read_text())["figures"]
    tokens = figures["output tokens/s"] * figures["seconds a round"]
    assert tokens == pytest.approx(4 * 5)
    assert "output tokens/s" in capsys.readouterr().out
    guessing = ["--speculative", "ngram", "--prompt-lookup-min", "1"]
    words[words.index("--output-tokens") + 1] = "40"
    words += [str(folder), "--kv-memory", "16MiB", "--max-model-len", "64", *guessing]
    assert offline(words) == 0
    figures = json.loads(out.read_text())["figures"]
    assert 0 <= figures["draft tokens accepted, share"] <= 1
    assert figures["accepted a draft, tokens"] <= 8
