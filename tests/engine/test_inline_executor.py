"""`InlineExecutor`: in order, with and without overlap, and still there after a failed step."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from octavo.engine.batch import Batch
from octavo.engine.errors import ConfigError, DoesNotFit
from octavo.engine.executor.inline import InlineExecutor
from octavo.engine.kv_cache import KVCache
from octavo.engine.models.llama import Llama
from octavo.engine.params import SamplingParams
from octavo.engine.step import History, Moves, Slice, StepPlan, Wants

from .tiny import BLOCK_BYTES, MAX_LENGTH, VOCAB_SIZE, tiny_config


def quiet(stage: str, done: int, total: int) -> None:
    pass


def plan(number: int, position: int) -> StepPlan:
    """Step `number` of one sampled sequence that began with three tokens."""
    if position > 2:
        return StepPlan(
            number=number,
            slices=(Slice(sequence=1, start=position, count=1, wants=Wants.TOKEN),),
        )
    history = History(
        params=SamplingParams(temperature=1.0, max_tokens=None),
        seed=3,
        prompt_length=3,
        token_ids=(5, 6, 7),
    )
    part = Slice(sequence=1, start=0, count=3, wants=Wants.TOKEN, blocks=(4, 2), history=history)
    return StepPlan(number=number, slices=(part,))


@pytest.mark.parametrize("overlap", ["off", "on"])
def test_steps_come_back_in_order_with_the_same_tokens(tmp_path: Path, overlap: str) -> None:
    executor = InlineExecutor(tiny_config(tmp_path, overlap=overlap))
    executor.start(quiet)
    tokens = []
    executor.submit(plan(0, 0))
    for number in range(1, 12):
        if overlap == "on":  # planned before its token is known
            executor.submit(plan(number, 2 + number))
        output = executor.collect()
        assert output.number == number - 1
        assert output.seconds > 0
        tokens += output.results[0].token_ids
        if overlap == "off":
            executor.submit(plan(number, 2 + number))
    executor.collect()
    executor.stop()
    assert len(tokens) == 11
    assert tokens == alone(tmp_path)


def alone(folder: Path) -> list[int]:
    executor = InlineExecutor(
        tiny_config(folder, overlap="off", kv_memory=8 * BLOCK_BYTES, max_model_len=64)
    )
    executor.start(quiet)
    tokens: list[int] = []
    for number in range(11):
        executor.submit(plan(number, number + 2 if number else 0))
        tokens += executor.collect().results[0].token_ids
    executor.stop()
    return tokens


@pytest.mark.parametrize("overlap", ["off", "on"])
def test_a_failed_step_is_an_exception_and_the_next_one_runs(
    tmp_path: Path, overlap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = InlineExecutor(tiny_config(tmp_path, overlap=overlap))
    executor.start(quiet)
    executor.submit(plan(0, 0))
    expected = executor.collect().results[0].token_ids
    with monkeypatch.context() as broken:
        broken.setattr(KVCache, "apply", explode)
        executor.submit(replace(plan(1, 0), moves=Moves(copies=((7, 8),))))
        with pytest.raises(RuntimeError, match="the moves are wrong"):
            executor.collect()
    executor.submit(plan(2, 0))
    assert executor.collect().results[0].token_ids == expected
    executor.stop()


def explode(*_: object) -> None:
    raise RuntimeError("the moves are wrong")


def test_capacity_says_what_was_planned(tmp_path: Path) -> None:
    stages: list[str] = []
    executor = InlineExecutor(tiny_config(tmp_path, swap_space=10 * BLOCK_BYTES))
    capacity = executor.start(lambda stage, done, total: stages.append(stage))
    executor.stop()
    assert capacity.num_blocks == 64
    assert capacity.num_host_blocks == 10
    assert capacity.max_model_len == MAX_LENGTH
    assert capacity.vocab_size == VOCAB_SIZE
    assert capacity.eos_token_ids == (1,)
    assert capacity.kv_bytes == 64 * BLOCK_BYTES
    assert capacity.weight_bytes == 4 * capacity.parameters > 0
    assert (capacity.dtype, capacity.device) == ("float32", "cpu")
    assert 0 < capacity.recompute_seconds_per_token < 1
    assert 0 < capacity.swap_seconds_per_block < 1
    assert stages[-1] == "measuring"


def test_settings_that_do_not_fit_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    executor = InlineExecutor(tiny_config(tmp_path, kv_memory=3 * BLOCK_BYTES, max_model_len=200))
    with pytest.raises(DoesNotFit, match="--max-model-len 48 or --kv-memory"):
        executor.start(quiet)
    executor.stop()
    with pytest.raises(ConfigError, match="--max-model-len"):
        InlineExecutor(tiny_config(tmp_path, max_model_len=MAX_LENGTH + 1)).start(quiet)


def test_stop_can_be_called_at_any_time_and_twice(tmp_path: Path) -> None:
    executor = InlineExecutor(tiny_config(tmp_path, overlap="on"))
    executor.stop()
    executor = InlineExecutor(tiny_config(tmp_path, overlap="on"))
    executor.start(quiet)
    executor.submit(plan(0, 0))
    executor.stop()
    executor.stop()
    assert not [t for t in threading.enumerate() if t.name.startswith("octavo-compute")]
    with pytest.raises(RuntimeError):
        executor.submit(plan(1, 3))


@pytest.mark.parametrize("cores", [1, 2, 5])
def test_all_cores_compute_at_first_unless_told_otherwise(
    tmp_path: Path, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octavo.engine.worker.launch.available_cores", lambda: cores)
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    executor = InlineExecutor(tiny_config(tmp_path, threads=None, cpu_kernels="reference"))
    executor.start(quiet)
    executor.stop()
    assert chosen == [cores]


def test_threads_are_set_where_the_computing_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int]] = []
    forward = Llama.forward

    def watched(self: Llama, batch: Batch, kv: KVCache) -> torch.Tensor:
        seen.append((threading.current_thread().name, torch.get_num_threads()))
        return forward(self, batch, kv)

    monkeypatch.setattr(Llama, "forward", watched)
    config = tiny_config(tmp_path, threads=2, cpu_kernels="reference", overlap="on")
    executor = InlineExecutor(config)
    executor.start(quiet)
    executor.submit(plan(0, 0))
    executor.collect()
    executor.stop()
    assert {name.split("_")[0] for name, _ in seen} == {"octavo-compute"}
    assert {threads for _, threads in seen} == {2}


@pytest.mark.parametrize("overlap", ["off", "on"])
def test_its_callers_own_gradients_are_left_alone(tmp_path: Path, overlap: str) -> None:
    """`LLM` runs it in the thread of whoever uses it, beside training perhaps."""
    executors = [InlineExecutor(tiny_config(tmp_path, overlap=overlap)) for _ in range(2)]
    for executor in executors:
        executor.start(quiet)
        assert not torch.is_inference_mode_enabled()
    for executor in executors:
        executor.stop()
        assert not torch.is_inference_mode_enabled()
