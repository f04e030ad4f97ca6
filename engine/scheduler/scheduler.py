"""`Scheduler`: which tokens of which sequences the next step computes, and what came of it.

There is no phase: every sequence has some tokens pending, a step has a budget of tokens, and
whoever runs is served before whoever waits. A long prompt is chunked because the budget ends, and
decoding is the case of one pending token. A plan may be made while earlier ones are in flight:
`computed` advances when a plan is made, and a token that a plan will yield is `promised`. Verifying
a draft is the case of one pending token and some guesses behind it (drafts.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Set
from math import inf

from ..cache.manager import BlockManager
from ..config import EngineConfig
from ..executor.base import Capacity
from ..params import Request
from ..sequence import Sequence, Status
from ..step import (
    Delta,
    Slice,
    SliceResult,
    StepOutput,
    StepPlan,
    StepStats,
)
from .audits import Audits
from .budget import StepBudget
from .drafts import Drafts
from .policy import policy_named
from .preemption import Preemption
from .roster import Roster
from .slices import SAMPLES, next_slice
from .step_time import StepTime


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
        self._most_tokens = config.max_num_batched_tokens or capacity.max_num_batched_tokens
        target = config.itl_target
        self._itl_target = capacity.itl_target_seconds if target is None else target
        self.step_time = StepTime(capacity.recompute_seconds_per_token)
        self._blocks = BlockManager(
            num_blocks=capacity.num_blocks,
            num_host_blocks=capacity.num_host_blocks,
            block_size=capacity.block_size,
            prefix_caching=config.prefix_caching,
        )
        self._preemption = Preemption(config.preemption, capacity, self._blocks)
        self._drafts = Drafts(
            self._blocks,
            longest=capacity.longest_draft,
            most_draws=capacity.most_draws,
        )
        self._roster = Roster(
            blocks=self._blocks,
            policy=policy_named(config.scheduling_policy),
            preemption=self._preemption,
            drafts=self._drafts,
            places=config.max_num_seqs or capacity.max_num_seqs,
            capacity=capacity,
        )
        self._audits = Audits(self._blocks, self._roster)
        self._in_flight: deque[StepPlan] = deque()
        self._step = 0  # number of the next plan
        self._committed = inf  # when the last step was, if there was more to do

    @property
    def has_work(self) -> bool:
        """Whether any sequence is live. While one is that has been released, and nothing is in
        flight, `schedule` gives a plan: the engine never spins."""
        return bool(self._roster.live)

    @property
    def requests(self) -> Set[str]:
        """The ids of the live requests: a view."""
        return self._roster.searches.keys()

    def requests_of(self, plan: StepPlan) -> list[str]:
        """The ids of the requests that a plan just made computes something for, each once."""
        live = self._roster.live
        return list(dict.fromkeys([live[s.sequence].request.id for s in plan.slices]))

    def add(self, request: Request, now: float, *, held: bool = False) -> None:
        """Take a request in. Its id must not be that of a live one, and its prompt must have a
        token and fit in the context: a request is valid once it is here (ValueError).

        A `held` one is not scheduled before it is released.
        """
        if request.id in self._roster.searches:
            raise ValueError(f"request {request.id!r} is live already")
        if not 1 <= len(request.prompt_token_ids) <= self._capacity.max_model_len:
            raise ValueError(f"request {request.id!r} has a prompt that cannot be computed")
        self._roster.begin(request)
        if held:
            self._roster.hold(request.id, True)

    def release(self, request_id: str) -> None:
        """A held request may be scheduled; an unknown or ended one is no error."""
        self._roster.hold(request_id, False)

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Drop a request, or one choice of it, without a Delta; unknown or ended ones are no
        error. Blocks that plans in flight name are free when these are committed."""
        search = self._roster.searches.get(request_id)
        if search is not None:
            search.abort(index)
            self._audits.make(self._step)

    def schedule(self, now: float) -> StepPlan | None:
        """The next step, or None when nothing can be computed before a plan in flight ends."""
        slices: list[Slice] = []
        awaited = 0  # blocks behind the fence that sequences of this step wait for
        preempted = False
        running = self._roster.in_order(now)
        self._drafts.weigh(running)
        budget = StepBudget(
            self._most_tokens,
            target=self._itl_target,
            running=running,
            time=self.step_time,
            waiting=bool(self._roster.waiting),
        )
        position = 0
        while position < len(running) and budget.tokens > 0:
            sequence = running[position]
            position += 1
            count = budget.grant(sequence)
            if count <= 0 or (sequence.promised and sequence.stepwise):
                continue
            if sequence.draft and self._blocks.shortage(sequence, count) > 0:
                sequence.draft = ()  # nobody gives way to a guess
                count = budget.grant(sequence)
            while not self._blocks.reserve(sequence, count):
                shortage = self._blocks.shortage(sequence, count)
                if self._blocks.behind_fence - awaited >= shortage:
                    awaited += shortage
                    break
                victim = self._preemption.choose(running, position)
                if victim is None:
                    break
                self._roster.preempt(victim)
                preempted = True
            else:
                budget.spend(sequence, count)
                slices.append(self._compute(sequence, count, now))
        places = self._roster.places
        if self._roster.waiting and budget and places and not (preempted or awaited):
            for sequence in self._roster.queue(now):
                if not (budget and budget.takes_prompts and places):
                    break
                if sequence.in_flight or sequence.held:
                    continue  # its next token is not known yet
                if sequence.status is Status.WAITING and self._blocks.awaits(sequence):
                    places -= 1  # kept for it
                    continue
                if not self._roster.admit(sequence):
                    break
                places -= 1
                count = budget.grant(sequence)
                if not self._blocks.reserve(sequence, count):
                    raise AssertionError(f"sequence {sequence.id} was admitted without room")
                budget.spend(sequence, count)
                slices.append(self._compute(sequence, count, now))
        if not slices:
            stuck = self._roster.live and not self._in_flight
            return self.schedule(now) if stuck and self._roster.make_way(now) else None
        return self._issue(slices)

    def commit(self, plan: StepPlan, output: StepOutput, now: float) -> list[Delta]:
        """Take in the output of the oldest plan in flight.

        A sequence that has ended meanwhile is passed over: what was computed for it is dropped.
        """
        self._settle(plan)
        if output.attempts == 1 and output.usual:
            self.step_time.observe(plan, output.seconds)
            # With what planning took: it is more where there are drafts.
            self._drafts.observe(plan, max(output.seconds, now - self._committed))
        deltas: list[Delta] = []
        results = {result.sequence: result for result in output.results}
        live, searches = self._roster.live, self._roster.searches
        for piece in plan.slices:
            sequence = live.get(piece.sequence)
            if sequence is None:
                continue
            sequence.in_flight -= 1
            result = results.get(sequence.id) or SliceResult(
                sequence=sequence.id, error="the executor gave no result for this sequence"
            )
            error = result.error
            if piece.wants in SAMPLES:
                error = error or _take_promised(sequence, piece, result)
                if piece.draft:
                    self._drafts.settle(sequence, piece, result)
            search = searches[sequence.request.id]
            if error is not None:
                deltas += search.fail(sequence, error, now)
                continue
            if sequence.status is Status.RUNNING:
                # What was accepted of a draft is published with the next token.
                self._blocks.publish(sequence, piece.start + piece.count - len(piece.draft))
            deltas += search.advance(sequence, piece, result, now)
            if piece.guess:
                self._drafts.propose(sequence, result.draft)
        self._audits.make(self._step)
        self._committed = now if self._roster.running else inf
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
            sequence = self._roster.live.get(piece.sequence)
            if sequence is not None:
                deltas += self._roster.search(sequence).fail(sequence, error, now)
        lost = {host for _, host in plan.moves.swap_out}
        returned = {
            device
            for later in self._in_flight
            for host, device in later.moves.swap_in
            if host in lost
        }
        for sequence in list(self._roster.live.values()):
            if not lost.isdisjoint(sequence.host_table):
                self._preemption.drop(sequence)
            elif not returned.isdisjoint(sequence.block_table):
                deltas += self._roster.search(sequence).fail(sequence, error, now)
        self._roster.retire_again(plan.retired)
        self._audits.make(self._step)
        return deltas

    def stats(self) -> StepStats:
        """Gauges as of now and counters since the start; what a step took is not known here."""
        usage = self._blocks.usage
        swapped = sum([s.status is Status.SWAPPED for s in self._roster.waiting.values()])
        return StepStats(
            step=self._step,
            running=len(self._roster.running),
            waiting=len(self._roster.waiting) - swapped,
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
            audit_failures=self._audits.failures,
            drafts=self._drafts.made,
            draft_tokens=self._drafts.tokens,
            drafts_accepted=tuple(self._drafts.accepted),
            token_seconds=self.step_time.token_seconds,
        )

    def check(self) -> None:
        """Raise AssertionError unless every block, sequence and request is accounted for."""
        self._roster.check()
        self._blocks.check(self._roster.live.values())
        for sequence in self._roster.live.values():
            named = sum(p.sequence == sequence.id for plan in self._in_flight for p in plan.slices)
            assert sequence.in_flight == named, sequence
            assert min(sequence.promised, sequence.overtaken) >= 0, sequence
            assert sequence.promised + sequence.overtaken <= sequence.in_flight, sequence
            assert 0 <= sequence.drafted <= sequence.promised * sequence.computed, sequence
            assert not (sequence.draft and sequence.in_flight), sequence

    # --- inside --------------------------------------------------------------------------------

    def _compute(self, sequence: Sequence, count: int, now: float) -> Slice:
        """The slice of the next `count` tokens, for which blocks have been reserved."""
        if sequence.first_scheduled is None:
            sequence.first_scheduled = now
        if count > 1:
            self._blocks.announce(sequence, count)
        return next_slice(sequence, count, self._drafts.wish(sequence))

    def _issue(self, slices: list[Slice]) -> StepPlan:
        plan = StepPlan(
            number=self._step,
            slices=tuple(slices),
            moves=self._blocks.take_moves(self._step),
            retired=self._roster.take_retired(),
        )
        self._step += 1
        self._in_flight.append(plan)
        return plan

    def _settle(self, plan: StepPlan) -> None:
        if not self._in_flight or self._in_flight[0].number != plan.number:
            raise AssertionError(f"plan {plan.number} is not the oldest in flight")
        self._in_flight.popleft()
        self._blocks.settle(plan.number)
        self._audits.make(self._step)  # before what it computed is believed


def _take_promised(sequence: Sequence, piece: Slice, result: SliceResult) -> str | None:
    """The oldest plan that promised a token of the sequence is committed; returns an error if it
    gave none.

    Where it gave several, because some were forced, those of the plans in flight are known with
    them. Steps like this come in rows: the next is not planned before its tokens are there. Nor is
    it where a draft is proposed: it may be right.
    """
    if sequence.overtaken:
        sequence.overtaken -= 1
        return None
    sequence.promised -= 1
    given = len(result.token_ids)
    if given > 1 and sequence.promised:
        early = min(given - 1, sequence.promised)
        sequence.promised -= early
        sequence.overtaken += early
    sequence.stepwise = (given > 1 and not piece.draft) or bool(result.draft)
    return None if given else "the executor gave no token for this sequence"
