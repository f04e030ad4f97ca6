"""An engine that is killed, frozen or loses messages under mixed streams; and a front end that is
killed: nobody notices the one, nothing outlives the other."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from pathlib import Path

import httpx
import pytest

from octavo.loadtest.drills.load import MixedLoad
from octavo.loadtest.drills.processes import alive, command_of, tree

from .daemon import Daemon, serving
from .test_shutdown import has_left

pytestmark = pytest.mark.slow

FLOAT32 = ("--dtype", "float32", "--kv-memory", "256MiB", "--hang-timeout", "3")


def shared_memories(daemon: Daemon) -> int:
    """Descriptors of heartbeats that the front end holds."""
    found = 0
    for fd in Path(f"/proc/{daemon.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since it was listed
            found += "octavo-heartbeat" in str(fd.readlink())
    return found


async def all_once(load: MixedLoad) -> None:
    """Every kind of stream at the same time, each answer held against the undisturbed one."""
    answers = await asyncio.gather(*(load._ask(kind) for kind in load.kinds))
    for kind, answer in zip(load.kinds, answers, strict=True):
        load.judge(kind, answer)


def assert_unnoticed(load: MixedLoad) -> None:
    assert not load.failures
    assert not load.differing
    assert not load.differing_logprobs


@pytest.mark.timeout(600)
async def test_16_mixed_streams_go_on_when_the_engine_is_frozen(tmp_path: Path) -> None:
    with serving(tmp_path, *FLOAT32) as daemon:
        load = MixedLoad(daemon.url)
        await load.learn()
        streams = asyncio.create_task(all_once(load))
        while load.in_flight < 8:
            await asyncio.sleep(0.001)  # between two looks at a condition that is awaited
        os.kill(daemon.engine, signal.SIGSTOP)
        await streams
        assert_unnoticed(load)
        assert daemon.metric("octavo:engine_restarts_total") >= 1
        assert daemon.metric("octavo:requests_resumed_total") >= 8
        await asyncio.to_thread(daemon.wait_until_idle)
        assert daemon.metric("octavo:engine_heartbeat_age_seconds") == 0
    assert "made no progress for" in daemon.log.read_text()


@pytest.mark.timeout(600)
async def test_16_mixed_streams_go_on_whatever_befalls_the_engine(tmp_path: Path) -> None:
    """Killed as by a machine without memory, gone without a word, deaf, and frozen."""
    blows = ("kill", "exit", "lose-message", "freeze")
    faults = [f"{blow}@step={30 + epoch}@epoch={epoch}" for epoch, blow in enumerate(blows)]
    with serving(tmp_path, *FLOAT32) as daemon:
        load = MixedLoad(daemon.url)
        await load.learn()
    arguments = [word for fault in faults for word in ("--test-fault", fault)]
    with serving(tmp_path, *FLOAT32, *arguments) as daemon:
        load.url = daemon.url
        await all_once(load)
        assert_unnoticed(load)
        assert daemon.metric("octavo:engine_restarts_total") >= len(blows)
        assert shared_memories(daemon) == 1  # that of the engine that lives
        await asyncio.to_thread(daemon.wait_until_idle)
    log = daemon.log.read_text()
    for trace in ("ended by signal 9", "exited with code 70", "lost report", "no progress for"):
        assert trace in log


@pytest.mark.timeout(300)
def test_a_front_end_that_was_stopped_blames_nobody(tmp_path: Path) -> None:
    """For much longer than the engine may be silent, in the middle of a stream."""
    body = {"prompt": "a", "max_tokens": 600, "ignore_eos": True, "stream": True}
    body["stream_options"] = {"include_usage": True}
    with serving(tmp_path, "--hang-timeout", "5") as daemon:
        with httpx.stream("POST", f"{daemon.url}/v1/completions", json=body, timeout=60) as stream:
            lines = (line for line in stream.iter_lines() if line.startswith("data: "))
            next(lines)
            os.kill(daemon.pid, signal.SIGSTOP)
            time.sleep(12)  # its length is the case
            os.kill(daemon.pid, signal.SIGCONT)
            *_, usage, end = lines
            assert json.loads(usage.removeprefix("data: "))["usage"]["completion_tokens"] == 600
            assert end == "data: [DONE]"
        assert daemon.metric("octavo:engine_restarts_total") == 0


def test_the_daemon_ends_with_an_engine_that_can_compute_nothing(tmp_path: Path) -> None:
    arguments = ("--test-fault", "exit@step=0", "--max-engine-restarts", "1")
    with serving(tmp_path, *arguments, leaves_with=1) as daemon:
        answer = httpx.post(f"{daemon.url}/v1/completions", json={"prompt": "a"}, timeout=60)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "engine_unavailable"
        has_left(daemon.pid)
    assert "the engine is given up" in daemon.log.read_text()


@pytest.mark.parametrize("stopped", [False, True])
def test_no_process_outlives_a_killed_front_end(tmp_path: Path, stopped: bool) -> None:
    with serving(tmp_path, leaves_with=-signal.SIGKILL) as daemon:
        chat = {
            "messages": [{"role": "user", "content": "a"}],
            "max_tokens": 4,
            "structured_outputs": {"regex": "[a-z]+"},
        }
        answer = httpx.post(f"{daemon.url}/v1/chat/completions", json=chat, timeout=60)
        assert answer.status_code == 200, answer.text
        processes = tree(daemon.pid)[1:]
        commands = " ".join(map(command_of, processes))
        for name in ("engine.assembly", "grammar_helper", "template_helper"):
            assert name in commands
        if stopped:
            for pid in processes:
                os.kill(pid, signal.SIGSTOP)
        os.kill(daemon.pid, signal.SIGKILL)
        deadline = time.monotonic() + 5
        while any(map(alive, processes)):
            left = [command_of(pid) for pid in processes if alive(pid)]
            assert time.monotonic() < deadline, f"still there: {left}"
            time.sleep(0.01)  # between two looks at a condition that is awaited
