"""From plans to tensors and back: the sequence table, the batch, the runner."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.engine.batch import Batch
from octavo.engine.device import step_limits
from octavo.engine.kv_cache import KVCache
from octavo.engine.params import SamplingParams
from octavo.engine.scheduler.scheduler import Scheduler
from octavo.engine.step import History, Moves, Slice, SliceResult, StepPlan, Wants
from octavo.engine.transfer import Shared
from octavo.engine.worker.computer import Computer
from octavo.engine.worker.gathering import Work, follow, gather
from octavo.engine.worker.inputs import FromHost, Inputs
from octavo.engine.worker.launch import launch
from octavo.engine.worker.padding import StaticBatch
from octavo.engine.worker.resident import Resident
from octavo.engine.worker.runner import Runner
from octavo.engine.worker.sequences import SequenceTable
from octavo.kernels.reference import step as reference

from .loop import request
from .tiny import tiny_config

GREEDY = SamplingParams(temperature=0.0, max_tokens=None)
BLOCK = 4


def history(tokens: list[int], params: SamplingParams = GREEDY, prompt: int = 0) -> History:
    return History(
        params=params, seed=5, prompt_length=prompt or len(tokens), token_ids=tuple(tokens)
    )


def lay_out(table: SequenceTable, *slices: Slice, retired: tuple[int, ...] = ()) -> Work:
    table.forget(retired)
    work = gather(slices, table)
    table.check()
    return work


def resident(table: SequenceTable, *, tokens: int = 20) -> Resident:
    """Inputs as a device makes them; larger steps than of `tokens` have no place there."""
    return Resident(table, BLOCK, Shared(), reference.build_step, room(tokens))


def room(tokens: int) -> StaticBatch:
    return StaticBatch(
        rows=4, queries=1, longest=60, block_size=BLOCK, device=torch.device("cpu"), room=tokens
    )


def test_a_step_is_as_large_as_suits_the_device_where_nobody_says(tmp_path: Path) -> None:
    assert step_limits(torch.device("cuda")) == (256, 8192)
    config = tiny_config(tmp_path)
    _, capacity = launch(config, lambda *_: None)
    limits = capacity.max_num_seqs, capacity.max_num_batched_tokens
    assert limits == step_limits(torch.device("cpu")) == (64, 2048)
    scheduler = Scheduler(config, replace(capacity, max_num_seqs=2, max_num_batched_tokens=5))
    for name in "abc":
        scheduler.add(request(name, range(2, 4)), 0.0)
    first = scheduler.schedule(0.0)
    assert first is not None and len(first.slices) == 2
    _, capacity = launch(tiny_config(tmp_path, max_num_seqs=3), lambda *_: None)
    assert (capacity.max_num_seqs, capacity.max_num_batched_tokens) == (3, 2048)


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(["on the device", "by the host", "in place"]))
def test_the_batch_is_what_the_plan_says(data: st.DataObject, made: str) -> None:
    """Against plain lists: random mixtures of chunks and decodes, over several steps."""
    table = SequenceTable(rows=2, longest=60, block_size=BLOCK)  # grows on the way
    inputs: Inputs
    if made == "on the device":
        inputs = resident(table)
    else:  # larger steps have no place there
        inputs = FromHost(table, BLOCK, Shared(), room(20) if made == "in place" else None)
    tokens: dict[int, list[int]] = {}
    blocks: dict[int, list[int]] = {}
    computed: dict[int, int] = {}
    free = iter(data.draw(st.permutations(range(400))))
    for _ in range(3):
        slices = []
        for sequence in range(data.draw(st.integers(1, 6))):
            first = sequence not in tokens
            if first:
                length = data.draw(st.integers(1, 30))
                tokens[sequence] = [100 * sequence + i for i in range(length)]
                blocks[sequence], computed[sequence] = [], 0
            appended = (1000 + len(tokens[sequence]),) if not first else ()
            tokens[sequence] += appended
            start = computed[sequence]
            count = data.draw(st.integers(1, len(tokens[sequence]) - start))
            told = len(blocks[sequence])
            while len(blocks[sequence]) * BLOCK < start + count:
                blocks[sequence].append(next(free))
            computed[sequence] = start + count
            slices.append(
                Slice(
                    sequence=sequence,
                    start=start,
                    count=count,
                    wants=data.draw(st.sampled_from([*Wants, Wants(5), Wants(6)])),
                    token_ids=appended,
                    first_block=told,
                    blocks=tuple(blocks[sequence][told:]),
                    history=history(tokens[sequence]) if first else None,
                )
            )
        work = lay_out(table, *slices)
        sent = inputs.send(work.layout, (work.contexts, work.rows))
        table.keep(work.rows, work.known)
        check_batch(sent.batch(), slices, tokens, blocks)
        assert [other.tolist() for other in sent.others] == [[*work.contexts], [*work.rows]]
        assert [slices[i].wants & Wants.TOKEN for i in work.sampling] == [1] * len(work.sampling)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 30))
def test_a_device_makes_what_the_host_would(seed: int) -> None:
    """A life of sequences that come, run a step ahead, are given tokens and blocks, leave, and are
    met again, with steps that are given up: each batch is the host's."""
    draw = random.Random(seed)
    table = SequenceTable(rows=1, longest=60, block_size=BLOCK)
    device, host = resident(table), FromHost(table, BLOCK, Shared())
    computed: dict[int, int] = {}  # by sequence
    ahead: tuple[Work, torch.Tensor] | None = None
    names = iter(range(1000))
    blocks = iter(range(100_000))

    def land() -> None:
        assert ahead is not None
        work, sampled = ahead
        table.keep(work.rows, work.known)
        at = work.sampling
        table.append(work.rows[at], sampled.numpy())

    for _ in range(40):
        if ahead is not None and draw.random() < 0.15:  # its step has failed
            table.rewind()
            for part in ahead[0].slices:
                computed[part.sequence] = part.start
            ahead = None
        for sequence in [s for s in computed if draw.random() < 0.1]:
            if ahead is None or sequence not in {part.sequence for part in ahead[0].slices}:
                table.forget((sequence,))
                del computed[sequence]
        slices = []
        for sequence in [s for s in computed if draw.random() < 0.8]:
            row = table._row_of[sequence]
            length = int(table.lengths[row])
            start = computed[sequence]
            if start < length < 58:
                count = draw.randint(1, length - start)
                first = -(-start // BLOCK)
                more = max(0, -(-(start + count) // BLOCK) - first)
                fresh = tuple(next(blocks) for _ in range(more))
                wants = Wants.TOKEN if start + count == length else Wants.NOTHING
                slices.append(Slice(sequence, start, count, wants, first_block=first, blocks=fresh))
        if len(computed) < 6:
            name, length = next(names), draw.randint(1, 25)
            count = draw.randint(1, length)
            start = draw.randint(0, length - count) // BLOCK * BLOCK
            fresh = tuple(next(blocks) for _ in range(-(-(start + count) // BLOCK)))
            wants = Wants.TOKEN if start + count == length else Wants.NOTHING
            tokens = [draw.randrange(1000) for _ in range(length)]
            slices.append(Slice(name, start, count, wants, blocks=fresh, history=history(tokens)))
        if not slices:
            continue
        if ahead is None and draw.random() < 0.2:  # what is sent of it never arrives
            device.send(gather(slices, table).layout)
            table.rewind()
        work = gather(slices, table)
        sent = device.send(work.layout)
        twin = gather([part._replace(history=None) for part in slices], table)
        sent_by_host = host.send(twin.layout)
        ours, theirs = sent.batch(), sent_by_host.batch()
        for name_ in ("token_ids", "positions", "query_offsets", "context_lengths"):
            assert torch.equal(getattr(ours, name_), getattr(theirs, name_)), name_
        assert torch.equal(ours.slot_mapping, theirs.slot_mapping)
        assert torch.equal(ours.logits_rows, theirs.logits_rows)
        assert ours.block_tables.shape == theirs.block_tables.shape
        for i, context in enumerate(work.contexts.tolist()):
            used = -(-context // BLOCK)
            assert torch.equal(ours.block_tables[i, :used], theirs.block_tables[i, :used])
        for part in slices:
            computed[part.sequence] = part.start + part.count
        sampled = torch.tensor([draw.randrange(1000) for _ in work.sampling], dtype=torch.int64)
        device.remember(sent.targets, sampled)
        host.remember(sent_by_host.targets, sampled)
        table.promise(work.rows[work.sampling])
        if ahead is not None:
            land()
        ahead = work, sampled
        if draw.random() < 0.3:
            land()
            ahead = None
            alive = list(computed)
            if alive and draw.random() < 0.5:  # a grammar forces what follows
                sequence = draw.choice(alive)
                table.extend(table._row_of[sequence], (7, 8))
        table.check()


def same(one: object, other: object) -> bool:
    """Tuples of arrays and plain values."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return np.array_equal(one, other)
    return one == other


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 30))
def test_work_that_follows_is_what_would_be_gathered(seed: int) -> None:
    """Sequences decode side by side, now and then a step ahead; in between they come, go, pause,
    change places, are given tokens, guess, fail, or want something else."""
    draw = random.Random(seed)
    table = SequenceTable(rows=2, longest=400, block_size=BLOCK)
    length: dict[int, int] = {}  # by sequence
    names, blocks = iter(range(1000)), iter(range(100_000))
    before: Work | None = None
    flying: list[Work] = []
    followed = 0

    def land() -> None:
        work = flying.pop(0)
        table.keep(work.rows, work.known)
        table.append(work.rows[work.sampling], 10 * work.contexts[work.sampling])

    def decode(sequence: int) -> Slice:
        start = length[sequence] - 1
        fresh = (next(blocks),) if start % BLOCK == 0 else ()
        return Slice(sequence, start, 1, Wants.TOKEN, first_block=start // BLOCK, blocks=fresh)

    for _ in range(40):
        event = draw.choice(
            ["come", "go", "pause", "turn", "tokens", "guess", "fail", *["on"] * 20]
        )
        while flying and (event != "on" or len(flying) > 1 or draw.random() < 0.5):
            land()
        if event == "fail":
            table.rewind()
        living = list(length)
        if event == "go" and living:
            table.forget((living[0],))
            del length[living.pop(0)]
        if event == "pause":
            living = living[1:]
        if event == "turn":
            length = dict(reversed(length.items()))
            living.reverse()
        slices = [decode(sequence) for sequence in living]
        if event == "come" or not slices:
            name, count = next(names), draw.randint(1, 6)
            fresh = tuple(next(blocks) for _ in range(-(-count // BLOCK)))
            told = history(list(range(count)))
            slices.append(Slice(name, 0, count, Wants.TOKEN, blocks=fresh, history=told))
            length[name] = count
        if event == "tokens":
            slices[0] = slices[0]._replace(token_ids=(7,) if slices[0].history is None else ())
        if event == "guess" and slices[0].start % BLOCK < BLOCK - 1 and slices[0].history is None:
            slices[0] = slices[0]._replace(draft=(5,), count=2)
        work = None if before is None else follow(before, slices, table)
        fresh_work = gather(slices, table)
        if work is not None:
            assert same(work, fresh_work)
            followed += 1
        before = work or fresh_work
        if event in ("tokens", "guess"):  # was not to be: it had been told of its last token
            table.rewind()
            continue
        table.promise(before.rows[before.sampling])
        flying.append(before)
        for part in slices:
            length[part.sequence] += 1
        table.check()
    assert followed


def test_nothing_follows_a_step_that_yielded_less_than_it_promised() -> None:
    table = SequenceTable(rows=2, longest=20, block_size=BLOCK)
    first = Slice(1, 0, 2, Wants.TOKEN, blocks=(0,), history=history([1, 2]))
    table.promise(lay_out(table, first).rows)
    work = lay_out(table, Slice(1, 2, 1, Wants.TOKEN))
    table.promise(work.rows)
    then = Slice(1, 3, 1, Wants.TOKEN)
    assert follow(work, [then], table) is not None
    table.break_promise(work.rows)
    assert follow(work, [then], table) is None
    assert set(lay_out(table, then).failed) == {1}


def check_batch(
    batch: Batch, slices: list[Slice], tokens: dict[int, list[int]], blocks: dict[int, list[int]]
) -> None:
    ids, positions, slots, offsets, sampled, searched = [], [], [], [0], [], []
    for i, part in enumerate(slices):
        where = range(part.start, part.start + part.count)
        ids += [tokens[part.sequence][p] for p in where]
        positions += list(where)
        slots += [blocks[part.sequence][p // BLOCK] * BLOCK + p % BLOCK for p in where]
        offsets.append(len(ids))
        sampled += [len(ids) - 1] * bool(part.wants & Wants.TOKEN)
        searched += [len(ids) - 1] * bool(part.wants & Wants.CANDIDATES)
        context = part.start + part.count
        used = blocks[part.sequence][: -(-context // BLOCK)]
        assert batch.block_tables[i, : len(used)].tolist() == used
        assert batch.context_lengths_host[i] == context
        assert batch.query_lengths[i] == part.count
    assert batch.token_ids.tolist() == ids
    assert batch.positions.tolist() == positions
    assert batch.slot_mapping.tolist() == slots
    assert batch.query_offsets.tolist() == offsets
    assert batch.logits_rows.tolist() == sampled + searched
    assert batch.context_lengths.tolist() == list(batch.context_lengths_host)
    dtypes = [getattr(batch, name).dtype for name in ("token_ids", "positions", "slot_mapping")]
    assert dtypes == [torch.int64] * 3
    assert batch.query_offsets.dtype == batch.block_tables.dtype == torch.int32


def test_what_lacks_its_past_is_left_out_alone() -> None:
    table = SequenceTable(rows=4, longest=20, block_size=BLOCK)
    whole = Slice(sequence=1, start=0, count=2, blocks=(0,), history=history([1, 2]))
    work = lay_out(
        table,
        Slice(sequence=7, start=3, count=1),  # never introduced
        whole,
        Slice(sequence=2, start=1, count=2, blocks=(1,), history=history([1, 2])),  # no third token
        Slice(
            sequence=3, start=4, count=1, blocks=(2,), history=history([1, 2, 3, 4, 5])
        ),  # blocks
    )
    assert work.slices == (whole,)
    sent = FromHost(table, BLOCK, Shared()).send(work.layout)
    assert sent.batch().token_ids.tolist() == [1, 2]
    assert set(work.failed) == {7, 2, 3}


def test_rows_are_given_back_and_used_again() -> None:
    table = SequenceTable(rows=2, longest=20, block_size=BLOCK)

    def introduce(sequence: int) -> Slice:
        return Slice(sequence=sequence, start=0, count=1, blocks=(0,), history=history([sequence]))

    for sequence in range(0, 40, 2):
        lay_out(table, introduce(sequence), introduce(sequence + 1))
        lay_out(table, retired=(sequence, sequence + 1, 999))
    assert len(table) == 0
    assert len(table.lengths) == 2


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[Runner]:
    torch.set_num_threads(1)
    yield launch(tiny_config(tmp_path), lambda stage, done, total: None)[0]


def one(runner: Runner, number: int, *slices: Slice, **more: object) -> list[SliceResult]:
    output = runner.execute(StepPlan(number=number, slices=slices, **more))  # type: ignore[arg-type]
    assert output.number == number
    assert [r.sequence for r in output.results] == [s.sequence for s in slices]
    return list(output.results)


def start(sequence: int, tokens: list[int], params: SamplingParams = GREEDY) -> Slice:
    blocks = tuple(range(8 * sequence, 8 * sequence + 8))
    return Slice(
        sequence=sequence,
        start=0,
        count=len(tokens),
        wants=Wants.TOKEN,
        blocks=blocks,
        history=history(tokens, params),
    )


def decode(sequence: int, position: int, wants: Wants = Wants.TOKEN) -> Slice:
    return Slice(sequence=sequence, start=position, count=1, wants=wants)


def generate(runner: Runner, sequence: int, tokens: list[int], steps: int) -> list[int]:
    """Greedy tokens of one sequence, alone."""
    output = list(one(runner, 0, start(sequence, tokens))[0].token_ids)
    for _ in range(steps - 1):
        position = len(tokens) + len(output) - 1
        output += one(runner, 0, decode(sequence, position))[0].token_ids
    one(runner, 0, retired=(sequence,))
    return output


def test_a_failed_step_can_be_run_again(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same plan, after an exception at the worst moment, gives what it would have given."""
    params = SamplingParams(
        temperature=1.0, frequency_penalty=1.0, repetition_penalty=1.3, max_tokens=None
    )
    plans = [(start(0, [5, 6, 7], params), start(1, [8, 9], params))]
    plans += [(decode(0, 3 + i), decode(1, 2 + i)) for i in range(6)]
    expected = [one(runner, i, *slices) for i, slices in enumerate(plans)]
    one(runner, 0, retired=(0, 1))
    for i, slices in enumerate(plans):
        with monkeypatch.context() as broken:
            broken.setattr(Computer, "_keep", explode)
            with pytest.raises(RuntimeError, match="at the worst moment"):
                runner.computer.compute(slices)
        assert one(runner, i, *slices) == expected[i]


def explode(*_: object) -> None:
    raise RuntimeError("at the worst moment")


def test_a_token_brought_by_a_failed_step_is_not_counted_twice(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beam search brings its tokens from the planner."""
    beam = SamplingParams(beam_width=2, n=1, frequency_penalty=1.0, max_tokens=None)
    brought = Slice(sequence=0, start=3, count=1, wants=Wants.CANDIDATES, token_ids=(9,))
    results = []
    for fail in (False, True):
        one(runner, 0, start(0, [5, 6, 7], beam))
        one(runner, 0, retired=(0,))
        first = start(0, [5, 6, 7], beam)
        one(runner, 0, first._replace(wants=Wants.CANDIDATES))
        if fail:
            with monkeypatch.context() as broken:
                broken.setattr(Computer, "_keep", explode)
                with pytest.raises(RuntimeError):
                    runner.computer.compute([brought])
        results.append(one(runner, 1, brought))
        assert len(results[-1][0].candidates) == 4
        one(runner, 0, retired=(0,))
    assert results[0] == results[1]


def test_logits_that_are_not_finite_fail_their_sequence_alone(runner: Runner) -> None:
    healthy = generate(runner, 0, [5, 6, 7], 5)
    weights = {p.name: p.tensor for p in runner.computer._model.parameters()}
    weights["model.embed_tokens.weight"][90] = float("nan")
    results = one(runner, 0, start(0, [5, 6, 7]), start(1, [5, 7, 90]))
    assert results[0].token_ids == tuple(healthy[:1])
    assert results[1].error == "the model's logits are not finite"
    assert not results[1].token_ids
    # With one step of overlap the next plan names the failed sequence once more.
    results = one(runner, 1, decode(0, 3), decode(1, 3))
    assert results[0].token_ids == tuple(healthy[1:2])
    assert results[1].error is not None
    one(runner, 2, retired=(0, 1))


def test_a_chunked_prompt_gives_the_same_tokens(runner: Runner) -> None:
    tokens = [(7 * i) % 90 + 2 for i in range(50)]
    whole = generate(runner, 0, tokens, 6)
    first = start(0, tokens)
    one(runner, 0, first._replace(count=20, wants=Wants.NOTHING))
    one(runner, 1, Slice(sequence=0, start=20, count=29))
    output = list(one(runner, 2, decode(0, 49))[0].token_ids)
    for _ in range(5):
        output += one(runner, 3, decode(0, 49 + len(output)))[0].token_ids
    assert output == whole


def test_prompt_logprobs_do_not_depend_on_chunks(runner: Runner) -> None:
    tokens = [(5 * i) % 90 + 2 for i in range(40)]
    params = SamplingParams(temperature=0.0, prompt_logprobs=2, max_tokens=None)
    both = Wants.TOKEN | Wants.PROMPT_LOGPROBS
    first = start(0, tokens, params)
    (whole,) = one(runner, 0, first._replace(wants=both))
    assert len(whole.prompt_logprobs) == 39
    assert [named.token_id for named in whole.prompt_logprobs] == tokens[1:]
    one(runner, 0, retired=(0,))
    chunk = first._replace(count=15, wants=Wants.PROMPT_LOGPROBS)
    (a,) = one(runner, 0, chunk)
    (b,) = one(runner, 1, Slice(sequence=0, start=15, count=25, wants=both))
    assert (len(a.prompt_logprobs), len(b.prompt_logprobs)) == (15, 24)
    for got, expected in zip(
        a.prompt_logprobs + b.prompt_logprobs, whole.prompt_logprobs, strict=True
    ):
        assert got.logprob == pytest.approx(expected.logprob, abs=1e-5)
        assert (got.token_id, got.rank) == (expected.token_id, expected.rank)
    assert b.token_ids == whole.token_ids


def test_prompt_logprobs_are_computed_a_few_at_a_time(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = SamplingParams(temperature=0.0, prompt_logprobs=1, max_tokens=None)
    part = start(0, list(range(2, 42)), params)._replace(wants=Wants.PROMPT_LOGPROBS)
    (whole,) = one(runner, 0, part)
    rows: list[int] = []
    logits = runner.computer._model.logits

    def counted(hidden: torch.Tensor) -> torch.Tensor:
        rows.append(len(hidden))
        return logits(hidden)

    monkeypatch.setattr(runner.computer._model, "logits", counted)
    monkeypatch.setattr("octavo.engine.worker.computer._SCORING_BYTES", 4 * 96 * 10)
    (few,) = one(runner, 0, part)
    assert rows == [10, 10, 10, 9]
    assert [n.token_id for n in few.prompt_logprobs] == [n.token_id for n in whole.prompt_logprobs]


def embedded(sequence: int, tokens: list[int], wants: Wants) -> Slice:
    return start(sequence, tokens)._replace(wants=wants)


def test_a_slice_yields_its_hidden_states_whatever_is_beside_it(runner: Runner) -> None:
    """The sum over its positions is what its positions yield one by one; the last is the last."""
    tokens = [5, 6, 7, 8]
    slices = [embedded(0, tokens[:1], Wants.EMBEDDING)]
    for i, token in enumerate(tokens[1:], 1):
        slices.append(
            Slice(sequence=0, start=i, count=1, token_ids=(token,), wants=Wants.EMBEDDING)
        )
    single = [torch.tensor(one(runner, i, part)[0].embedding) for i, part in enumerate(slices)]
    one(runner, 4, retired=(0,))
    crowd = one(
        runner,
        5,
        start(1, [9, 10, 11]),
        embedded(2, tokens, Wants.EMBEDDING_SUM),
        embedded(3, tokens, Wants.EMBEDDING),
        start(4, [12]),
    )
    assert [bool(result.embedding) for result in crowd] == [False, True, True, False]
    total, last = (torch.tensor(result.embedding) for result in crowd[1:3])
    torch.testing.assert_close(total, torch.stack(single).sum(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(last, single[-1], atol=1e-5, rtol=0)
    assert [bool(result.token_ids) for result in crowd] == [True, False, False, True]


def test_hidden_states_that_are_not_finite_fail_their_sequence_alone(runner: Runner) -> None:
    weights = {p.name: p.tensor for p in runner.computer._model.parameters()}
    weights["model.embed_tokens.weight"][90] = float("nan")
    results = one(
        runner,
        0,
        embedded(0, [5, 90, 6], Wants.EMBEDDING_SUM),
        embedded(1, [5, 6], Wants.EMBEDDING_SUM),
    )
    assert results[0].error == "the model's hidden states are not finite"
    assert not results[0].embedding
    assert results[1].embedding and results[1].error is None


def test_moves_come_before_compute_and_in_order(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block copied, and the original given to somebody else, in one step: both are right."""
    expected = generate(runner, 0, [5, 6, 7, 8, 9], 4)
    one(runner, 0, start(0, [5, 6, 7, 8, 9]))
    fork = Slice(
        sequence=2,
        start=5,
        count=1,
        wants=Wants.TOKEN,
        blocks=(20,),
        history=History(
            params=GREEDY, seed=1, prompt_length=5, token_ids=(5, 6, 7, 8, 9, expected[0])
        ),
    )
    stranger = start(3, [11, 12, 13])._replace(blocks=(0,))
    results = one(runner, 1, fork, stranger, moves=Moves(copies=((0, 20),)), retired=(0,))
    assert results[0].token_ids == (expected[1],)
    output = [expected[1], *one(runner, 2, decode(2, 6))[0].token_ids]
    assert output == expected[1:3]


def test_a_plan_without_slices_only_forgets(runner: Runner) -> None:
    one(runner, 0, start(0, [5]), start(1, [6]))
    assert one(runner, 1, retired=(0, 1)) == []
    runner.computer._table.check()
    assert len(runner.computer._table) == 0


def test_kv_cache_is_not_touched_before_it_is_used(tmp_path: Path) -> None:
    """A large cache costs address space at start-up, not seconds and not memory."""

    def resident() -> int:
        words = Path("/proc/self/statm").read_text().split()
        return int(words[1]) * 4096

    before = resident()
    runner, capacity = launch(
        tiny_config(tmp_path, kv_memory=512 << 20, max_num_seqs=100_000), lambda *_: None
    )
    assert capacity.kv_bytes > 400 << 20
    assert resident() - before < 300 << 20
    kv: KVCache = runner._kv
    assert not bool(kv.layers[0][-1].any())
