"""Block pool, prefix index and block manager: each promise by itself, then all at random."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from octavo.engine.cache.blocks import BlockPool
from octavo.engine.cache.manager import BlockManager
from octavo.engine.cache.prefix import chain_digest, pack, root_digest
from octavo.engine.params import SamplingParams
from octavo.engine.sequence import NOWHERE, Sequence
from octavo.engine.step import Moves, Wants

from .loop import request

SIZE = 4


def make_sequence(number: int, tokens: list[int], *, salt: str = "", room: int = 1000) -> Sequence:
    asked = request(f"r{number}", tokens, cache_salt=salt, sampling=SamplingParams(max_tokens=room))
    limit = len(tokens) + room
    return Sequence(
        id=number, request=asked, seed=1, token_ids=list(tokens), limit=limit, end=limit - 1
    )


def make_manager(blocks: int = 16, host: int = 8, caching: bool = True) -> BlockManager:
    return BlockManager(
        num_blocks=blocks, num_host_blocks=host, block_size=SIZE, prefix_caching=caching
    )


def compute(manager: BlockManager, sequence: Sequence, count: int | None = None) -> bool:
    """What the scheduler does for a slice, with the step committed at once."""
    count = sequence.pending if count is None else count
    if not manager.reserve(sequence, count):
        return False
    sequence.computed += count
    manager.publish(sequence, sequence.computed)
    return True


def assert_sound(pool: BlockPool) -> None:
    """List, fence and counts agree with each other."""
    assert not list(pool.faults(Counter({block.id: block.references for block in pool.blocks})))


class TestPool:
    def test_what_holds_nothing_is_given_out_before_what_holds_a_prefix(self) -> None:
        pool = BlockPool(4)
        taken = [pool.take() for _ in range(4)]
        taken[1].digest = b"old"
        taken[2].digest = b"new"
        for block in taken:
            pool.release(block, None)
        order = [pool.take().id for _ in range(4)]
        assert order == [taken[3].id, taken[0].id, taken[1].id, taken[2].id]
        with pytest.raises(IndexError):
            pool.take()

    def test_a_free_block_is_held_again_from_the_middle_of_the_list(self) -> None:
        pool = BlockPool(3)
        taken = [pool.take() for _ in range(3)]
        for block in taken:
            pool.release(block, None)
        pool.hold(taken[1])
        assert_sound(pool)
        assert pool.free == 2 and pool.used == 1
        assert {pool.take().id, pool.take().id} == {taken[0].id, taken[2].id}

    def test_the_fence_keeps_a_block_until_its_step_is_settled(self) -> None:
        pool = BlockPool(1)
        block = pool.take()
        pool.release(block, 7)
        assert (pool.free, pool.behind, pool.used) == (0, 1, 0)
        pool.settle(6)
        assert pool.free == 0
        pool.settle(7)
        assert (pool.free, pool.behind) == (1, 0)
        assert_sound(pool)

    def test_a_block_that_finds_a_holder_behind_the_fence_waits_for_its_newer_fence(self) -> None:
        pool = BlockPool(1)
        block = pool.take()
        pool.release(block, 1)
        pool.hold(block)
        pool.settle(1)
        assert pool.used == 1
        pool.release(block, 2)
        pool.settle(1)
        assert pool.free == 0
        pool.settle(2)
        assert pool.free == 1
        assert_sound(pool)

    def test_a_release_too_many_changes_nothing_and_is_remembered(self) -> None:
        pool = BlockPool(1)
        block = pool.take()
        pool.release(block, None)
        pool.release(block, None)
        assert (pool.free, pool.held, pool.overdrawn) == (1, 0, 1)


class TestPrefixIndex:
    def test_digests_are_the_same_in_every_process(self) -> None:
        code = (
            "from octavo.engine.cache.prefix import chain_digest, pack, root_digest;"
            "print(chain_digest(root_digest('a', 's'), pack((1, 2, 3))).hex())"
        )
        there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert there.stdout.strip() == chain_digest(root_digest("a", "s"), pack((1, 2, 3))).hex()

    def test_adapter_salt_parent_and_tokens_all_matter(self) -> None:
        digests = {
            chain_digest(root_digest(adapter, salt), pack(tokens))
            for adapter in (None, "", "a", "None")
            for salt in ("", "s")
            for tokens in ((1, 2), (1, 3), (2, 1))
        }
        assert len(digests) == 24
        assert root_digest("a", "b") != root_digest("ab", "")

    def test_a_collision_is_a_miss(self) -> None:
        manager = make_manager()
        first = make_sequence(1, list(range(9)))
        manager.attach(first)
        compute(manager, first)
        impostor = manager._pool.blocks[first.block_table[1]]
        index = manager._prefixes
        assert len(index.find(make_sequence(2, list(range(9))))) == 2
        impostor.content = bytes(len(impostor.content))
        assert len(index.find(make_sequence(2, list(range(9))))) == 1

    def test_the_first_block_of_a_content_keeps_the_place(self) -> None:
        manager = make_manager()
        twins = [make_sequence(number, list(range(5))) for number in (1, 2)]
        for twin in twins:
            manager.attach(twin)
            manager.reserve(twin, 5)
            twin.computed = 5
        for twin in twins:
            manager.publish(twin, 5)
        manager.free(twins[1])
        (found,) = manager._prefixes.find(make_sequence(3, list(range(5))))
        assert found.id == twins[0].block_table[0]
        manager.check([twins[0]])


class TestManager:
    def test_full_blocks_are_found_but_never_the_last_token(self) -> None:
        manager = make_manager()
        first = make_sequence(1, list(range(8)))
        assert manager.attach(first)
        assert compute(manager, first)
        same = make_sequence(2, list(range(8)))
        assert manager.attach(same)
        assert same.block_table == first.block_table[:1]
        assert (same.computed, same.cached_tokens) == (4, 4)
        longer = make_sequence(3, list(range(9)))
        assert len(manager._prefixes.find(longer)) == 2
        manager.check([first, same])
        assert manager.usage.prefix_hits == 4 and manager.usage.prefix_queries == 16

    def test_nothing_is_found_under_another_salt_or_with_prompt_scores_wanted(self) -> None:
        manager = make_manager()
        first = make_sequence(1, list(range(9)))
        manager.attach(first)
        compute(manager, first)
        assert not manager._prefixes.find(make_sequence(2, list(range(9)), salt="other"))
        scored = make_sequence(3, list(range(9)))
        scored.gathering = Wants.PROMPT_LOGPROBS
        assert not manager._prefixes.find(scored)

    def test_a_freed_prefix_is_found_until_its_block_is_given_out(self) -> None:
        manager = make_manager(blocks=3)
        first = make_sequence(1, list(range(9)))
        manager.attach(first)
        compute(manager, first)
        manager.free(first)
        again = make_sequence(2, list(range(9)))
        assert len(manager._prefixes.find(again)) == 2
        other = make_sequence(3, [50, 51, 52, 53, 54])
        assert manager.attach(other) and compute(manager, other)
        # The end of the old prefix went first, its beginning is still there.
        assert len(manager._prefixes.find(again)) == 1
        manager.check([other])

    def test_reserve_that_does_not_fit_changes_nothing(self) -> None:
        manager = make_manager(blocks=2)
        sequence = make_sequence(1, list(range(12)))
        assert not manager.reserve(sequence, 12)
        assert manager.shortage(sequence, 12) == 1
        assert sequence.block_table == [] and manager.usage.blocks_used == 0
        assert manager.reserve(sequence, 8)

    def test_a_shared_tail_is_copied_by_all_but_the_last_holder(self) -> None:
        manager = make_manager()
        parent = make_sequence(1, list(range(6)))
        manager.attach(parent)
        compute(manager, parent)
        children = [make_sequence(number, list(range(6))) for number in (2, 3)]
        family = [parent, *children]
        for child in children:
            manager.fork(parent, child)
        for sequence in family:
            sequence.token_ids.append(9)
            sequence.told_blocks = 2
            assert compute(manager, sequence)
        manager.check(family)
        tail = children[1].block_table[1]
        assert manager.take_moves(0) == Moves(
            copies=((tail, parent.block_table[1]), (tail, children[0].block_table[1]))
        )
        assert [sequence.told_blocks for sequence in family] == [1, 1, 2]
        assert len({sequence.block_table[0] for sequence in family}) == 1
        assert len({sequence.block_table[1] for sequence in family}) == 3

    def test_copy_on_write_that_does_not_fit_changes_nothing(self) -> None:
        manager = make_manager(blocks=2)
        parent = make_sequence(1, list(range(6)))
        manager.attach(parent)
        compute(manager, parent)
        child = make_sequence(2, list(range(7)))
        manager.fork(parent, child)
        before = list(child.block_table)
        assert not manager.reserve(child, 1)
        assert child.block_table == before and not manager.take_moves(0)

    def test_swapping_copies_only_what_is_held_alone(self) -> None:
        manager = make_manager()
        parent = make_sequence(1, list(range(8)))
        manager.attach(parent)
        compute(manager, parent)
        child = make_sequence(2, [*range(8), 20, 21])
        manager.fork(parent, child)
        compute(manager, child)
        shared, own = child.block_table[:2], child.block_table[2]
        assert manager.held_alone(child) == 1
        assert manager.swap_out(child)
        assert child.block_table == [*shared, NOWHERE]
        assert child.host_table[:2] == [NOWHERE, NOWHERE]
        host = child.host_table[2]
        assert manager.take_moves(0).swap_out == ((own, host),)
        manager.settle(0)
        manager.check([parent, child])
        child.token_ids.append(22)
        assert manager.swap_in(child)
        moves = manager.take_moves(1)
        assert moves.swap_in == ((host, child.block_table[2]),)
        assert manager.usage.host_blocks_used == 0
        manager.check([parent, child])

    def test_a_host_block_being_read_is_not_written_in_the_same_step(self) -> None:
        """Swaps out are done before swaps in."""
        manager = make_manager(blocks=4, host=1)
        first, second = make_sequence(1, [1, 2, 3]), make_sequence(2, [4, 5, 6])
        for sequence in (first, second):
            manager.attach(sequence)
            compute(manager, sequence)
        assert manager.swap_out(first)
        manager.take_moves(0)
        manager.settle(0)
        first.token_ids.append(7)
        assert manager.swap_in(first)
        assert not manager.swap_out(second)
        manager.take_moves(1)
        manager.settle(1)
        assert manager.swap_out(second)

    def test_swapping_without_room_changes_nothing(self) -> None:
        manager = make_manager(blocks=4, host=1)
        sequence = make_sequence(1, list(range(8)))
        manager.attach(sequence)
        compute(manager, sequence)
        assert not manager.swap_out(sequence)
        assert not manager.take_moves(0) and sequence.host_table == []
        manager.check([sequence])

    def test_a_swap_of_what_is_freed_before_it_was_sent_is_not_sent(self) -> None:
        manager = make_manager()
        sequence = make_sequence(1, list(range(8)))
        manager.attach(sequence)
        compute(manager, sequence)
        assert manager.swap_out(sequence)
        manager.free(sequence)
        assert not manager.take_moves(0)
        manager.check([])

    def test_trim_gives_back_the_blocks_of_rejected_positions(self) -> None:
        manager = make_manager()
        sequence = make_sequence(1, list(range(6)))
        manager.attach(sequence)
        compute(manager, sequence)
        assert manager.reserve(sequence, 5)
        sequence.computed += 5
        sequence.told_blocks = 3
        manager.trim(sequence, 7)
        assert (sequence.computed, len(sequence.block_table), sequence.told_blocks) == (7, 2, 2)
        manager.check([sequence])
        with pytest.raises(AssertionError):
            manager.trim(sequence, 3)  # the first block is published

    def test_a_sequence_waits_for_a_block_that_is_just_being_computed(self) -> None:
        manager = make_manager()
        first, second = make_sequence(1, list(range(9))), make_sequence(2, list(range(9)))
        manager.attach(first)
        assert not manager.awaits(second)
        manager.announce(first, 9)
        manager.reserve(first, 9)
        first.computed = 9
        manager.take_moves(0)
        assert manager.awaits(second)
        assert not manager.awaits(make_sequence(3, [*range(3), 70, 71]))
        manager.settle(0)
        manager.publish(first, 9)
        assert not manager.awaits(second)
        assert len(manager._prefixes.find(second)) == 2


class Blocks(RuleBasedStateMachine):
    """Sequences come, grow, fork, swap and go in any order, with plans in flight or not.

    `device` and `host` are the memories that the moves and writes of each issued plan change.
    """

    def __init__(self) -> None:
        super().__init__()
        self.manager = make_manager(blocks=12, host=6)
        self.device = [[-1] * SIZE for _ in range(12)]
        self.host = [[-1] * SIZE for _ in range(6)]
        self.resident: list[Sequence] = []
        self.swapped: list[Sequence] = []
        self.step = 0
        self.settled = -1
        self.named: dict[int, set[int]] = {}  # plan in flight -> device blocks it names
        self.planned: list[Sequence] = []  # in the plan being made
        self.writes: list[tuple[int, int, int]] = []  # of the plan being made: block, slot, token
        self.created = 0

    def new(self, tokens: list[int]) -> Sequence:
        self.created += 1
        return make_sequence(self.created, tokens)

    def grow_by(self, sequence: Sequence, count: int) -> None:
        before = list(sequence.block_table)
        fits = self.manager.shortage(sequence, count) <= 0
        assert self.manager.reserve(sequence, count) == fits
        if not fits:
            assert sequence.block_table == before
            return
        holders = Counter(b for s in self.resident + self.swapped for b in s.block_table)
        for position in range(sequence.computed, sequence.computed + count):
            block = sequence.block_table[position // SIZE]
            assert holders[block] == 1, "a shared block would be written"
            self.writes.append((block, position % SIZE, sequence.token_ids[position]))
        fresh = set(sequence.block_table) - set(before)
        assert not any(fresh & blocks for blocks in self.named.values()), "given out too early"
        sequence.computed += count
        self.planned.append(sequence)

    def between_plans(self) -> None:
        """What follows happens at a commit: the plan being made is issued first."""
        if self.planned:
            self.issue()

    # --- while a plan is made ---

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=20))
    def come(self, tokens: list[int]) -> None:
        sequence = self.new(tokens)
        used = self.manager.usage.blocks_used
        if self.manager.attach(sequence):
            self.resident.append(sequence)
            self.grow_by(sequence, sequence.pending)
            assert self.planned[-1] is sequence, "attached without room for the rest"
        else:
            assert self.manager.usage.blocks_used == used and not sequence.block_table

    @precondition(lambda self: any(s not in self.planned for s in self.resident))
    @rule(data=st.data(), tokens=st.lists(st.integers(0, 1), min_size=1, max_size=6))
    def grow(self, data: st.DataObject, tokens: list[int]) -> None:
        idle = [s for s in self.resident if s not in self.planned]
        sequence = data.draw(st.sampled_from(idle))
        sequence.token_ids += tokens
        self.grow_by(sequence, sequence.pending)

    @precondition(lambda self: any(s not in self.planned for s in self.resident))
    @rule(data=st.data())
    def swap_out(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from([s for s in self.resident if s not in self.planned]))
        alone = self.manager.held_alone(sequence)
        before = self.manager.usage.host_blocks_used
        if self.manager.swap_out(sequence):
            self.resident.remove(sequence)
            self.swapped.append(sequence)
            assert self.manager.usage.host_blocks_used == before + alone

    @precondition(lambda self: self.swapped and not self.planned)
    @rule(data=st.data())
    def swap_in(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self.swapped))
        sequence.token_ids.append(0)
        if self.manager.swap_in(sequence):
            self.swapped.remove(sequence)
            self.resident.append(sequence)
            assert NOWHERE not in sequence.block_table
            self.grow_by(sequence, sequence.pending)
            assert self.planned[-1] is sequence, "swapped in without room for the rest"

    # --- at a commit ---

    @precondition(lambda self: self.resident and self.created < 40)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        self.between_plans()
        parent = data.draw(st.sampled_from(self.resident))
        child = self.new(list(parent.token_ids))
        self.manager.fork(parent, child)
        self.resident.append(child)

    @precondition(lambda self: self.resident)
    @rule(data=st.data(), back=st.integers(0, 6))
    def trim(self, data: st.DataObject, back: int) -> None:
        self.between_plans()
        sequence = data.draw(st.sampled_from(self.resident))
        keep = max(sequence.computed - back, sequence.published * SIZE, 1)
        if keep <= sequence.computed:
            self.manager.trim(sequence, keep)
            del sequence.token_ids[keep:]
            del sequence.digests[keep // SIZE :]

    @precondition(lambda self: self.resident)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        self.between_plans()
        sequence = data.draw(st.sampled_from(self.resident))
        self.manager.publish(sequence, sequence.computed)

    @precondition(lambda self: self.resident or self.swapped)
    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        self.between_plans()
        sequence = data.draw(st.sampled_from(self.resident + self.swapped))
        self.manager.free(sequence)
        for place in (self.resident, self.swapped):
            if sequence in place:
                place.remove(sequence)

    @rule()
    def issue(self) -> None:
        moves = self.manager.take_moves(self.step)
        for source, target in moves.swap_out:
            self.host[target] = list(self.device[source])
        for source, target in moves.swap_in:
            self.device[target] = list(self.host[source])
        for source, target in moves.copies:
            self.device[target] = list(self.device[source])
        for block, slot, token in self.writes:
            self.device[block][slot] = token
        for sequence in self.resident:
            cells = [token for block in sequence.block_table for token in self.device[block]]
            assert cells[: sequence.computed] == sequence.token_ids[: sequence.computed]
        self.named[self.step] = {b for s in self.planned for b in s.block_table}
        self.planned, self.writes = [], []
        self.step += 1

    @precondition(lambda self: self.named)
    @rule()
    def settle(self) -> None:
        self.between_plans()
        self.settled += 1
        self.manager.settle(self.settled)
        del self.named[self.settled]

    @invariant()
    def accounts_agree(self) -> None:
        self.manager.check(self.resident + self.swapped)

    def teardown(self) -> None:
        self.issue()
        for sequence in self.resident + self.swapped:
            self.manager.free(sequence)
        while self.named:
            self.settle()
        self.manager.check([])
        assert self.manager.usage.blocks_used == self.manager.usage.host_blocks_used == 0
        assert self.manager.behind_fence == 0


Blocks.TestCase.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
TestBlocks = Blocks.TestCase
