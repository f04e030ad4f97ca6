"""What the front end costs: processor time per streamed token and per admitted request.

A daemon serves random weights of shape 15m, and the load test's scenarios S (64 streams) and H (64
requests at a time, one token each, not streamed) are run against it in turn; what its first
process used is divided by what it answered. The pieces of a streamed token are timed apart, by
themselves, in this process: there all they need is in the first-level cache, beside an engine that
reads its weights it is not. Used by `tools/host_path.py --front-end`.
"""

from __future__ import annotations

import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from octavo.engine.params import SamplingParams
from octavo.engine.step import Delta
from octavo.loadtest import scenario
from octavo.loadtest.goals.launches import Peers, octavo
from octavo.loadtest.goals.servers import Server
from octavo.loadtest.run import Measurement, Target, measure, run
from octavo.loadtest.workload import Asking
from octavo.server.observe.metrics import Metrics
from octavo.server.openai.answers import CompletionChoice
from octavo.server.openai.sse import ChunkWriter
from octavo.server.text.choice import ChoiceText
from octavo.server.text.tokenizer import Tokenizer

ROUNDS, CALLS = 5, 20_000
_MICRO = 1e6


def front_end(folder: Path) -> dict[str, float]:
    """Medians over rounds, in microseconds of processor time."""
    streamed: list[float] = []
    admitted: list[float] = []
    with tempfile.TemporaryDirectory() as logs:
        server = Server(octavo(folder, Peers()), Path(logs, "server.log"))
        try:
            _used(server, "s", seed=0)
            for seed in range(1, ROUNDS + 1):
                seconds, answers = _used(server, "s", seed=seed)
                streamed.append(seconds / sum(one.output_tokens for one in answers.all))
                seconds, answers = _used(server, "h", seed=seed)
                admitted.append(seconds / len(answers.all))
        finally:
            server.stop()
    token, request = statistics.median(streamed) * _MICRO, statistics.median(admitted) * _MICRO
    return {
        "front end, us a streamed token": token,
        "front end, us an admitted request": request,
        **{f"by itself: {name}, us": seconds * _MICRO for name, seconds in _pieces(folder).items()},
    }


def _used(server: Server, name: str, *, seed: int) -> tuple[float, Measurement]:
    """Processor seconds of the front end during one scenario, and the scenario's answers."""
    target = Target(base_url=server.url, asking=Asking(model="model"))
    before = server.cpu_seconds(children=False)
    answers = run(measure(scenario.load(name).seeded(seed).workloads, target))
    failed = [one for one in answers.all if not one.good]
    if failed:
        raise SystemExit(f"front_path: {len(failed)} requests of {name} failed")
    return server.cpu_seconds(children=False) - before, answers


def _pieces(folder: Path) -> dict[str, float]:
    """Seconds of each thing that is done for a streamed token."""
    params = SamplingParams(max_tokens=None)
    delta = Delta(request_id="x", token_ids=(500,))
    choice = ChoiceText(Tokenizer.from_folder(folder), params)
    metrics = Metrics(model_name="model", longest_context=512)
    constant = {"id": "cmpl-0123456789abcdef", "object": "text_completion", "created": 1}
    writer = ChunkWriter(constant, with_usage=False)
    event = writer.chunk(CompletionChoice(index=0, text=" text"))
    near, far = socket.socketpair()

    def write() -> None:
        near.send(event)
        far.recv(1 << 16)

    try:
        return {
            "detokenize": _timed(lambda: choice.take(delta)),
            "count": _timed(lambda: metrics.on_tokens(1, gap_seconds=0.01)),
            "encode the event": _timed(
                lambda: writer.chunk(CompletionChoice(index=0, text=" text"))
            ),
            "write and read through a socket": _timed(write),
        }
    finally:
        near.close()
        far.close()


def _timed(call: Callable[[], object]) -> float:
    """Seconds of processor time of one call: the best of three rounds."""
    best = float("inf")
    for _ in range(3):
        began = time.thread_time()
        for _ in range(CALLS):
            call()
        best = min(best, (time.thread_time() - began) / CALLS)
    return best
