"""A device that runs behind the host: in steady decoding nothing asks it, it is sent one copy a
step, and nothing is done for each request by itself.

The engine computes on host memory, as if that were such a device's: what would wait for a GPU is
forbidden while steps are planned, launched and landed. Only kernels (of ops and model) and what has
arrived on the host are left alone. What is counted are calls of torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from octavo.engine.batch import Batch
from octavo.engine.core import Engine
from octavo.engine.executor.inline import InlineExecutor
from octavo.engine.params import SamplingParams
from octavo.engine.scheduler.scheduler import Scheduler
from octavo.engine.transfer import Array, Pinned
from octavo.engine.worker import launch as launching
from octavo.engine.worker.computer import Computer
from octavo.engine.worker.gathering import Work
from octavo.engine.worker.graphs import Recording, Yield
from octavo.engine.worker.launch import launch
from octavo.kernels import registry
from octavo.kernels.ops import Ops

from .loop import guess_always, request
from .test_graphs import FakeRecorder
from .test_ledger import FakeMemory
from .test_transfer import FakeMarker, NoStream
from .tiny import VOCAB_SIZE, tiny_config

aten = torch.ops.aten
WAITING = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten.is_nonzero.default,
}
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}
METHODS = ("item", "tolist", "cpu", "numpy", "nonzero", "pin_memory")
METHODS += ("__bool__", "__int__", "__float__", "__index__")
MOST_CALLS = 40  # of a step: each takes the host some microseconds, a small model's step 0.9 ms
FROM_HOST = ("from_numpy", "tensor", "as_tensor")  # each is a copy, were the memory not the same


class Watch(TorchDispatchMode):
    """Counts calls, and copies to the device; refuses calls that would wait. Inside of
    `looking_away` none of it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.watching = False
        self.calls = 0
        self.copies = 0
        for name in FROM_HOST:
            patch.setattr(torch, name, self.sending(getattr(torch, name)))
        for name in METHODS:
            patch.setattr(Tensor, name, self._refusing(name, getattr(Tensor, name)))
        patch.setattr(torch.cuda, "synchronize", self._refusing("synchronize", lambda: None))

    @contextmanager
    def looking_away(self, watching: bool = False) -> Iterator[None]:
        before, self.watching = self.watching, watching
        try:
            yield
        finally:
            self.watching = before

    def exempt(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        def outer(*args: Any, **more: Any) -> Any:
            with self.looking_away():
                return inner(*args, **more)

        return outer

    def sending(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        """A call that sends the device something."""

        def outer(*args: Any, **more: Any) -> Any:
            self.copies += self.watching
            return inner(*args, **more)

        return outer

    def _refusing(self, name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        def outer(*args: Any, **more: Any) -> Any:
            assert not self.watching, f"{name} waits for the device"
            return inner(*args, **more)

        return outer

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if self.watching:
            self.calls += 1
            assert func not in WAITING, f"{func} waits for the device"
            if func in INDEXING:
                masks = [i for i in args[1] if i is not None and i.dtype == torch.bool]
                assert not masks, "a mask as an index waits for the device"
        return func(*args, **(kwargs or {}))


class Watched(Pinned):
    """The way to such a device. What has arrived is read on the host."""

    def __init__(self, watch: Watch) -> None:
        super().__init__(torch.device("cpu"), lambda: FakeMarker([], 0), NoStream())
        self._watch = watch

    def send(self, *arrays: Array) -> list[Tensor]:
        return self._watch.sending(super().send)(*arrays)

    def receive(self, *tensors: Tensor) -> Callable[[], list[Array]]:
        return self._watch.exempt(super().receive(*tensors))


class Unseen(FakeRecorder):
    """What is replayed are no calls of the host's."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def record(self, work: Callable[[], Yield]) -> tuple[Recording, Yield]:
        recording, made = super().record(work)
        return SimpleNamespace(replay=self._watch.exempt(recording.replay)), made


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    watch = Watch(monkeypatch)
    resolve = registry.resolve

    def resolved(device: torch.device, providers: Any = None) -> Ops:
        ops = resolve(device, providers)
        kernels = {field.name: watch.exempt(getattr(ops, field.name)) for field in fields(ops)}
        return Ops(**kernels)

    monkeypatch.setattr(registry, "resolve", resolved)
    monkeypatch.setattr(launching, "has_streams", lambda device: True)
    monkeypatch.setattr(launching, "transfer_to", lambda device: Watched(watch))
    monkeypatch.setattr("octavo.engine.executor.inline.has_streams", lambda device: True)
    return watch


def no_model(batch: Batch) -> Yield:
    """Padding is for GPUs: the kernels of a CPU would write its cells somewhere."""
    seen = batch.token_ids[:, None] + batch.positions[:, None] * torch.arange(VOCAB_SIZE)
    return seen, (seen % 19).float()[batch.logits_rows]


@pytest.fixture
def recorder(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> FakeRecorder:
    recorder = Unseen(watch)
    monkeypatch.setattr(launching, "memory_of", lambda device: FakeMemory())
    monkeypatch.setattr(launching, "GpuRecorder", lambda device: recorder)
    monkeypatch.setattr(launching, "Eager", lambda model, kv: watch.exempt(no_model))
    return recorder


def calls_and_copies(
    folder: Path, watch: Watch, count: int, *, recorded: bool = False, **kind: Any
) -> tuple[int, int]:
    """Calls of torch, and copies to the device, of a step of `count` sequences that decode: beside
    the model's, or beside what is replayed."""
    config = tiny_config(folder, overlap="on", max_num_seqs=count, max_num_batched_tokens=128)
    executor = InlineExecutor(config, launch)
    capacity = executor.start(lambda *_: None)
    engine = Engine(Scheduler(config, capacity), executor, overlap=capacity.overlap)
    runner: Any = executor._runner
    if not recorded:
        runner.computer._forwards = watch.exempt(runner.computer._forwards)
    while recorded and engine.improve():
        pass
    for i in range(count):
        sampling = SamplingParams(max_tokens=40, ignore_eos=True, **kind)
        engine.add(request(f"r{i}", range(2 + i, 10 + i), seed=i, sampling=sampling))
    for _ in range(5):
        engine.step()
    watch.calls = watch.copies = 0
    with watch, watch.looking_away(watching=True):
        for _ in range(4):
            assert len(engine.step().deltas) == count
    calls, copies = watch.calls, watch.copies
    while not engine.idle:
        assert not [delta.error for delta in engine.step().deltas if delta.error]
    engine.stop()
    return calls // 4, copies // 4


@pytest.mark.parametrize(
    "kind",
    [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 0.8, "top_p": 0.9, "top_k": 20, "min_p": 0.01},
        {"temperature": 0.0, "logprobs": 3},
        {"presence_penalty": 0.5, "repetition_penalty": 1.2},
        {"logit_bias": {5: 1.0}, "min_tokens": 30},
        {"bad_words_ids": ((5,), (6,))},
    ],
    ids=["greedy", "drawn", "narrowed", "logprobs", "penalties", "bias", "bad tokens"],
)
def test_a_step_asks_nothing_and_costs_one_copy_and_as_many_calls_for_any_number_of_sequences(
    tmp_path: Path, watch: Watch, kind: dict[str, Any]
) -> None:
    few, many = (calls_and_copies(tmp_path, watch, count, **kind) for count in (3, 12))
    assert few == many
    calls, copies = many
    assert calls <= MOST_CALLS
    assert copies == 1


def test_with_recorded_passes_a_step_is_few_calls(
    tmp_path: Path, watch: Watch, recorder: FakeRecorder
) -> None:
    for kind in ({"temperature": 0.0}, {"temperature": 1.0}):
        few, many = (
            calls_and_copies(tmp_path, watch, count, recorded=True, **kind) for count in (3, 12)
        )
        assert few == many
        assert many[0] <= 25 and many[1] == 1
    assert recorder.replays >= 4 * 2 * 2 * 2, "of passes and of draws"


def test_guesses_travel_in_the_same_copy(
    tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a step that verifies them, which is planned when the one before has landed."""
    guess_always(monkeypatch)
    config = tiny_config(tmp_path, overlap="on", max_num_seqs=3, speculative="ngram")
    executor = InlineExecutor(config, launch)
    engine = Engine(Scheduler(config, executor.start(lambda *_: None)), executor, overlap=1)
    gathered: list[bool] = []  # by step: whether anything is guessed

    gather = Computer._gather

    def noted(*given: Any) -> Work:
        work = gather(*given)
        gathered.append(work.guesses is not None)
        return work

    monkeypatch.setattr(Computer, "_gather", noted)
    for i in range(3):
        sampling = SamplingParams(max_tokens=60, ignore_eos=True, temperature=0.0)
        engine.add(request(f"r{i}", range(2 + i, 10 + i), seed=i, sampling=sampling))
    sending = watch.sending
    monkeypatch.setattr(watch, "sending", lambda inner: watch.looking_away(True)(sending(inner)))
    while not engine.idle:
        engine.step()
    engine.stop()
    assert any(gathered)
    assert watch.copies == len(gathered)


def test_who_asks_is_caught(watch: Watch) -> None:
    tensor = torch.arange(3)
    questions: list[Callable[[], object]] = [
        lambda: tensor[1].item(),
        lambda: tensor.tolist(),
        lambda: bool(tensor.any()),
        lambda: torch.nonzero(tensor),
        lambda: tensor[tensor > 1],
        lambda: tensor.cpu(),
        lambda: torch.equal(tensor, tensor),
    ]
    for ask in questions:
        ask()
        with watch, watch.looking_away(watching=True), pytest.raises(AssertionError, match="waits"):
            ask()
