"""Steps that are alike are padded, recorded and replayed; what comes of them is what would have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from octavo.engine.batch import Batch
from octavo.engine.core import Engine
from octavo.engine.executor.inline import InlineExecutor
from octavo.engine.params import SamplingParams
from octavo.engine.scheduler.scheduler import Scheduler
from octavo.engine.worker import launch as launching
from octavo.engine.worker.graphs import Graphed, Recording, Yield
from octavo.engine.worker.padding import Key, StaticBatch, keys_for, sizes

from .loop import guess_always, request
from .test_ledger import FakeMemory
from .tiny import VOCAB_SIZE, tiny_config

CPU = torch.device("cpu")
BLOCK = 4


class FakeRecorder:
    """Records the callable, and replays it into the tensors that it made when it was recorded."""

    def __init__(self, free: int = 1 << 40) -> None:
        self.free_bytes = free
        self.replays = 0
        self.fails_with: Exception | None = None

    def record(self, work: Callable[[], Yield]) -> tuple[Recording, Yield]:
        if self.fails_with is not None:
            raise self.fails_with
        work()
        made = work()

        def replay() -> None:
            self.replays += 1
            with torch.inference_mode():
                for place, value in zip(made, work(), strict=True):
                    place.copy_(value)

        return SimpleNamespace(replay=replay), made

    def free(self) -> int:
        return self.free_bytes


class Compute:
    """A forward pass that tells rows apart, and what it was given."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def __call__(self, batch: Batch) -> Yield:
        self.batches.append(batch)
        seen = batch.token_ids * 1000 + batch.positions + 0.5
        hidden = torch.stack((seen, batch.slot_mapping + 0.25), dim=1)
        return hidden, hidden[batch.logits_rows] * 2


def batch_of(
    contexts: list[int], queries: int = 1, *, wanted: int | None = None, mixed: bool = False
) -> Batch:
    """Slices of `queries` tokens each, the last of their contexts. `mixed`: some are searches,
    whose logits come after those that a token is drawn from."""
    rows = len(contexts)
    tokens = rows * queries
    generator = torch.Generator().manual_seed(tokens)
    width = -(-max(contexts) // BLOCK)
    order = torch.randperm(tokens, generator=generator) if mixed else torch.arange(tokens)
    return Batch(
        token_ids=torch.randint(1, 99, (tokens,), generator=generator),
        positions=torch.cat([torch.arange(c - queries, c) for c in contexts]),
        query_offsets=(torch.arange(rows + 1) * queries).int(),
        context_lengths=torch.tensor(contexts, dtype=torch.int32),
        block_tables=torch.randint(0, 50, (rows, width), generator=generator).int(),
        slot_mapping=torch.randint(0, 200, (tokens,), generator=generator),
        logits_rows=order[: tokens if wanted is None else wanted],
        query_lengths=(queries,) * rows,
        context_lengths_host=tuple(contexts),
        all_logits=not mixed and wanted is None,
    )


def graphed(
    keys: tuple[Key, ...],
    recorder: FakeRecorder | None = None,
    clock: Callable[[], float] | None = None,
) -> tuple[Graphed, Compute, FakeRecorder]:
    compute, recorder = Compute(), recorder or FakeRecorder()
    static = StaticBatch(
        rows=max(key.rows for key in keys),
        queries=max(key.queries for key in keys),
        longest=max(key.longest for key in keys),
        block_size=BLOCK,
        device=CPU,
    )
    return Graphed(compute, recorder, keys, static, clock or (lambda: 0.0)), compute, recorder


def record_all(forwards: Graphed) -> None:
    while forwards.improve(idle=True):
        pass


def test_sizes_grow_with_the_number_and_cover_it() -> None:
    assert sizes(1) == (1,)
    assert sizes(8) == (1, 2, 4, 8)
    assert sizes(100)[-2:] == (96, 104)
    assert sizes(256)[-4:] == (208, 224, 240, 256)
    assert sizes(10_000)[-2:] == (480, 512)
    assert len(sizes(512)) == 35


@given(st.integers(1, 512), st.integers(1, 512))
def test_little_is_padded(most: int, rows: int) -> None:
    known = sizes(most)
    assert known == tuple(sorted(set(known)))
    if rows <= most:
        padded = min(size for size in known if size >= rows)
        assert padded == rows or padded - rows < max(2, 8, rows / 4)


def test_large_graphs_of_short_contexts_come_first() -> None:
    keys = keys_for(100, 32_768)
    assert len(set(keys)) == len(keys)
    assert [key.longest for key in keys] == sorted(key.longest for key in keys)
    short = [key for key in keys if key.longest == 8192]
    assert [key.rows for key in short] == list(reversed(sizes(100)))
    assert max(key.rows for key in keys if key.longest == 32_768) == 64
    assert {key.longest for key in keys_for(100, 4096)} == {4096}
    assert {key.queries for key in keys_for(4, 64, (1, 5))} == {1, 5}


@given(
    st.lists(st.integers(3, 60), min_size=1, max_size=9),
    st.lists(st.integers(3, 60), min_size=1, max_size=9),
    st.sampled_from([1, 3]),
)
def test_a_replay_gives_what_the_batch_gives(
    first: list[int], second: list[int], queries: int
) -> None:
    """Also after a larger batch has been where the smaller one's padding is."""
    forwards, compute, recorder = graphed(keys_for(9, 64, (1, 3)))
    record_all(forwards)
    addresses = set()
    for number, contexts in enumerate((first, second, first), 1):
        batch = batch_of(contexts, queries)
        expected = Compute()(batch)
        got = forwards(batch)
        assert recorder.replays == number
        for ours, theirs in zip(got, expected, strict=True):
            assert torch.equal(ours, theirs)
        padded = compute.batches[-1]
        rows, tokens = len(contexts), len(batch.token_ids)
        assert (padded.slot_mapping[tokens:] == -1).all()
        addresses.add(tuple(tensor.data_ptr() for tensor in got))
        assert (padded.context_lengths[rows:] == 0).all()
        assert (padded.logits_rows < len(padded.token_ids)).all()
        assert torch.equal(padded.context_lengths[:rows], batch.context_lengths)
        width = batch.block_tables.shape[1]
        assert torch.equal(padded.block_tables[:rows, :width], batch.block_tables)
        assert padded.query_offsets.tolist() == [
            queries * i for i in range(len(padded.context_lengths) + 1)
        ]
        assert padded.query_lengths == (queries,) * len(padded.context_lengths)
    assert len(addresses) == 1  # one place for the logits of all graphs


def test_logits_come_in_the_order_in_which_they_are_wanted() -> None:
    forwards, _, recorder = graphed(keys_for(9, 64))
    record_all(forwards)
    for contexts in ([5, 9, 4, 7, 30], [3] * 7):
        batch = batch_of(contexts, mixed=True)
        for ours, theirs in zip(forwards(batch), Compute()(batch), strict=True):
            assert torch.equal(ours, theirs)
    assert recorder.replays == 2


def test_a_batch_that_lies_where_graphs_read_it_is_not_copied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forwards, _, recorder = graphed(keys_for(9, 64))
    record_all(forwards)
    static = forwards._static
    batch = batch_of([5, 9, 4])
    inputs, _, every_row = static.inputs(3, 3, 2)
    static.fill(Key(64, 4, 1), batch)
    lying = batch._replace(
        token_ids=inputs.token_ids,
        positions=inputs.positions,
        slot_mapping=inputs.slot_mapping,
        context_lengths=inputs.context_lengths,
        block_tables=inputs.block_tables[:, : batch.block_tables.shape[1]],
        logits_rows=every_row,
    )
    with monkeypatch.context() as patch:
        recording = forwards._graphs[Key(64, 4, 1)][0]
        patch.setattr(recording, "replay", lambda: None)  # which copies where the results go
        patch.setattr(Tensor, "copy_", None)
        forwards(lying)
    got, expected = forwards(lying), Compute()(batch)
    assert recorder.replays == 1
    for ours, theirs in zip(got, expected, strict=True):
        assert torch.equal(ours, theirs)
    fresh, narrow, numbers = static.inputs(100, 3, 2)  # there is no room for so many
    assert len(fresh.token_ids) == 100 and numbers.tolist() == list(range(100))
    assert narrow.shape == (3, 2) and fresh.block_tables.shape == inputs.block_tables.shape
    assert fresh.token_ids.data_ptr() != inputs.token_ids.data_ptr()


def test_recording_stores_and_attends_to_nothing() -> None:
    forwards, compute, _ = graphed((Key(64, 4, 1),))
    record_all(forwards)
    for batch in compute.batches:
        assert batch.slot_mapping.tolist() == [-1] * 4
        assert batch.context_lengths.tolist() == [0] * 4
        assert batch.context_lengths_host == (64,) * 4


@pytest.mark.parametrize(
    "batch",
    [
        batch_of([5, 9], 2),  # no graph of two tokens each
        batch_of([5, 9], wanted=1),  # one of them wants no logits
        batch_of([5, 70]),  # longer than any graph's context
        batch_of([5] * 9),  # more than any graph has
    ],
    ids=["queries", "wants", "context", "rows"],
)
def test_what_no_graph_is_for_is_computed_as_it_is(batch: Batch) -> None:
    forwards, compute, recorder = graphed(keys_for(8, 64))
    record_all(forwards)
    forwards(batch)
    assert compute.batches[-1] is batch
    assert recorder.replays == 0


def test_ragged_slices_are_computed_as_they_are() -> None:
    forwards, compute, recorder = graphed(keys_for(8, 64, (1, 2)))
    record_all(forwards)
    ragged = batch_of([5, 9], 2)._replace(query_lengths=(1, 3))
    forwards(ragged)
    assert compute.batches[-1] is ragged and recorder.replays == 0


def test_a_busy_server_records_what_it_needs_most_now_and_then() -> None:
    now = [0.0]
    forwards, _, recorder = graphed(keys_for(8, 64), clock=lambda: now[0])
    assert (forwards.recorded, forwards.planned) == (0, 4)
    for _ in range(15):
        forwards(batch_of([5] * 3))
        assert forwards.improve(idle=False)
    assert forwards.recorded == 0
    forwards(batch_of([5] * 3))
    forwards.improve(idle=False)
    assert forwards.recorded == 1
    forwards(batch_of([5] * 4))
    assert recorder.replays == 1  # the graph of four is what three needed
    for _ in range(40):
        forwards(batch_of([5]))
        forwards.improve(idle=False)
    assert forwards.recorded == 1  # not yet: the last was just now
    now[0] += 1.5
    forwards.improve(idle=False)
    assert forwards.recorded == 2
    record_all(forwards)
    assert forwards.recorded == forwards.planned == 4
    assert not forwards.improve(idle=True)


def test_without_memory_the_larger_ones_are_given_up_then_all(
    caplog: pytest.LogCaptureFixture,
) -> None:
    recorder = FakeRecorder()
    forwards, _, _ = graphed(keys_for(64, 64), recorder)
    recorder.fails_with = torch.OutOfMemoryError("CUDA out of memory")
    assert forwards.improve(idle=True)
    assert "the GPU's memory does not suffice" in caplog.text
    recorder.fails_with = None
    assert forwards.improve(idle=True)
    assert forwards.recorded == 1
    forwards(batch_of([5] * 20))
    assert recorder.replays == 1
    recorder.free_bytes = 1 << 20
    assert not forwards.improve(idle=True)
    assert forwards.recorded == forwards.planned == 1
    forwards(batch_of([5] * 20))  # what there is stays in use
    assert recorder.replays == 2


@pytest.mark.parametrize("reserved, level", [(39, "WARNING"), (40, "INFO")])
def test_what_graphs_take_is_held_against_what_was_reserved(
    reserved: int, level: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    mib = 1 << 20

    class Filling(FakeRecorder):
        def record(self, work: Callable[[], Yield]) -> tuple[Recording, Yield]:
            self.free_bytes -= 10 * mib
            return super().record(work)

    static = StaticBatch(rows=8, queries=1, longest=64, block_size=BLOCK, device=CPU)
    keys = keys_for(8, 64)
    record_all(Graphed(Compute(), Filling(), keys, static, reserved=reserved * mib))
    told = caplog.records[-1]
    assert told.levelname == level
    assert f"they take 40.0 MiB of the GPU's memory, and {reserved}.0 MiB were" in told.message


def test_what_cannot_be_recorded_is_told_and_computed(caplog: pytest.LogCaptureFixture) -> None:
    recorder = FakeRecorder()
    recorder.fails_with = RuntimeError("operation not permitted when stream is capturing")
    forwards, compute, _ = graphed(keys_for(8, 64), recorder)
    assert not forwards.improve(idle=True)
    assert "graphs are not used" in caplog.text
    batch = batch_of([5])
    forwards(batch)
    assert compute.batches[-1] is batch and forwards.planned == 0


def draw(logits: Tensor, temperature: Tensor, seeds: Tensor, positions: Tensor) -> Yield:
    """Something of all four that tells rows apart."""
    mixed = logits.sum(1) + temperature * 3 + seeds * 5 + positions * 7
    return mixed, mixed + 1


def test_a_draw_is_replayed_from_the_logits_of_the_last_replay() -> None:
    forwards, compute, recorder = graphed(keys_for(8, 64))
    static = StaticBatch(rows=8, queries=1, longest=64, block_size=BLOCK, device=CPU)
    forwards = Graphed(compute, recorder, keys_for(8, 64), static, lambda: 0.0, draw=draw)
    record_all(forwards)
    for count in (5, 8, 2, 5):
        batch = batch_of([9] * count)
        _, logits = forwards(batch)
        replays = recorder.replays
        numbers = (
            torch.linspace(0, 1, count),
            torch.arange(count) + 10,
            torch.arange(count) * 2,
        )
        drawn = forwards.draw(logits, *numbers)
        assert drawn is not None and recorder.replays == replays + 1
        expected = draw(logits, *numbers)
        for got, wanted in zip(drawn, expected, strict=True):
            assert torch.equal(got, wanted)
        assert forwards.draw(logits.clone(), *numbers) is None  # not where the graph reads
        some = forwards.draw(logits[:1], *(n[:1] for n in numbers))  # the rest was searched
        assert some is not None and torch.equal(some[0], expected[0][:1])
    _, logits = forwards(batch_of([70]))
    assert forwards.draw(logits, *(n[:1] for n in numbers)) is None  # that was no replay


PROMPTS = (3, 20, 17, 9)  # tokens; four, because Drafts rounds what three may guess down


def prompt(number: int, length: int) -> list[int]:
    return [(7 * i + number) % (VOCAB_SIZE - 2) + 2 for i in range(length)]


class Knowing:
    """A proposer that knows what will be said."""

    def __init__(self, texts: list[list[int]]) -> None:
        self._texts = texts

    def propose(self, known: npt.NDArray[np.int32], most: int) -> tuple[int, ...]:
        begin = known.tolist()
        texts = [text for text in self._texts if text[: len(begin)] == begin]
        return tuple(texts[0][len(begin) : len(begin) + 3]) if texts else ()


def answers(
    folder: Path, *, record_after: int | None, proposer: Knowing | None = None
) -> tuple[dict[str, list[int]], FakeRecorder]:
    """Tokens of a few requests by the GPU's kernels; graphs are recorded after so many steps, or
    never."""
    config = tiny_config(
        folder,
        max_num_seqs=4,
        max_num_batched_tokens=64,
        overlap="on",
        speculative="none" if proposer is None else "ngram",
        num_speculative_tokens=3,
    )
    recorder = FakeRecorder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launching, "memory_of", lambda device: FakeMemory())
        patch.setattr(launching, "GpuRecorder", lambda device: recorder)
        patch.setattr(launching, "proposer_for", lambda config: proposer)
        patch.setattr("octavo.engine.models.base.Model.replayable", record_after is not None)
        providers = {"cpu": ("cuda", "reference")}
        executor = InlineExecutor(config, partial(launching.launch, providers=providers))
        engine = Engine(Scheduler(config, executor.start(lambda *_: None)), executor, overlap=1)
    got: dict[str, list[int]] = {}
    for number, length in enumerate(PROMPTS):
        tokens = prompt(number, length)
        params = SamplingParams(temperature=0.8 * (number % 2), max_tokens=8, ignore_eos=True)
        got[f"r{number}"] = []
        engine.add(request(f"r{number}", tokens, seed=number, sampling=params))
    steps = 0
    while not engine.idle:
        report = engine.step()
        steps += 1
        if steps == record_after:
            while engine.improve():
                pass
        for delta in report.deltas:
            assert delta.error is None
            got[delta.request_id] += delta.token_ids
    if record_after is not None:
        graphs = 3 if proposer is None else 6
        assert report.stats.graphs_recorded == report.stats.graphs_planned == graphs
    engine.stop()
    return got, recorder


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton does not interpret beside a GPU")
def test_an_engine_that_replays_gives_the_same_tokens(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    expected, _ = answers(tmp_path, record_after=None)
    got, recorder = answers(tmp_path, record_after=3)
    assert recorder.replays >= 6  # of forward passes, and as many of draws
    assert got == expected


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton does not interpret beside a GPU")
def test_drafts_of_one_length_are_verified_by_a_replay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built, attended to, drawn and compared by the GPU's kernels."""
    pytest.importorskip("triton")
    expected, _ = answers(tmp_path, record_after=None)
    used: Counter[int] = Counter()  # replays, by tokens of a slice
    plain = Graphed.__call__

    def counted(self: Graphed, batch: Batch) -> Yield:
        made = plain(self, batch)
        if self._replayed is not None:
            used[self._replayed.queries] += 1
        return made

    monkeypatch.setattr(Graphed, "__call__", counted)
    guess_always(monkeypatch)
    texts = [[*prompt(i, length), *expected[f"r{i}"]] for i, length in enumerate(PROMPTS)]
    got, _ = answers(tmp_path, record_after=1, proposer=Knowing(texts))
    assert got == expected
    assert used[4] > 0, used
