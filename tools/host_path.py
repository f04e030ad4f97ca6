"""How long the engine's host path takes: what a step costs beside the model.

    python tools/host_path.py [MODEL_FOLDER] [--sequences 64] [--front-end] [--json FILE]

The engine runs in this process without overlap, and the message that would go to the front end is
encoded and sent through a socket. Timed apart: schedule and commit (all that planning takes, and
of it the two alone), the batch (all of the worker's step but the model's forward pass, its logits
and the sampler), and the message. Times are the thread's own processor time, which neighbours on
the same cores do not stretch as they do the clock's.
"""

from __future__ import annotations

import argparse
import functools
import json
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from front_path import front_end

from octavo.engine.assembly import build_engine
from octavo.engine.channel import Channel
from octavo.engine.config import EngineConfig
from octavo.engine.core import Engine
from octavo.engine.device import without_gradients
from octavo.engine.executor.inline import InlineExecutor
from octavo.engine.params import Request, SamplingParams
from octavo.engine.worker.launch import launch
from octavo.engine.worker.runner import Runner
from octavo.engine.worker.stream import Stream
from octavo.loadtest import machine
from octavo.loadtest.make_model import make_model
from octavo.loadtest.shapes import SHAPES

PROMPT_TOKENS, OUTPUT_TOKENS, WARM_UP_STEPS = 32, 256, 20
CLOCK = time.thread_time


class Stopwatch:
    """Adds up the time in the calls it wraps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wrap(self, work: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(work)
        def timed(*positional: Any, **named: Any) -> Any:
            began = CLOCK()
            try:
                return work(*positional, **named)
            finally:
                self.seconds += CLOCK() - began

        return timed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", help="default: random weights, shape 15m")
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--front-end", action="store_true", help="also a daemon under load")
    parser.add_argument("--json", type=Path, metavar="FILE")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = chosen.folder
        if folder is None:
            folder = Path(made)
            make_model(SHAPES["15m"], folder)
        figures = measure(folder, chosen.sequences)
        if chosen.front_end:
            figures |= front_end(folder)
    for name, figure in figures.items():
        sys.stdout.write(f"{name:<48}{figure:9.3f}\n")
    if chosen.json is not None:
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        content = {**machine.described(), "sequences": chosen.sequences, "figures": figures}
        chosen.json.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    return 0


def measure(folder: Path, sequences: int) -> dict[str, float]:
    """Medians over the steps in which all sequences run, in milliseconds."""
    config = EngineConfig(
        model=str(folder), overlap="off", max_num_seqs=sequences, max_model_len=512
    )
    compute = Stopwatch()
    executor = InlineExecutor(config, functools.partial(_timed_launch, compute))
    worker = Stopwatch()
    executor.collect = worker.wrap(executor.collect)  # type: ignore[method-assign]
    engine, _ = build_engine(config, lambda stage, done, total: None, executor)
    near, far = socket.socketpair()
    threading.Thread(target=_swallow, args=(far,), daemon=True).start()
    channel = Channel(near, epoch=0)
    try:
        with without_gradients():  # as in an engine's process
            return _figures(engine, channel, sequences, compute, worker)
    finally:
        engine.stop()
        near.close()


def _timed_launch(
    compute: Stopwatch, config: EngineConfig, progress: Any, stream: Stream
) -> tuple[Runner, Any]:
    """The real runner; its model and its sampler's draw are timed. Reaches into its computer."""
    runner, capacity = launch(config, progress, stream)
    computer: Any = runner.computer
    for owner, name in (
        (computer, "_forwards"),  # its model's forward pass, or the replay of one
        (computer._sampler, "draw"),
    ):
        _replace(owner, name, compute.wrap(getattr(owner, name)))
    return runner, capacity


def _replace(owner: Any, name: str, value: Any) -> None:
    object.__setattr__(owner, name, value)


def _figures(
    engine: Engine, channel: Channel, sequences: int, compute: Stopwatch, worker: Stopwatch
) -> dict[str, float]:
    params = SamplingParams(max_tokens=OUTPUT_TOKENS, temperature=0.0, ignore_eos=True)
    for number in range(sequences):
        prompt = tuple(300 + (number * 37 + at) % 3000 for at in range(PROMPT_TOKENS))
        engine.add(
            Request(
                id=str(number),
                prompt_token_ids=prompt,
                sampling=params,
                seed=number,
                arrival=time.monotonic(),
            )
        )
    schedule, commit = Stopwatch(), Stopwatch()
    scheduler: Any = engine.scheduler
    scheduler.schedule = schedule.wrap(scheduler.schedule)
    scheduler.commit = commit.wrap(scheduler.commit)
    plans, batches, messages, steps = [], [], [], []
    schedules, commits = [], []
    seen = 0
    while not engine.idle:
        for watch in (compute, worker, schedule, commit):
            watch.seconds = 0.0
        began = CLOCK()
        report = engine.step()
        stepped = CLOCK()
        channel.send(report)
        sent = CLOCK()
        if report.stats.sequences_computed < sequences or len(report.deltas) < sequences:
            continue
        seen += 1
        if seen <= WARM_UP_STEPS or any(delta.last for delta in report.deltas):
            continue
        schedules.append(schedule.seconds)
        commits.append(commit.seconds)
        plans.append(stepped - began - worker.seconds)
        batches.append(worker.seconds - compute.seconds)
        messages.append(sent - stepped)
        steps.append(sent - began)
    if not plans:
        raise SystemExit("host_path: no step held all sequences; is the model's context too short?")
    parts = {
        "schedule and commit, ms": plans,
        "  schedule alone, ms": schedules,
        "  commit alone, ms": commits,
        "batch, ms": batches,
        "message, ms": messages,
        "host path, ms": [sum(each) for each in zip(plans, batches, messages, strict=True)],
        "whole step, ms": steps,
    }
    return {name: statistics.median(values) * 1e3 for name, values in parts.items()}


def _swallow(sock: socket.socket) -> None:
    while sock.recv(1 << 20):
        pass


if __name__ == "__main__":
    sys.exit(main())
