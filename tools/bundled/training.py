"""The training loop: steps until the tokens are spent, the time is up, or a signal asks to stop.

The order of the data and the learning rate are functions of the step alone, so a run that was cut
and resumed gives the same weights as one that was not (on the same number of threads: bf16 sums
differ between thread counts).
"""

from __future__ import annotations

import ctypes
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from bundled import checkpoint
from bundled.checkpoint import Progress
from bundled.model import Llama, Shape
from bundled.optimizer import Optimizer, Schedule
from bundled.packing import Mixture, Tokens, Windows

EARLY = Mixture(shares=(0.60, 0.16, 0.24), length=512)
LATE = Mixture(shares=(0.40, 0.35, 0.25), length=2048)
LATE_SHARE = 0.15


class Loss(Protocol):
    """The mean loss of one micro-batch."""

    def __call__(self, model: Llama, inputs: Tensor, targets: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Settings:
    """What one run is told."""

    tokens: int
    seed: int = 1
    threads: int = 2
    device: str = "cpu"
    tokens_per_step: int = 8192
    tokens_at_once: int = 4096
    length_limit: int = LATE.length
    checkpoint_seconds: float = 180.0
    validate_every_steps: int = 100
    max_seconds: float | None = None


def mixture_at(seen: int, total: int) -> Mixture:
    """Stories first; more chat and longer windows in the last part."""
    return LATE if seen >= (1 - LATE_SHARE) * total else EARLY


def next_token_loss(model: Llama, inputs: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of the next token, in nats."""
    logits = model.logits(model(inputs))
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def train(
    folder: Path,
    shape: Shape,
    streams: Sequence[Tokens],
    validation: dict[str, Tokens],
    settings: Settings,
    *,
    loss: Loss = next_token_loss,
    mixture: Callable[[int, int], Mixture] = mixture_at,
    start: Path | None = None,
) -> bool:
    """Trains until `settings.tokens` are seen; returns False when it was cut before that.

    The newest checkpoint in `folder` is resumed. Without one, the weights come from the checkpoint
    `start`, or from the seed. `mixture` maps (tokens seen, tokens in all) to what to read.
    """
    torch.set_num_threads(settings.threads)
    keep_freed_memory()
    device = torch.device(settings.device)
    model = Llama(shape)
    optimizer = Optimizer(model)
    newest = checkpoint.latest(folder)
    if newest is not None:
        progress = replace(
            checkpoint.load(newest, model, optimizer),
            threads=settings.threads,
        )
    else:
        progress = Progress(seed=settings.seed, threads=settings.threads)
        model.initialise(settings.seed)
        if start is not None:
            checkpoint.load(start, model)
    model.to(device)
    optimizer.state = {name: value.to(device) for name, value in optimizer.state.items()}
    windows = Windows(streams, seed=progress.seed, tokens_per_step=settings.tokens_per_step)
    schedule = Schedule(settings.tokens)
    began = last_saved = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)

    with (
        Report(folder / "log.jsonl", progress.tokens, settings.tokens) as report,
        stopping() as stop,
    ):
        while progress.tokens < settings.tokens:
            step_began = time.monotonic()
            reading = mixture(progress.tokens, settings.tokens)
            reading = replace(reading, length=min(reading.length, settings.length_limit))
            rows = torch.from_numpy(windows.step(progress.step, reading)).to(device)
            micro_batches = torch.split(rows, max(1, settings.tokens_at_once // reading.length))
            total = torch.zeros((), device=device)
            for micro_batch in micro_batches:
                if stop():
                    break
                with torch.autocast(device.type, dtype=torch.bfloat16):
                    mean = loss(model, micro_batch[:, :-1], micro_batch[:, 1:])
                part = mean * (len(micro_batch) / len(rows))
                part.backward()  # type: ignore[no-untyped-call]
                total += part.detach()
            if stop():
                break
            factor = schedule.factor(progress.tokens)
            optimizer.step(factor, progress.step + 1)
            now = time.monotonic()
            progress = replace(
                progress,
                step=progress.step + 1,
                tokens=progress.tokens + settings.tokens_per_step,
                seconds=progress.seconds + now - step_began,
            )
            report.step(progress, loss=total.item(), factor=factor, seconds=now - step_began)
            if progress.step % settings.validate_every_steps == 0:
                report.note(
                    step=progress.step,
                    validation={
                        name: validation_loss(model, tokens, most=8192)
                        for name, tokens in validation.items()
                    },
                )
            if now - last_saved >= settings.checkpoint_seconds:
                checkpoint.save(folder, model, optimizer, progress)
                last_saved = now
            if settings.max_seconds is not None and now - began >= settings.max_seconds:
                break
    checkpoint.save(folder, model, optimizer, progress)
    return progress.tokens >= settings.tokens


def keep_freed_memory() -> None:
    """Tells glibc's allocator to keep what is freed; elsewhere does nothing.

    By default a large tensor goes back to the system at once, and the next one of its size pays for
    zeroed pages again: a fifth of the time of a step.
    """
    trim_threshold, mmap_max = -1, -4
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
    except (OSError, AttributeError):
        return


@torch.no_grad()
def validation_loss(model: Llama, tokens: Tokens, *, most: int, length: int = 512) -> float:
    """Mean next-token loss in nats over the first `most` tokens, in windows of `length`."""
    device = model.norm.weight.device
    count = min(most, len(tokens) - 1) // length
    total = 0.0
    for index in range(count):
        window = tokens[index * length : (index + 1) * length + 1].astype("int64")
        row = torch.from_numpy(window).to(device)[None]
        with torch.autocast(device.type, dtype=torch.bfloat16):
            total += next_token_loss(model, row[:, :-1], row[:, 1:]).item()
    return total / count


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """While open, SIGTERM and SIGINT only raise a flag; the yielded function reads it."""
    raised = False

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal raised
        raised = True

    previous = {name: signal.signal(name, remember) for name in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: raised
    finally:
        for name, handler in previous.items():
            signal.signal(name, handler)


class Report:
    """A progress bar on a terminal, plain lines elsewhere, and a JSON-lines log."""

    plain_seconds = 30.0

    def __init__(self, path: Path, seen: int, total: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._log = path.open("a", encoding="utf-8")
        self._total = total
        self._began = time.monotonic()
        self._seen_before = seen
        self._last_line = 0.0
        self._bar = (
            tqdm(total=total, initial=seen, unit="tok", unit_scale=True)
            if sys.stderr.isatty()
            else None
        )

    def __enter__(self) -> Report:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        self._log.close()

    def step(self, progress: Progress, *, loss: float, factor: float, seconds: float) -> None:
        """Tells of one step."""
        now = time.monotonic()
        rate = (progress.tokens - self._seen_before) / max(now - self._began, 1e-9)
        left = max(0, self._total - progress.tokens) / max(rate, 1e-9)
        self._write(
            step=progress.step,
            tokens=progress.tokens,
            loss=round(loss, 4),
            factor=round(factor, 4),
            seconds=round(seconds, 3),
            tokens_per_second=round(rate, 1),
        )
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{loss:.3f}")
            self._bar.update(progress.tokens - self._bar.n)
        elif now - self._last_line >= self.plain_seconds or progress.tokens >= self._total:
            self._last_line = now
            print(
                f"step {progress.step}"
                f"  {progress.tokens / 1e6:.2f} of {self._total / 1e6:.2f} M tokens"
                f"  loss {loss:.3f}  {rate:.0f} tokens/s  {left / 60:.0f} min left",
                flush=True,
            )

    def note(self, **values: Any) -> None:
        """Tells of something besides a step."""
        self._write(**values)
        if self._bar is not None:
            self._bar.write(json.dumps(values))
        else:
            print(json.dumps(values), flush=True)

    def _write(self, **values: Any) -> None:
        self._log.write(json.dumps({"time": round(time.time(), 1), **values}) + "\n")
        self._log.flush()
