"""Memory for weights and the KV cache."""

from __future__ import annotations

import mmap
import weakref
from pathlib import Path

import pytest
import torch

from octavo.kernels import memory
from octavo.kernels.memory import Arena, Workspace, populate, zeros


@pytest.mark.parametrize("shape", [(0, 3), (5,), (3, 7, 11), (1 << 11, 1 << 10)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.uint8])
def test_it_is_a_tensor_of_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = zeros(shape, dtype)
    assert (tensor.shape, tensor.dtype) == (shape, dtype)
    assert tensor.is_contiguous() and not tensor.any()
    assert tensor.data_ptr() % 64 == 0


def test_it_is_there_as_long_as_something_views_it() -> None:
    part = zeros((1 << 20,), torch.float32)[1000:1004]
    part.fill_(7)
    others = [zeros((1 << 20,), torch.float32).fill_(1) for _ in range(3)]
    assert part.tolist() == [7.0] * 4 and len(others) == 3


def test_an_arena_gives_zeros_that_share_nothing_but_their_mapping() -> None:
    arena = Arena()
    tensors = [arena.zeros((3, 5 + i), torch.uint8) for i in range(3)]
    tensors += [arena.zeros((0, 2), torch.float32), arena.zeros((40 << 20,), torch.uint8)]
    tensors += [arena.zeros((20 << 20,), torch.uint8) for _ in range(4)]  # more than one mapping
    for value, tensor in enumerate(tensors, 1):
        assert not tensor.any() and tensor.data_ptr() % 64 == 0
        tensor.fill_(value)
    assert all((tensor == value).all() for value, tensor in enumerate(tensors, 1))
    assert [tensors[i + 1].data_ptr() - tensors[i].data_ptr() for i in range(2)] == [64, 64]


Mappings = list[weakref.ref[mmap.mmap]]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Mappings:
    """The mappings that are made."""
    made: Mappings = []

    def pages(size: int) -> mmap.mmap:
        mapping = mmap.mmap(-1, size)
        made.append(weakref.ref(mapping))
        return mapping

    monkeypatch.setattr(memory, "_pages", pages)
    return made


def test_a_mapping_of_an_arena_is_given_back_with_its_last_tensor(made: Mappings) -> None:
    arena = Arena()
    tensors = [arena.zeros((1 << 20,), torch.float32).fill_(7) for _ in range(2)]
    assert len(made) == 1
    del tensors[0]
    assert made[0]() is not None and tensors[0].eq(7).all()
    tensors.clear()
    assert made[0]() is None
    assert arena.zeros((5,), torch.float32).tolist() == [0.0] * 5 and len(made) == 2


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def test_a_part_gets_its_memory_before_it_is_written() -> None:
    tensor = zeros((64 << 20,), torch.uint8)
    tensor[(1 << 20) + 5] = 7
    before = resident()
    if not populate(tensor[1 << 20 : 33 << 20]):
        pytest.skip("the system does not populate")
    assert 24 << 20 < resident() - before < 40 << 20
    assert tensor.sum() == 7 and tensor[(1 << 20) + 5] == 7


def test_a_workspace_gives_out_what_nothing_views_any_more() -> None:
    workspace = Workspace()
    first = workspace.empty((1 << 10, 1 << 10), torch.float32)
    address, part = first.data_ptr(), first[3:5].fill_(7)
    del first
    second = workspace.empty((1 << 10, 1 << 10), torch.float32).fill_(1)
    assert second.data_ptr() != address and (part == 7).all()
    del part
    smaller = workspace.empty((1 << 10, 1000), torch.float32)
    assert smaller.data_ptr() == address
    assert (smaller.shape, smaller.dtype) == ((1 << 10, 1000), torch.float32)
    assert workspace.empty((3, 0), torch.bfloat16).shape == (3, 0)


def test_a_workspace_keeps_as_many_pieces_as_were_there_at_once(made: Mappings) -> None:
    workspace = Workspace()
    for rows in (200, 100, 300, 400, 150, 400, 300):
        x = workspace.empty((rows, 1000), torch.bfloat16)
        x = workspace.empty((rows, 2000), torch.bfloat16)  # the other one still there
        del x
    kept = sorted(len(mapping) for made_one in made if (mapping := made_one()) is not None)
    assert len(kept) == 2 and kept[0] >= 400 * 2000 and kept[1] >= 400 * 4000
