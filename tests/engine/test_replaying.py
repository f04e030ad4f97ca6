"""On a CPU steps of decodes are replayed; each is, bitwise, what it would have been."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from octavo.engine.batch import Batch
from octavo.engine.config import EngineConfig
from octavo.engine.core import Engine
from octavo.engine.executor.inline import InlineExecutor
from octavo.engine.params import SamplingParams
from octavo.engine.scheduler.scheduler import Scheduler
from octavo.engine.worker import launch as launching
from octavo.engine.worker.graphs import Eager, Forwards, Yield
from octavo.engine.worker.padding import StaticBatch
from octavo.engine.worker.replaying import Replayed
from octavo.kernels import registry
from octavo.kernels.cpu.library import levels
from octavo.kernels.ops import Ops, Recorder

from .loop import request
from .tiny import BLOCK_BYTES, CONFIG, VOCAB_SIZE, tiny_config

CPU = torch.device("cpu")
FAMILIES: dict[str, dict[str, object]] = {
    "llama": {"architectures": ["LlamaForCausalLM"], "attention_bias": True, "mlp_bias": True},
    "mistral": {"architectures": ["MistralForCausalLM"], "sliding_window": 9},
    "qwen2": {
        "architectures": ["Qwen2ForCausalLM"],
        "use_sliding_window": True,
        "sliding_window": 7,
        "max_window_layers": 1,
        "tie_word_embeddings": True,
    },
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "tie_word_embeddings": True},
}


pytestmark = pytest.mark.skipif(not levels(), reason="only our own kernels are replayed")


@dataclass(slots=True)
class Compared:
    """Forward passes that are all computed twice, the second time kernel by kernel."""

    forwards: Replayed
    eager: Eager
    steps: Counter[str] = field(default_factory=Counter)

    recorded = property(lambda self: self.forwards.recorded)
    planned = property(lambda self: self.forwards.planned)
    learning = property(lambda self: self.forwards.learning)

    def __call__(self, batch: Batch) -> Yield:
        before = self.forwards.replays
        made = self.forwards(batch)
        kept = [tensor.clone() for tensor in made]
        for got, expected in zip(kept, self.eager(batch), strict=True):
            assert torch.equal(got, expected)
        self.steps["replayed" if self.forwards.replays > before else "eager"] += 1
        return made

    def draw(self, *given: object) -> tuple[Tensor, Tensor] | None:
        return self.forwards.draw(*given)  # type: ignore[arg-type]

    def improve(self, *, idle: bool) -> bool:
        return self.forwards.improve(idle=idle)


def engine_of(
    config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> tuple[Engine, InlineExecutor, list[Compared]]:
    """An engine each of whose steps is compared."""
    compared: list[Compared] = []

    def make(eager: Eager, recorder: Recorder, static: StaticBatch) -> Forwards:
        compared.append(Compared(Replayed(eager, recorder, static), eager))
        return compared[-1]

    monkeypatch.setattr(launching, "Replayed", make)
    executor = InlineExecutor(config, launching.launch)
    scheduler = Scheduler(config, executor.start(lambda *_: None))
    return Engine(scheduler, executor, overlap=int(config.overlap == "on")), executor, compared


def answers(engine: Engine, lengths: dict[int, int]) -> dict[str, list[int]]:
    """What is said to prompts that come one after the other, of so many tokens to so long ones."""
    said: dict[str, list[int]] = {}
    waiting = list(lengths.items())
    steps = 0
    while waiting or not engine.idle:
        if waiting and steps % 3 == 0:
            length, count = waiting.pop(0)
            name = f"{length} tokens"
            said[name] = []
            prompt = [(7 * i + length) % (VOCAB_SIZE - 2) + 2 for i in range(length)]
            params = SamplingParams(
                temperature=0.9 * (length % 2), max_tokens=count, ignore_eos=True
            )
            engine.add(request(name, prompt, seed=length, sampling=params))
        report = engine.step()
        steps += 1
        for delta in report.deltas:
            assert delta.error is None
            said[delta.request_id] += delta.token_ids
    engine.stop()
    assert [len(tokens) for tokens in said.values()] == list(lengths.values())
    return said


LENGTHS = {3: 30, 20: 12, 17: 25, 40: 8, 5: 40, 8: 33}


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
def test_a_replayed_step_is_the_step(
    family: dict[str, object],
    dtype: str,
    quantization: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = tiny_config(
        tmp_path,
        dtype=dtype,
        quantization=quantization,
        max_num_seqs=4,
        itl_target=0.0,
        speculative="none",
    )
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, **family}))
    engine, _, (compared,) = engine_of(config, monkeypatch)
    answers(engine, LENGTHS)
    assert compared.recorded == compared.planned == 4
    assert compared.steps["replayed"] > 2 * compared.steps["eager"]


@pytest.mark.parametrize("overlap", ["off", "on"])
def test_nothing_is_said_otherwise(
    overlap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory for less than all: sequences give way, and are swapped or computed again."""
    said = []
    for eager in (True, False):
        config = tiny_config(
            tmp_path,
            max_num_seqs=6,
            overlap=overlap,
            enforce_eager=eager,
            kv_memory=9 * BLOCK_BYTES,
            max_model_len=64,
            swap_space=4 * BLOCK_BYTES,
            itl_target=0.0,
        )
        engine, _, compared = engine_of(config, monkeypatch)
        said.append(answers(engine, LENGTHS))
        assert len(compared) == (not eager)
        if compared:
            assert compared[0].steps["replayed"] > 20
    assert said[0] == said[1]


def test_threads_may_change_between_replays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ops = registry.resolve(CPU)
    before, plain = torch.get_num_threads(), Compared.__call__

    def with_others(self: Compared, batch: Batch) -> Yield:
        ops.set_threads(self.steps.total() % 4 + 1)
        return plain(self, batch)

    monkeypatch.setattr(Compared, "__call__", with_others)
    config = tiny_config(tmp_path, max_num_seqs=3, speculative="none")
    engine, _, (compared,) = engine_of(config, monkeypatch)
    answers(engine, LENGTHS)
    assert compared.steps["replayed"] > 50
    ops.set_threads(before)


def test_a_replay_that_fails_is_computed_in_halves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = answers(
        engine_of(tiny_config(tmp_path, max_num_seqs=4, enforce_eager=True), monkeypatch)[0],
        LENGTHS,
    )
    engine, _, (compared,) = engine_of(tiny_config(tmp_path, max_num_seqs=4), monkeypatch)
    plain, failed = Compared.__call__, Counter[int]()

    def sometimes(self: Compared, batch: Batch) -> Yield:
        made = plain(self, batch)
        rows = len(batch.query_lengths)
        failed[rows] += 1
        if rows > 1 and failed[rows] % 5 == 0:
            raise MemoryError("cannot allocate memory")
        return made

    monkeypatch.setattr(Compared, "__call__", sometimes)
    assert answers(engine, LENGTHS) == expected
    assert "could be computed in smaller parts" in caplog.text
    assert compared.steps["replayed"] > 50


def test_eager_is_eager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for settings in (
        {"enforce_eager": True},
        {"attention_backend": "torch"},
        {"cpu_kernels": "reference"},
    ):
        engine, _, compared = engine_of(tiny_config(tmp_path, **settings), monkeypatch)
        answers(engine, {4: 6})
        assert not compared


def test_a_cache_of_8_bits_is_attended_to_by_torch_and_not_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config(tmp_path, kv_cache_dtype="fp8")
    engine, _, (compared,) = engine_of(config, monkeypatch)
    answers(engine, {4: 9, 7: 5})
    assert compared.recorded == 0 and not compared.steps["replayed"]
    told = [r for r in caplog.records if "kernel by kernel" in r.getMessage()]
    assert len(told) == 1 and "operation of torch's" in told[0].getMessage()


# --- without an engine ---------------------------------------------------------------------------


class Norms:
    """A forward pass of one norm, that may depend on more than it should."""

    recorded = planned = 0

    def __init__(self, ops: Ops) -> None:
        self._ops = ops
        self._weight, self._table = torch.ones(8), torch.rand(50, 8)
        self.reads_values = False
        self.calls = 0

    def __call__(self, batch: Batch) -> Yield:
        self.calls += 1
        epsilon = float(batch.token_ids.numpy()[0]) if self.reads_values else 1e-5
        hidden = self._ops.take_rows(self._table, batch.token_ids)
        return hidden, self._ops.rms_norm(hidden, self._weight, epsilon)


def batch_of(token_ids: list[int], *, all_logits: bool = True) -> Batch:
    rows = len(token_ids)
    return Batch(
        token_ids=torch.tensor(token_ids),
        positions=torch.full((rows,), 3),
        query_offsets=torch.arange(rows + 1).int(),
        context_lengths=torch.full((rows,), 4).int(),
        block_tables=torch.arange(2 * rows).int().view(rows, 2),
        slot_mapping=torch.arange(rows),
        logits_rows=torch.arange(rows if all_logits else rows - 1),
        query_lengths=(1,) * rows,
        context_lengths_host=(4,) * rows,
        all_logits=all_logits,
    )


@pytest.fixture
def norms() -> Norms:
    return Norms(registry.resolve(CPU))


def replayed(norms: Norms, most: int = 8) -> Replayed:
    static = StaticBatch(rows=most, queries=1, longest=64, block_size=16, device=CPU)
    recorder = registry.resolve(CPU).recorder()
    return Replayed(norms, recorder, static)  # type: ignore[arg-type]


def test_a_number_of_sequences_is_replayed_when_it_comes_up_the_third_time(norms: Norms) -> None:
    forwards = replayed(norms)
    for count in (3, 5, 3, 5, 3, 5, 3):
        batch = batch_of(list(range(count)))
        hidden, logits = forwards(batch)
        assert torch.equal(logits, norms(batch)[1]) and torch.equal(hidden, norms(batch)[0])
    assert (forwards.recorded, forwards.planned, forwards.replays) == (2, 2, 3)


def test_other_steps_are_computed_as_ever(norms: Norms) -> None:
    forwards = replayed(norms, most=4)
    for batch in (batch_of([1, 2, 3], all_logits=False), batch_of([1, 2, 3, 4, 5])):
        for _ in range(4):
            forwards(batch)
    assert forwards.recorded == forwards.replays == 0


def test_what_depends_on_values_is_never_replayed(
    norms: Norms, caplog: pytest.LogCaptureFixture
) -> None:
    """It looked at them behind torch's back."""
    forwards = replayed(norms)
    for _ in range(3):
        forwards(batch_of([1]))
    assert forwards.replays == 1
    norms.reads_values = True
    for token in range(9):
        batch = batch_of([token + 1, token + 2])
        assert torch.equal(forwards(batch)[1], norms(batch)[1])
    assert forwards.recorded == 0 and forwards.replays == 1
    (told,) = caplog.records
    assert "a replayed one of 2 sequences was not the same" in told.getMessage()


def test_what_is_no_number_is_compared_all_the_same(norms: Norms) -> None:
    norms._table.fill_(float("nan"))
    forwards = replayed(norms)
    for _ in range(3):
        assert forwards(batch_of([1]))[1].isnan().all()
    assert forwards.replays == 1


def test_an_error_while_recording_is_the_steps(
    norms: Norms, monkeypatch: pytest.MonkeyPatch
) -> None:
    forwards = replayed(norms)
    with monkeypatch.context() as patch:
        patch.setattr(norms, "_table", None)
        with pytest.raises(AttributeError):
            forwards(batch_of([1, 2]))
    for _ in range(3):
        _, logits = forwards(batch_of([1, 2]))
        assert torch.equal(logits, norms(batch_of([1, 2]))[1])
    assert forwards.replays == 1
