"""`Scheduler`: which tokens of which sequences the next step computes, and what came of it.

There is no phase: every sequence has some tokens pending, a step has a budget of tokens, and
whoever runs is served before whoever waits. A long prompt is chunked because the budget ends, and
decoding is the case of one pending token. A plan may be made while earlier ones are in flight:
`computed` advances when a plan is made, and a token that a plan will yield is `promised`.
"""

from __future__ import annotations

from collections import Counter, deque

from ..cache.manager import BlockManager
from ..config import EngineConfig
from ..executor.base import Capacity
from ..params import FinishReason, Request
from ..sequence import NOWHERE, Sequence, Status
from ..step import (
    Delta,
    Slice,
    SliceResult,
    StepOutput,
    StepPlan,
    StepStats,
)
from .beam import BeamSearch
from .policy import policy_named
from .pool import PoolSearch
from .preemption import Preemption
from .sample import SampleSearch, open_choices
from .search import Search
from .slices import SAMPLES, next_slice


class Scheduler:
    """All live sequences of one engine. What it knows of the hardware is `Capacity`.

    Relies on the executor's promise that one sequence of `max_model_len` tokens fits in
    `num_blocks` blocks: then the first sequence in policy order can always go on, once everything
    else has given way, and so every request ends. Prompts are shorter than `max_model_len`.
    """

    def __init__(self, config: EngineConfig, capacity: Capacity) -> None:
        if capacity.num_blocks * capacity.block_size < capacity.max_model_len:
            raise ValueError(
                f"{capacity.num_blocks} blocks of {capacity.block_size} tokens cannot hold one "
                f"sequence of max_model_len {capacity.max_model_len}"
            )
        self._capacity = capacity
        self._budget = config.max_num_batched_tokens
        self._max_running = config.max_num_seqs
        self._blocks = BlockManager(
            num_blocks=capacity.num_blocks,
            num_host_blocks=capacity.num_host_blocks,
            block_size=capacity.block_size,
            prefix_caching=config.prefix_caching,
        )
        self._policy = policy_named(config.scheduling_policy)
        self._preemption = Preemption(config.preemption, capacity, self._blocks)
        self._searches: dict[str, Search] = {}
        self._family_size: Counter[str] = Counter()  # live sequences of each request
        self._live: dict[int, Sequence] = {}
        self._waiting: dict[int, Sequence] = {}  # WAITING or SWAPPED
        self._running: list[Sequence] = []  # in policy order, once `_ordered`
        self._ordered = True
        self._in_flight: deque[StepPlan] = deque()
        self._retired: list[int] = []  # to be told to the compute wing with the next plan
        self._step = 0  # number of the next plan
        self._next_id = 0
        self._audit_failures = 0

    @property
    def has_work(self) -> bool:
        """Whether any sequence is live. While one is that has been released, and nothing is in
        flight, `schedule` gives a plan: the engine never spins."""
        return bool(self._live)

    def add(self, request: Request, now: float, *, held: bool = False) -> None:
        """Take a request in. Its id must not be that of a live one, and its prompt must have a
        token and fit in the context: a request is valid once it is here (ValueError).

        A `held` one is not scheduled before it is released.
        """
        if request.id in self._searches:
            raise ValueError(f"request {request.id!r} is live already")
        if not 1 <= len(request.prompt_token_ids) <= self._capacity.max_model_len:
            raise ValueError(f"request {request.id!r} has a prompt that cannot be computed")
        choices = open_choices(request)
        if not choices:
            return
        root = self._create(request, list(request.prompt_token_ids))
        self._searches[request.id] = self._search(root, choices)
        if held:
            self._hold(request.id, True)

    def release(self, request_id: str) -> None:
        """A held request may be scheduled; an unknown or ended one is no error."""
        self._hold(request_id, False)

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Drop a request, or one choice of it, without a Delta; unknown or ended ones are no
        error. Blocks that plans in flight name are free when these are committed."""
        search = self._searches.get(request_id)
        if search is not None:
            search.abort(index)

    def schedule(self, now: float) -> StepPlan | None:
        """The next step, or None when nothing can be computed before a plan in flight ends."""
        budget = self._budget
        slices: list[Slice] = []
        awaited = 0  # blocks behind the fence that sequences of this step wait for
        preempted = False
        if not self._ordered:
            self._running = self._policy.order(self._running, now)
            self._ordered = True
        position = 0
        while position < len(self._running) and budget:
            sequence = self._running[position]
            position += 1
            count = min(sequence.pending, budget)
            if count <= 0 or (sequence.promised and sequence.stepwise):
                continue
            while not self._blocks.reserve(sequence, count):
                shortage = self._blocks.shortage(sequence, count)
                if self._blocks.behind_fence - awaited >= shortage:
                    awaited += shortage
                    break
                victim = self._preemption.choose(self._running, position)
                if victim is None:
                    break
                self._preempt(victim)
                preempted = True
            else:
                slices.append(self._compute(sequence, count, now))
                budget -= count
        places = self._max_running - len(self._running)
        if self._waiting and budget and places and not (preempted or awaited):
            for sequence in self._policy.order(self._waiting.values(), now):
                if not (budget and places):
                    break
                if sequence.in_flight or sequence.held:
                    continue  # its next token is not known yet
                if sequence.status is Status.WAITING and self._blocks.awaits(sequence):
                    places -= 1  # kept for it
                    continue
                if not self._admit(sequence):
                    break
                places -= 1
                count = min(sequence.pending, budget)
                if not self._blocks.reserve(sequence, count):
                    raise AssertionError(f"sequence {sequence.id} was admitted without room")
                slices.append(self._compute(sequence, count, now))
                budget -= count
        if not slices:
            stuck = self._live and not self._in_flight
            return self.schedule(now) if stuck and self._make_way(now) else None
        return self._issue(slices)

    def commit(self, plan: StepPlan, output: StepOutput, now: float) -> list[Delta]:
        """Take in the output of the oldest plan in flight.

        A sequence that has ended meanwhile is passed over: what was computed for it is dropped.
        """
        self._settle(plan)
        deltas: list[Delta] = []
        results = {result.sequence: result for result in output.results}
        for piece in plan.slices:
            sequence = self._live.get(piece.sequence)
            if sequence is None:
                continue
            sequence.in_flight -= 1
            result = results.get(sequence.id) or SliceResult(
                sequence=sequence.id, error="the executor gave no result for this sequence"
            )
            error = result.error
            if piece.wants in SAMPLES:
                sequence.promised -= 1
                if not result.token_ids and error is None:
                    error = "the executor gave no token for this sequence"
            search = self._searches[sequence.request.id]
            if error is not None:
                deltas += search.fail(sequence, error, now)
                continue
            if sequence.status is Status.RUNNING:
                self._blocks.publish(sequence, piece.start + piece.count)
            deltas += search.advance(sequence, piece, result, now)
        self._audit()
        return deltas

    def fail_step(self, plan: StepPlan, error: str, now: float) -> list[Delta]:
        """The oldest plan in flight failed as a whole: every sequence it computes ends with
        `error`. Whether its moves were done is unknown, so that what it swapped out is computed
        again; and what it retired is retired once more (to forget an unknown sequence is no error).

        Plans made since then may still name the ended sequences; the compute wing may not know
        those. It answers for such a slice with an error of that slice, which is dropped here.
        """
        self._settle(plan)
        deltas: list[Delta] = []
        for piece in plan.slices:
            sequence = self._live.get(piece.sequence)
            if sequence is not None:
                deltas += self._searches[sequence.request.id].fail(sequence, error, now)
        lost = {host for _, host in plan.moves.swap_out}
        returned = {
            device
            for later in self._in_flight
            for host, device in later.moves.swap_in
            if host in lost
        }
        for sequence in list(self._live.values()):
            if not lost.isdisjoint(sequence.host_table):
                self._preemption.drop(sequence)
            elif not returned.isdisjoint(sequence.block_table):
                deltas += self._searches[sequence.request.id].fail(sequence, error, now)
        self._retired += [
            i for i in plan.retired if i not in self._live or not self._live[i].introduced
        ]
        self._audit()
        return deltas

    def stats(self) -> StepStats:
        """Gauges as of now and counters since the start; what a step took is not known here."""
        usage = self._blocks.usage
        swapped = sum(s.status is Status.SWAPPED for s in self._waiting.values())
        return StepStats(
            step=self._step,
            running=len(self._running),
            waiting=len(self._waiting) - swapped,
            swapped=swapped,
            blocks_total=self._capacity.num_blocks,
            blocks_used=usage.blocks_used,
            host_blocks_total=self._capacity.num_host_blocks,
            host_blocks_used=usage.host_blocks_used,
            prefix_queries=usage.prefix_queries,
            prefix_hits=usage.prefix_hits,
            preemptions_recompute=self._preemption.recomputed,
            preemptions_swap=self._preemption.swapped,
            blocks_swapped_out=usage.blocks_swapped_out,
            blocks_swapped_in=usage.blocks_swapped_in,
            blocks_copied=usage.blocks_copied,
            audit_failures=self._audit_failures,
        )

    def check(self) -> None:
        """Raise AssertionError unless every block, sequence and request is accounted for."""
        self._blocks.check(self._live.values())
        running = {sequence.id for sequence in self._running}
        assert len(running) == len(self._running) <= self._max_running
        assert running | self._waiting.keys() == self._live.keys()
        assert not running & self._waiting.keys()
        assert {s.request.id for s in self._live.values()} == self._searches.keys()
        for sequence in self._live.values():
            named = sum(p.sequence == sequence.id for plan in self._in_flight for p in plan.slices)
            assert sequence.in_flight == named, sequence
            assert (sequence.status is Status.RUNNING) == (sequence.id in running), sequence
            assert 0 <= sequence.promised <= sequence.in_flight, sequence

    # --- Family: what a search may do to sequences ---------------------------------------------

    def fork(self, parent: Sequence) -> Sequence:
        """A copy of `parent` that shares its blocks, or that waits when no place is free."""
        child = self._create(parent.request, parent.token_ids.copy())
        child.cached_tokens = parent.cached_tokens
        child.first_scheduled = parent.first_scheduled
        child.limit, child.end, child.yields = parent.limit, parent.end, parent.yields
        if parent.status is Status.RUNNING and len(self._running) < self._max_running:
            self._blocks.fork(parent, child)
            self._run(child)
        return child

    def end(self, sequence: Sequence, reason: FinishReason) -> None:
        """Free all that `sequence` holds and have the compute wing forget it."""
        self._blocks.free(sequence)
        if sequence.status is Status.RUNNING:
            self._running.remove(sequence)
        else:
            del self._waiting[sequence.id]
        del self._live[sequence.id]
        sequence.status = Status.FINISHED
        sequence.finish_reason = reason
        if sequence.introduced:
            self._retired.append(sequence.id)
        self._family_size[sequence.request.id] -= 1
        if not self._family_size[sequence.request.id]:
            del self._family_size[sequence.request.id]
            self._searches.pop(sequence.request.id, None)

    # --- inside --------------------------------------------------------------------------------

    def _search(self, root: Sequence, choices: list[int]) -> Search:
        """How the request of `root` is searched."""
        request = root.request
        if request.pooling is not None:
            return PoolSearch(root, request.pooling, self._capacity, self)
        if request.sampling.beam_width:
            return BeamSearch(root, self._capacity, self)
        return SampleSearch(root, choices, self._capacity, self)

    def _hold(self, request_id: str, held: bool) -> None:
        for sequence in self._waiting.values():
            if sequence.request.id == request_id:
                sequence.held = held

    def _create(self, request: Request, token_ids: list[int]) -> Sequence:
        """A new sequence that waits; its search says what it is to become."""
        sequence = Sequence(
            id=self._next_id,
            request=request,
            seed=request.seed,
            token_ids=token_ids,
            limit=len(token_ids),
            end=len(token_ids),
            stepwise=request.sampling.grammar is not None,
        )
        self._next_id += 1
        self._live[sequence.id] = self._waiting[sequence.id] = sequence
        self._family_size[request.id] += 1
        return sequence

    def _admit(self, sequence: Sequence) -> bool:
        """Let a waiting sequence run, if there is room for all it has pending."""
        if sequence.status is Status.SWAPPED:
            fits = self._blocks.swap_in(sequence)
        else:
            fits = self._blocks.attach(sequence)
        if fits:
            self._run(sequence)
        return fits

    def _run(self, sequence: Sequence) -> None:
        del self._waiting[sequence.id]
        sequence.status = Status.RUNNING
        self._running.append(sequence)
        self._ordered = False

    def _compute(self, sequence: Sequence, count: int, now: float) -> Slice:
        """The slice of the next `count` tokens, for which blocks have been reserved."""
        if sequence.first_scheduled is None:
            sequence.first_scheduled = now
        if count > 1:
            self._blocks.announce(sequence, count)
        return next_slice(sequence, count)

    def _issue(self, slices: list[Slice]) -> StepPlan:
        plan = StepPlan(
            number=self._step,
            slices=tuple(slices),
            moves=self._blocks.take_moves(self._step),
            retired=tuple(self._retired),
        )
        self._step += 1
        self._retired = []
        self._in_flight.append(plan)
        return plan

    def _settle(self, plan: StepPlan) -> None:
        if not self._in_flight or self._in_flight[0].number != plan.number:
            raise AssertionError(f"plan {plan.number} is not the oldest in flight")
        self._in_flight.popleft()
        self._blocks.settle(plan.number)

    def _preempt(self, victim: Sequence) -> None:
        self._preemption.apply(victim)
        self._running.remove(victim)
        self._waiting[victim.id] = victim
        if victim.introduced:
            victim.introduced = False
            self._retired.append(victim.id)

    def _make_way(self, now: float) -> bool:
        """Nothing runs, and what waits does not fit: take blocks from who cannot use them now.

        Those are beams that wait for their siblings, and swapped sequences that have kept their
        references to shared blocks. False when there are none.
        """
        for sequence in reversed(self._running):
            if sequence.held:
                self._preempt(sequence)
                return True
        for sequence in reversed(self._policy.order(self._waiting.values(), now)):
            if any(block != NOWHERE for block in sequence.block_table):
                self._preemption.drop(sequence)
                return True
        return False

    def _audit(self) -> None:
        """An engine without sequences holds no blocks."""
        if not self._live and (
            self._blocks.usage.blocks_used or self._blocks.usage.host_blocks_used
        ):
            self._audit_failures += 1
