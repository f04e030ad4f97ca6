"""A step's arrays travel as one copy, and a buffer is not written while it is still being read."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from octavo.engine.transfer import Pinned, Shared, Transfer, beside, together, transfer_to

from ..fakes.streams import LateStream

CPU = torch.device("cpu")
ARRAYS = (
    np.arange(5, dtype=np.int64),
    np.arange(6, dtype=np.int32).reshape(2, 3),
    np.zeros((0, 4), dtype=np.int32),
    np.array([0.5, -1.5, float("inf")], dtype=np.float32),
    np.array([True, False, True]),
)


class FakeMarker:
    """Remembers what was asked of it, in the order of all markers of its log."""

    def __init__(self, log: list[tuple[str, int]], number: int) -> None:
        self._log, self._number = log, number

    def record(self) -> None:
        self._log.append(("record", self._number))

    def wait(self) -> None:
        self._log.append(("follow", self._number))

    def synchronize(self) -> None:
        self._log.append(("wait", self._number))


class NoStream:
    """Its work is done at once."""

    def __enter__(self) -> None: ...

    def __exit__(self, *raised: object) -> None: ...

    def synchronize(self) -> None: ...


def pinned(log: list[tuple[str, int]], buffers: int = 2) -> Pinned:
    made = iter(range(100))
    return Pinned(CPU, lambda: FakeMarker(log, next(made)), NoStream(), buffers=buffers)


@pytest.mark.parametrize("transfer", [Shared(), pinned([])], ids=["shared", "pinned"])
def test_what_is_sent_arrives_and_comes_back(transfer: Transfer) -> None:
    sent = transfer.send(*ARRAYS)
    for tensor, array in zip(sent, ARRAYS, strict=True):
        assert tensor.numpy().dtype == array.dtype
        np.testing.assert_array_equal(tensor.numpy(), array)
    for back, array in zip(transfer.receive(*sent)(), ARRAYS, strict=True):
        assert back.dtype == array.dtype
        np.testing.assert_array_equal(back, array)


@given(st.lists(st.integers(0, 50), max_size=6), st.sampled_from([np.int8, np.int32, np.int64]))
def test_every_array_is_aligned(lengths: list[int], dtype: npt.DTypeLike) -> None:
    arrays = [np.full(length, i, dtype=dtype) for i, length in enumerate(lengths)]
    tensors = pinned([]).send(*arrays)
    for tensor, array in zip(tensors, arrays, strict=True):
        assert tensor.storage_offset() * tensor.element_size() % 16 == 0
        np.testing.assert_array_equal(tensor.numpy(), array)


def test_what_was_sent_does_not_change_with_the_array() -> None:
    array = np.arange(4)
    (tensor,) = pinned([]).send(array)
    array[:] = 9
    assert tensor.tolist() == [0, 1, 2, 3]


def test_a_buffer_is_filled_again_only_when_its_copy_is_done() -> None:
    log: list[tuple[str, int]] = []
    transfer = pinned(log)
    for _ in range(3):
        transfer.send(np.arange(3))
    first, second = log[0][1], log[2][1]
    assert first != second
    assert log == [
        ("wait", first),
        ("record", first),
        ("wait", second),
        ("record", second),
        ("wait", first),
        ("record", first),
    ]


def test_buffers_grow_and_the_old_one_is_waited_for() -> None:
    log: list[tuple[str, int]] = []
    transfer = pinned(log, buffers=1)
    transfer.send(np.arange(3))
    large = np.arange(100_000)
    (tensor,) = transfer.send(large)
    assert np.array_equal(tensor.numpy(), large)
    assert log[:3] == [("wait", 0), ("record", 0), ("wait", 0)]
    assert log[3][0] == "record" and log[3][1] != 0


def test_results_are_read_when_the_device_has_written_them() -> None:
    log: list[tuple[str, int]] = []
    transfer = pinned(log)
    arrived = transfer.receive(torch.ones(3), torch.zeros(2, dtype=torch.int64))
    begun = ["wait", "record", "follow", "record"]
    assert [what for what, _ in log] == begun, "nobody waits before it is asked for"
    arrived()
    assert [what for what, _ in log] == [*begun, "wait"]


def test_results_come_beside_the_next_step_which_may_write_where_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = LateStream(monkeypatch)
    transfer = Pinned(CPU, stream.marker, stream)
    given = torch.tensor([3, 4])
    arrived = transfer.receive(given)
    assert len(stream.waiting) == 1, "it goes by the side stream ..."
    events = [(where, what) for where, what, _ in stream.events[-4:]]
    assert events == [
        ("main", "record"),
        ("side", "wait"),  # ... when the main one has come so far
        ("side", "copy"),
        ("side", "record"),
    ]
    assert stream.events[-4][2] == stream.events[-3][2]
    given.fill_(9)  # a graph's next replay
    assert arrived()[0].tolist() == [3, 4]


def test_a_cpu_needs_no_copies() -> None:
    assert isinstance(transfer_to(CPU), Shared)
    array = np.arange(3)
    (tensor,) = transfer_to(CPU).send(array)
    assert tensor.data_ptr() == array.ctypes.data


def test_results_that_nobody_has_read_yet_are_not_written_over() -> None:
    log: list[tuple[str, int]] = []
    transfer = pinned(log)
    first, second = transfer.receive(torch.tensor([1, 2])), transfer.receive(torch.tensor([3]))
    (third,) = transfer.receive(torch.tensor([4]))()
    assert [first()[0].tolist(), second()[0].tolist(), third.tolist()] == [[1, 2], [3], [4]]
    made = {number for _, number in log}
    assert transfer.receive(torch.tensor([5]))()[0].tolist() == [5]
    assert {number for _, number in log} == made, "a buffer that was read is used again"


def test_what_is_beside_already_is_not_copied() -> None:
    array = np.arange(3)
    assert beside(array, torch.zeros(1)).data_ptr() == array.ctypes.data
    tensor = torch.ones(2)
    assert beside(tensor, torch.zeros(1)) is tensor


def test_what_goes_to_a_device_goes_from_page_locked_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[object] = []

    def pinned_memory(tensor: torch.Tensor) -> torch.Tensor:
        asked.append("pinned")
        return tensor

    def to(tensor: torch.Tensor, *where: object, **how: object) -> torch.Tensor:
        asked.append((*where, how))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pinned_memory)
    monkeypatch.setattr(torch.Tensor, "to", to)
    beside(np.arange(3), torch.zeros(1, device="meta"))
    assert asked == ["pinned", (torch.device("meta"), {"non_blocking": True})]


def test_several_arrays_go_in_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    empty = torch.empty

    def to(tensor: torch.Tensor, *where: object, **how: object) -> torch.Tensor:
        asked.append((*where, how))
        return tensor

    def unpinned(*shape: int, **how: object) -> torch.Tensor:
        asked.append(how.pop("pin_memory"))
        return empty(*shape, **how)  # type: ignore[call-overload,no-any-return]

    rows = np.zeros(1, dtype=[("whether", np.bool_), ("number", np.int64)])
    arrays = (*ARRAYS, np.arange(20).reshape(4, 5)[:, 1], rows["number"])
    for like in (torch.zeros(1), torch.zeros(1, device="meta")):
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "to", to)
            patch.setattr(torch, "empty", unpinned)
            made = together(like, *arrays)
        for tensor, array in zip(made, arrays, strict=True):
            np.testing.assert_array_equal(tensor.numpy(), array)
    assert asked == [True, (torch.device("meta"), {"non_blocking": True})]
