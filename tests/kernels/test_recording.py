"""Work that is done again from a recording is the work, and what cannot be is refused."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from octavo.kernels.cpu.library import levels
from octavo.kernels.ops import NotRecordable, Recorder

from .providers import find, with_threads

LEVELS = levels()
DTYPES = [torch.float32, torch.bfloat16]
ROWS, SIZE, WIDE = 50, 36, 64
Work = Callable[[Tensor, Tensor], tuple[Tensor, ...]]


def made(level: str) -> Recorder:
    recorder: Recorder = find(level, "recorder")()
    return recorder


def chain(level: str, dtype: torch.dtype) -> Work:
    """Most kinds of arguments, an operation in place, and memory that is used more than once."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    take_rows, rms_norm = find(level, "take_rows"), find(level, "rms_norm")
    add_rms_norm, silu_mul = find(level, "add_rms_norm"), find(level, "silu_mul")
    matrix, weight = normal(ROWS, SIZE), normal(SIZE)
    up = find(level, "pack_linear")(normal(2 * SIZE, SIZE), normal(2 * SIZE))
    down = find(level, "pack_quantized")(normal(SIZE, SIZE), None, 8)
    gates = find(level, "pack_quantized")(normal(2 * WIDE, SIZE), normal(2 * WIDE), 4)
    back = find(level, "pack_linear")(normal(SIZE, WIDE), None)

    def work(ids: Tensor, _: Tensor) -> tuple[Tensor, ...]:
        x = take_rows(matrix, ids)
        residual = torch.zeros(x.shape, dtype=torch.float32)
        add_rms_norm(x, residual, weight, 1e-5)
        x = rms_norm(x, weight, 1e-5)
        for _layer in range(3):
            x = add_rms_norm(down(silu_mul(up(x))), residual, weight, 1e-6)
            x = add_rms_norm(back.addend(gates.gated(x, silu_mul)), residual, weight, 1e-6)
        return x, down.wide(x)

    return work


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_replay_does_the_work_with_what_is_there_now(level: str, dtype: torch.dtype) -> None:
    work, recorder = chain(level, dtype), made(level)
    for rows in (1, 7, 40):
        ids = torch.zeros(rows, dtype=torch.int64)
        recording, results = recorder.record(lambda ids=ids: work(ids, ids))
        for expected, got in zip(work(ids, ids), results, strict=True):
            assert torch.equal(expected, got)
        for threads in (1, 3, 2):
            ids.copy_(
                torch.randint(0, ROWS, (rows,), generator=torch.Generator().manual_seed(rows))
            )
            with with_threads(level, threads):
                recording.replay()
            for expected, got in zip(work(ids, ids), results, strict=True):
                assert expected.dtype == got.dtype and torch.equal(expected, got)


ALONE = """
import sys, torch
from octavo.kernels.cpu.offer import offer
ops = offer(sys.argv[1])
matrix, ids = torch.ones(3, 4), torch.tensor([2])
_, (row,) = ops["recorder"]().record(lambda: (ops["take_rows"](matrix, ids),))
assert row.tolist() == [[1.0] * 4]
print("torch._dynamo" in sys.modules)
"""


@pytest.mark.parametrize("level", LEVELS[:1])
def test_torch_does_not_load_its_compiler_to_record(level: str) -> None:
    """It takes seconds, and whoever is being answered then would wait for them."""
    made(level)  # or there is no C++ compiler
    command = [sys.executable, "-c", ALONE, level]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


@pytest.mark.parametrize("level", LEVELS[:1])
def test_recordings_share_their_memory_and_yet_do_not_disturb_each_other(level: str) -> None:
    work, recorder = chain(level, torch.float32), made(level)
    recorded = {}
    places = set()
    for rows in (40, 3, 2, 33):
        ids = torch.arange(rows)
        recorded[rows] = (ids, *recorder.record(lambda ids=ids: work(ids, ids)))
        places |= {result.data_ptr() for result in recorded[rows][2]}
    assert len(places) <= 6  # of two sizes, each for three tensors that are there at a time
    for rows in (2, 40, 3, 33, 2, 40):
        ids, recording, results = recorded[rows]
        recording.replay()
        for expected, got in zip(work(ids, ids), results, strict=True):
            assert torch.equal(expected, got)


@pytest.mark.parametrize("level", LEVELS[:1])
def test_memory_is_used_again_when_the_last_view_of_it_is_gone(level: str) -> None:
    recorder, take_rows = made(level), find(level, "take_rows")
    matrix, ids = torch.arange(64.0).view(16, 4), torch.arange(16)
    seen: list[int] = []

    def work() -> tuple[Tensor, ...]:
        column = take_rows(matrix, ids).view(4, 16)[1:]  # all that is left of the first
        for _ in range(3):
            seen.append(take_rows(matrix, ids).data_ptr())
        seen.append(column.untyped_storage().data_ptr())
        return (column,)

    recording, (column,) = recorder.record(work)
    assert seen[0] == seen[1] == seen[2] != seen[3]
    matrix.neg_()
    recording.replay()
    assert torch.equal(column, matrix.view(4, 16)[1:])


X = torch.ones(4, SIZE)
UNSEEN: dict[str, Callable[[Tensor], object]] = {
    "torch computes": lambda x: x + 1,
    "torch computes in place": lambda x: x.add_(1),
    "torch fills": lambda x: torch.full((2,), 3.0),
    "torch copies": lambda x: x.new_empty(x.shape).copy_(x),
    "torch copies for a layout": lambda x: x.t().contiguous(),
    "torch gathers": lambda x: x[torch.tensor([0])],
    "a value is read": lambda x: x[0, 0].item(),
    "a value decides": lambda x: bool(x[0, 0] > 0),
    "values are read": lambda x: x.tolist(),
}


@pytest.mark.parametrize("level", LEVELS[:1])
@pytest.mark.parametrize("does", UNSEEN.values(), ids=UNSEEN.keys())
def test_what_would_not_be_done_again_is_refused(
    level: str, does: Callable[[Tensor], object]
) -> None:
    recorder, rms_norm = made(level), find(level, "rms_norm")

    def work() -> tuple[Tensor, ...]:
        x = rms_norm(X, torch.ones(SIZE), 1e-5)
        does(x)
        return (x,)

    with pytest.raises(NotRecordable):
        recorder.record(work)
    # And nobody is left listening.
    weight = torch.ones(SIZE)
    recording, (out,) = recorder.record(lambda: (rms_norm(X, weight, 1e-5),))
    recording.replay()
    assert torch.equal(out, rms_norm(X, weight, 1e-5))


@pytest.mark.parametrize("level", LEVELS[:1])
def test_functions_that_cannot_be_called_from_a_list_are_refused(level: str) -> None:
    recorder = made(level)
    set_threads, weight = find(level, "set_threads"), torch.ones(4, 4)
    before = torch.get_num_threads()
    with pytest.raises(NotRecordable, match="set_threads"):
        recorder.record(lambda: (set_threads(2), weight)[1:])
    set_threads(before)
    with pytest.raises(NotRecordable, match="no op"):
        recorder.record(lambda: (weight,))


@pytest.mark.parametrize("level", LEVELS[:1])
def test_what_other_threads_compute_meanwhile_is_not_in_it(level: str) -> None:
    work, recorder = chain(level, torch.float32), made(level)
    ids = torch.arange(5)
    others = torch.zeros(3, SIZE)
    weight, residual = torch.ones(SIZE), torch.zeros(3, SIZE)
    add_rms_norm = find(level, "add_rms_norm")

    def beside() -> tuple[Tensor, ...]:
        def adds() -> None:
            add_rms_norm(others + 1, residual, weight, 1e-5)

        thread = threading.Thread(target=adds)
        thread.start()
        thread.join()
        return work(ids, ids)

    recording, results = recorder.record(beside)
    assert (residual == 1).all()
    recording.replay()
    assert (residual == 1).all()
    for expected, got in zip(work(ids, ids), results, strict=True):
        assert torch.equal(expected, got)


def test_plain_torch_records_nothing() -> None:
    with pytest.raises(NotRecordable, match="torch"):
        find("reference", "recorder")()


@pytest.mark.parametrize("provider", ["reference", *LEVELS])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.int8])
def test_take_rows(provider: str, dtype: torch.dtype) -> None:
    matrix = torch.arange(60).view(12, 5).to(dtype)
    for ids in ([], [11], [3, 3, 0, 11, 7]):
        rows = find(provider, "take_rows")(matrix, torch.tensor(ids, dtype=torch.int64))
        assert rows.shape == (len(ids), 5) and rows.tolist() == [matrix[i].tolist() for i in ids]
    strided = torch.arange(12)[::3]
    assert torch.equal(find(provider, "take_rows")(matrix, strided), matrix[::3])


@pytest.mark.parametrize("level", LEVELS)
def test_take_rows_stays_within_the_matrix(level: str) -> None:
    rows = find(level, "take_rows")(torch.ones(3, 4), torch.tensor([-1, 2, 3, 1 << 60]))
    assert rows.sum(-1).tolist() == [0, 4, 0, 0]
