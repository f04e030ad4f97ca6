"""Ending the daemon: drained by the first signal, gone at the second."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from .daemon import serving

BODY = {"prompt": "Once upon a time", "max_tokens": 400, "ignore_eos": True, "stream": True}

pytestmark = pytest.mark.slow


def has_left(pid: int) -> None:
    """Waits for the end of a process, whose status is left for `serving` to look at."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def test_the_first_signal_lets_streams_finish_and_refuses_newcomers(tmp_path: Path) -> None:
    with serving(tmp_path) as daemon, httpx.Client(base_url=daemon.url, timeout=60) as client:
        body = {**BODY, "stream_options": {"include_usage": True}}
        with client.stream("POST", "/v1/completions", json=body) as stream:
            lines = stream.iter_lines()
            assert next(lines).startswith("data: ")
            os.kill(daemon.pid, signal.SIGTERM)
            deadline = time.monotonic() + 10
            while httpx.get(f"{daemon.url}/readyz").status_code == 200:
                assert time.monotonic() < deadline
            assert httpx.get(f"{daemon.url}/livez").status_code == 200
            refused = httpx.post(f"{daemon.url}/v1/completions", json={"prompt": "a"})
            assert refused.status_code == 503
            assert refused.headers["retry-after"]
            rest = [line for line in lines if line.startswith("data: ")]
        assert rest[-1] == "data: [DONE]"
        usage = json.loads(rest[-2].removeprefix("data: "))["usage"]
        assert usage["completion_tokens"] == 400
        has_left(daemon.pid)


def test_everything_that_is_in_is_finished_whatever_its_stage(tmp_path: Path) -> None:
    """Running, waiting, several choices and prompts, and one whose text is still tokenized."""
    limits = ("--max-num-seqs", "4", "--kv-memory", "64MiB", "--drain-timeout", "200")
    with serving(tmp_path, *limits) as daemon:
        url = f"{daemon.url}/v1/completions"
        many = {**BODY, "max_tokens": 60, "n": 2, "prompt": ["a", "b", "c"]}
        long = {"prompt": "once upon a time " * 60_000, "truncate_prompt_tokens": 9}

        def stream(number: int) -> list[str]:
            with httpx.stream("POST", url, json={**many, "seed": number}, timeout=250) as answer:
                return [line for line in answer.iter_lines() if line.startswith("data: ")]

        with ThreadPoolExecutor() as clients:
            streams = [clients.submit(stream, number) for number in range(5)]
            tokenized = clients.submit(httpx.post, url, json=long, timeout=250)
            while httpx.get(f"{daemon.url}/load").json()["server_load"] < 6:
                time.sleep(0.01)  # between two looks at a condition that is awaited
            os.kill(daemon.pid, signal.SIGTERM)
            for lines in [future.result() for future in streams]:
                assert lines[-1] == "data: [DONE]"
                reasons = [line for line in lines if '"finish_reason":"length"' in line]
                assert len(reasons) == 6
            assert tokenized.result().json()["usage"]["completion_tokens"] > 0
        has_left(daemon.pid)


def test_streams_that_outlive_the_drain_end_with_an_error_event(tmp_path: Path) -> None:
    with serving(tmp_path, "--drain-timeout", "0.1") as daemon:
        body = {**BODY, "max_tokens": 2000}
        with httpx.stream("POST", f"{daemon.url}/v1/completions", json=body, timeout=60) as stream:
            lines = stream.iter_lines()
            assert next(lines).startswith("data: ")
            os.kill(daemon.pid, signal.SIGINT)
            rest = [line for line in lines if line]
        assert '"shutting_down"' in rest[-1]
        has_left(daemon.pid)


def test_who_still_waits_when_the_drain_is_over_is_told_so(tmp_path: Path) -> None:
    limits = ("--max-num-seqs", "1", "--kv-memory", "64MiB", "--drain-timeout", "0.5")
    with serving(tmp_path, *limits) as daemon, ThreadPoolExecutor() as clients:
        url = f"{daemon.url}/v1/completions"
        body = {**BODY, "max_tokens": 2000, "n": 2, "stream": False}
        asked = [clients.submit(httpx.post, url, json=body, timeout=60) for _ in range(3)]
        while httpx.get(f"{daemon.url}/load").json()["server_load"] < 3:
            time.sleep(0.01)  # between two looks at a condition that is awaited
        os.kill(daemon.pid, signal.SIGTERM)
        for answer in [future.result() for future in asked]:
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "shutting_down"
            assert answer.headers["retry-after"]
        has_left(daemon.pid)


def test_the_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    left: list[Exception] = []

    def ask(url: str) -> None:
        try:
            httpx.post(f"{url}/v1/completions", json={**BODY, "max_tokens": 2000}, timeout=60)
        except httpx.TransportError as error:
            left.append(error)

    with pytest.raises(AssertionError):  # it does not leave with 0
        with serving(tmp_path) as daemon:
            asking = threading.Thread(target=ask, args=(daemon.url,))
            asking.start()
            while httpx.get(f"{daemon.url}/load").json()["server_load"] == 0:
                time.sleep(0.01)  # between two looks at a condition that is awaited
            os.kill(daemon.pid, signal.SIGTERM)
            while httpx.get(f"{daemon.url}/readyz").status_code == 200:
                time.sleep(0.01)
            os.kill(daemon.pid, signal.SIGTERM)
            asking.join(20)
            assert left
