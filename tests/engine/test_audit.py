"""The block accounting, made wrong on purpose: it is noticed, mended and counted, and every answer
is what it would have been."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.engine.cache.blocks import Block, BlockPool
from octavo.engine.cache.manager import BlockManager
from octavo.engine.params import PoolingParams, Request, SamplingParams
from octavo.engine.scheduler import audits
from octavo.engine.sequence import NOWHERE, Sequence
from octavo.engine.step import Slice, SliceResult, Wants

from ..fakes.executor import FakeExecutor, PagingFault
from ..fakes.readers import Readers
from .loop import Loop, request
from .test_blocks import SIZE, compute, make_manager, make_sequence


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_mess_in_a_pool_is_mended(data: st.DataObject) -> None:
    pool = BlockPool(8)
    for block in pool.blocks:  # in whatever state, true or not
        if data.draw(st.booleans()):
            pool._unlink(block)
        block.references = data.draw(st.integers(-1, 2))
        block.fence = data.draw(st.sampled_from([None, None, 3, 4]))
        block.listed = data.draw(st.booleans())
    pool.free, pool.held, pool.behind, pool.overdrawn = (
        data.draw(st.integers(-2, 9)) for _ in range(4)
    )
    holders = Counter({i: data.draw(st.integers(0, 2)) for i in range(8)})
    assert pool.sound(holders) == (not list(pool.faults(holders)))
    before = [block.references for block in pool.blocks]
    lost = pool.mend(holders, data.draw(st.sampled_from([None, 4])))
    assert list(pool.faults(holders)) == []
    assert pool.sound(holders)
    assert lost == {i for i in range(8) if before[i] < holders[i]}
    pool.settle(4)
    assert pool.behind == 0
    assert pool.free == sum(holders[i] == 0 for i in range(8))
    given_out = {pool.take().id for _ in range(pool.free)}
    assert given_out == {i for i in range(8) if not holders[i]}


def three_blocks() -> tuple[BlockManager, Sequence, BlockPool]:
    """A sequence with two published blocks and a tail."""
    manager = make_manager(8)
    sequence = make_sequence(0, list(range(2 * SIZE + 1)))
    assert manager.attach(sequence)
    assert compute(manager, sequence)
    assert len(sequence.block_table) == 3
    manager.check([sequence])
    return manager, sequence, manager._pool


Corruption = Callable[[BlockPool, Block], object]


def swap_counts(pool: BlockPool, block: Block) -> None:
    """One holder too few here and one too many there: the sums agree."""
    block.references -= 1
    next(b for b in pool.blocks if not b.references and b is not block).references += 1


CORRUPTIONS: dict[str, tuple[Corruption, str, bool, bool]] = {
    # what is done, how it is told, whether sums tell it, whether the block may be overwritten
    "leaked": (lambda pool, _: pool.take(), "counts 1 holders and has 0", True, False),
    "freed twice": (
        lambda pool, block: pool.release(block, None),
        "counts 0 holders and has 1",
        True,
        True,
    ),
    "freed again when free": (
        lambda pool, _: pool.release(pool._ring.next, None),
        "1 releases too many rather than 0",
        True,
        False,
    ),
    "held too often": (
        lambda pool, block: pool.hold(block),
        "counts 2 holders and has 1",
        True,
        False,
    ),
    "counts swapped": (swap_counts, "counts 0 holders and has 1", False, True),
    "marked as listed": (
        lambda pool, block: setattr(block, "listed", True),
        "is in the free list",
        False,
        False,
    ),
    "found by another name": (
        lambda pool, block: setattr(block, "digest", b"another digest"),
        "is not what it is found by",
        False,
        False,
    ),
}


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_an_audit_finds_and_mends(kind: str) -> None:
    corrupt, told, sums_tell, overwritten = CORRUPTIONS[kind]
    manager, sequence, pool = three_blocks()
    assert manager.audit([sequence], thoroughly=True) is None
    corrupt(pool, pool.blocks[sequence.block_table[0]])
    quick = manager.audit([sequence], thoroughly=False)
    assert (quick is not None) == sums_tell
    mended = quick or manager.audit([sequence], thoroughly=True)
    assert mended is not None
    assert told in "; ".join(mended.faults)
    assert mended.doubtful == ((sequence,) if overwritten else ())
    manager.check([sequence])
    manager.free(sequence)
    manager.check([])
    assert pool.free == len(pool.blocks)


def test_a_prefix_in_doubt_is_not_found_again() -> None:
    manager, sequence, pool = three_blocks()
    pool.release(pool.blocks[sequence.block_table[0]], None)  # and perhaps overwritten
    assert manager.audit([sequence], thoroughly=False)
    twin = make_sequence(0, list(range(2 * SIZE + 1)))
    assert manager.attach(twin)
    assert twin.cached_tokens == 0


def test_what_was_leaked_waits_for_the_plans_in_flight() -> None:
    manager, sequence, pool = three_blocks()
    leaked = pool.take()
    manager.take_moves(0)  # plan 0 is in flight
    assert manager.audit([sequence], thoroughly=False)
    assert (leaked.references, leaked.fence) == (0, 0)
    manager.settle(0)
    assert leaked.listed
    manager.check([sequence])


# --- with everything around it -----------------------------------------------------------------


class Device(FakeExecutor):
    """Computes nonsense where a strict fake would complain: so does a real device."""

    def __init__(self, **knobs: Any) -> None:
        super().__init__(**knobs)
        self.readers = Readers(self.capacity.block_size, lambda complaint: None)

    def _compute(self, piece: Slice) -> SliceResult:
        try:
            return super()._compute(piece)
        except PagingFault:
            wanted = piece.wants
            return SliceResult(
                sequence=piece.sequence,
                token_ids=(5,) if wanted & Wants.TOKEN else (),
                candidates=((5, -0.5), (6, -0.7)) if wanted & Wants.CANDIDATES else (),
                embedding=(1.0,) * 8 if wanted & (Wants.EMBEDDING | Wants.EMBEDDING_SUM) else (),
            )


def crowd() -> list[Request]:
    shared = list(range(100, 140))
    kinds: list[dict[str, object]] = [
        {"temperature": 1.0},
        {"temperature": 1.0, "n": 3},
        {"temperature": 0.0, "beam_width": 3},
        {"temperature": 1.0, "prompt_logprobs": 1, "logprobs": 1},
    ]
    asked = [
        request(
            f"r{i}",
            [*shared[: 8 * (i % 5)], i, i + 1, i + 2],
            seed=i,
            arrival=float(i),
            sampling=SamplingParams(max_tokens=14, ignore_eos=True, **kinds[i % 4]),  # type: ignore[arg-type]
        )
        for i in range(10)
    ]
    return [*asked, request("e", shared, pooling=PoolingParams(), arrival=3.5)]


def loop_of(depth: int) -> Loop:
    executor = Device(num_blocks=40, num_host_blocks=16, block_size=4, max_model_len=96)
    return Loop(executor, depth=depth, budget=48, checked=False)


def answers(loop: Loop) -> dict[tuple[str, int], object]:
    return {
        key: (
            c.token_ids,
            c.logprobs,
            c.prompt_logprobs,
            c.finish_reason,
            c.error,
            c.last and c.last.embedding,
        )
        for key, c in loop.choices.items()
    }


@pytest.fixture(scope="module", params=[0, 1])
def undisturbed(request: pytest.FixtureRequest) -> tuple[int, dict[tuple[str, int], object]]:
    loop = loop_of(request.param)
    loop.checked = True
    loop.run(*crowd())
    assert loop.scheduler.stats().preemptions_recompute + loop.scheduler.stats().preemptions_swap
    return request.param, answers(loop)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("thorough", [False, True])
def test_answers_are_right_whatever_happens_to_the_books(
    undisturbed: tuple[int, dict[tuple[str, int], object]],
    thorough: bool,
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    depth, expected = undisturbed
    if thorough:
        monkeypatch.setattr(audits, "_STEPS", 1)
        monkeypatch.setattr(audits, "_BLOCKS_PER_STEP", 40)
    names = [name for name, (_, _, sums_tell, _) in CORRUPTIONS.items() if sums_tell or thorough]
    draw = random.Random(seed)
    loop = loop_of(depth)
    loop.add(*crowd())
    blocks = loop.scheduler._blocks
    corrupted = 0
    while loop.scheduler.has_work or loop.in_flight:
        if draw.random() < 0.5:
            held = {b for s in loop.scheduler._roster.live.values() for b in s.block_table}
            held.discard(NOWHERE)
            if held and blocks._pool.free > 1:
                block = blocks._pool.blocks[draw.choice(sorted(held))]
                CORRUPTIONS[draw.choice(names)][0](blocks._pool, block)
                corrupted += 1
        with caplog.at_level(logging.CRITICAL):
            loop.step()
        assert loop.now < 2000
    assert answers(loop) == expected
    assert corrupted > 2
    loop.scheduler.check()
    stats = loop.scheduler.stats()
    assert stats.audit_failures > 0
    assert (stats.blocks_used, stats.host_blocks_used) == (0, 0)


def test_the_log_says_what_was_wrong_and_who_begins_anew(caplog: pytest.LogCaptureFixture) -> None:
    loop = loop_of(0)
    loop.add(*crowd()[:2])
    loop.step()
    (sequence, *_) = loop.scheduler._roster.running
    pool = loop.scheduler._blocks._pool
    block = pool.blocks[sequence.block_table[-1]]
    pool.release(block, None)
    loop.step()
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert "the block accounting was wrong and has been mended" in record.getMessage()
    # The other one was given the block meanwhile.
    assert f"device block {block.id} counts 1 holders and has 2" in record.getMessage()
    assert record.getMessage().endswith("begun anew: r0, r1")


def test_an_idle_engine_looks_at_every_block_now_and_then() -> None:
    loop = loop_of(0)
    loop.scheduler._blocks._pool.blocks[39].listed = False  # no sum tells, and nobody takes it
    failures = []
    for i in range(10):
        sampling = SamplingParams(max_tokens=52, ignore_eos=True)
        loop.add(request(f"r{i}", [1, 2], sampling=sampling))
        while loop.scheduler.has_work:
            loop.step()
        failures.append(loop.scheduler.stats().audit_failures)
    assert failures[0] == 0 and failures[-1] == 1
    loop.scheduler.check()
