"""What an operator's day brings: full disks, closed streams, few open files, nothing to do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from .daemon import START_LIMIT_SECONDS, STOP_LIMIT_SECONDS, Daemon, free_port, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
BODY = {"prompt": "Once upon a time", "max_tokens": 4}


def complete(url: str) -> None:
    answer = httpx.post(f"{url}/v1/completions", json=BODY, timeout=60)
    assert answer.status_code == 200, answer.text


def wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_LIMIT_SECONDS
    while not _is_ready(url):
        assert process.poll() is None, "the daemon ended early"
        assert time.monotonic() < deadline, "the daemon is not ready"
        time.sleep(0.05)  # between two looks at a condition that is awaited


def _is_ready(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{url}/readyz").status_code == 200
    return False


def processes_of(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found = [pid]
    for folder in Path(f"/proc/{pid}/task").iterdir():
        for child in (folder / "children").read_text().split():
            found += processes_of(int(child))
    return found


@contextlib.contextmanager
def bare(*arguments: str, **options: Any) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A daemon whose standard streams are as `options` say; must leave with 0."""
    port = free_port()
    # -P: as the installed command, which takes no modules from the folder it is started in
    command = [sys.executable, "-P", "-m", "octavo.server.cli", "serve", "--port", str(port)]
    process = subprocess.Popen([*command, *arguments], **options)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(url, process)
        yield url, process
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_LIMIT_SECONDS) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_full_disk_for_the_log_stops_nothing(log_format: str) -> None:
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        with bare("--log-format", log_format, stdout=full, stderr=full) as (url, _):
            for _ in range(3):
                complete(url)
            assert httpx.get(f"{url}/health").status_code == 200


def test_closed_standard_streams_stop_nothing_and_get_into_no_connection() -> None:
    def close_all() -> None:
        for number in range(3):
            os.close(number)

    with bare(preexec_fn=close_all) as (url, process):
        for _ in range(3):
            complete(url)
        with socket.create_connection(("127.0.0.1", httpx.URL(url).port or 0)) as client:
            client.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            received = b"".join(iter(lambda: client.recv(4096), b""))
        assert received.count(b"HTTP/1.1") == 1
        assert received.endswith(b"}")
        for number in range(3):
            assert Path(f"/proc/{process.pid}/fd/{number}").readlink() == Path("/dev/null")


def test_a_reader_of_the_log_that_leaves_stops_nothing() -> None:
    near, far = os.pipe()
    with bare(stdout=far, stderr=far) as (url, _):
        os.close(near)
        for _ in range(3):
            complete(url)
    os.close(far)


def test_a_storm_of_connections_meets_a_limit_and_passes(tmp_path: Path) -> None:
    """The daemon may open 160 files, 400 clients come: no death, no spin, and then all is well."""

    def few_files() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 160))

    log = tmp_path / "log"
    with log.open("wb") as sink, bare(stdout=sink, stderr=sink, preexec_fn=few_files) as (url, p):
        port = httpx.URL(url).port or 0
        assert f"{160}" in Path(f"/proc/{p.pid}/limits").read_text().split("Max open files")[1]
        answered = asyncio.run(storm(port, 400))
        assert 20 < answered.count(200) < 160
        assert answered.count(503) > 200
        complete(url)
        spent = cpu_seconds([p.pid])
        asyncio.run(hold(port, 400, seconds=2.0))
        assert cpu_seconds([p.pid]) - spent < 1.5  # of two seconds: it does not spin
        eventually(lambda: httpx.get(f"{url}/health").status_code == 200)
        complete(url)
    assert "Too many open files" not in log.read_text()


async def storm(port: int, count: int) -> list[int]:
    """All connect at once and stay; then each asks. Gives their statuses."""
    streams = await asyncio.gather(
        *(asyncio.open_connection("127.0.0.1", port) for _ in range(count))
    )

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        with contextlib.suppress(ConnectionError):
            writer.write(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
            return int((await reader.readline() or b"x 0").split()[1])
        return 503  # told so, and closed before it could ask

    statuses = await asyncio.gather(*(ask(*stream) for stream in streams))
    for _, writer in streams:
        writer.close()
    return list(statuses)


async def hold(port: int, count: int, *, seconds: float) -> None:
    streams = [await asyncio.open_connection("127.0.0.1", port) for _ in range(count)]
    await asyncio.sleep(seconds)  # the time over which CPU time is counted
    for _, writer in streams:
        writer.close()


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while True:
        with contextlib.suppress(httpx.TransportError):
            if condition():
                return
        assert time.monotonic() < deadline
        time.sleep(0.05)  # between two looks at a condition that is awaited


def cpu_seconds(pids: list[int]) -> float:
    """User and system time that processes have used."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with serving(tmp_path_factory.mktemp("odds")) as running:
        complete(running.url)
        chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
        with contextlib.suppress(httpx.HTTPError):
            httpx.post(f"{running.url}/v1/chat/completions", json=chat, timeout=60)
        choice = {**BODY, "structured_outputs": {"choice": ["a", "b"]}}
        httpx.post(f"{running.url}/v1/completions", json=choice, timeout=60)
        yield running


def test_having_nothing_to_do_costs_next_to_nothing(daemon: Daemon) -> None:
    """Soon: at first the cache that comes next is cleared, as much as is ever held ready."""
    pids = processes_of(daemon.pid)
    assert len(pids) >= 2  # front end and engine at least
    deadline, seconds = time.monotonic() + 60.0, 4.0
    share = 1.0  # of one core
    while share > 0.02:
        assert time.monotonic() < deadline, f"with nothing to do {share:.3f} of a core is busy"
        before = cpu_seconds(pids)
        time.sleep(seconds)  # the time over which CPU time is counted
        share = (cpu_seconds(pids) - before) / seconds


def test_who_computes_gives_way_to_who_answers(daemon: Daemon) -> None:
    threads = Path(f"/proc/{daemon.engine}/task").iterdir()
    kernels = [t for t in threads if (t / "comm").read_text().startswith("octavo-kernel")]
    assert kernels or len(os.sched_getaffinity(0)) == 1
    for computing in (daemon.engine, *(int(thread.name) for thread in kernels)):
        assert os.getpriority(os.PRIO_PROCESS, computing) > os.getpriority(
            os.PRIO_PROCESS, daemon.pid
        )


def test_only_the_port_of_the_api_listens(daemon: Daemon) -> None:
    pids = processes_of(daemon.pid)
    held = {
        str(link.readlink()).removeprefix("socket:[").removesuffix("]")
        for pid in pids
        for link in Path(f"/proc/{pid}/fd").iterdir()
        if str(link.readlink()).startswith("socket:[")
    }
    listening = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{daemon.pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in held:
                listening.add(int(fields[1].rpartition(":")[2], 16))
    assert listening == {httpx.URL(daemon.url).port}
    for table in ("udp", "udp6", "raw", "raw6"):
        path = Path(f"/proc/{daemon.pid}/net/{table}")
        lines = path.read_text().splitlines()[1:] if path.exists() else []
        assert not [line for line in lines if line.split()[9] in held], table
    for line in Path(f"/proc/{daemon.pid}/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        listens = int(fields[3], 16) & 0x10000  # __SO_ACCEPTCON
        assert not (listens and fields[6] in held), line


def test_code_that_came_with_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    """auto_map, modules beside it, pickles: everything a checkpoint can bring along."""
    from octavo.engine.bundled import TARGET

    folder, proof = tmp_path / "model", tmp_path / "it-ran"
    folder.mkdir()
    for file in TARGET.iterdir():
        if file.suffix in (".json", ".safetensors"):
            (folder / file.name).write_bytes(file.read_bytes())
    code = f"open({str(proof)!r}, 'w').write('x')\n"
    names = ("modeling_evil", "configuration_evil", "tokenization_evil", "torch", "json", "jinja2")
    for name in names:
        (folder / f"{name}.py").write_text(code)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "configuration_evil.Config",
        "AutoModelForCausalLM": "modeling_evil.Model",
    }
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer["auto_map"] = {"AutoTokenizer": ["tokenization_evil.T", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    pickled = b"cos\nsystem\n(S'touch " + str(proof).encode() + b"'\ntR."
    for name in ("pytorch_model.bin", "training_args.bin", "model.pt"):
        (folder / name).write_bytes(pickled)
    with bare(str(folder), "--trust-remote-code", cwd=folder) as (url, _):
        complete(url)
        talk = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
        httpx.post(f"{url}/v1/chat/completions", json=talk, timeout=60)
        choice = {**BODY, "structured_outputs": {"choice": ["a", "b"]}}
        assert httpx.post(f"{url}/v1/completions", json=choice, timeout=60).status_code == 200
    assert not proof.exists()
