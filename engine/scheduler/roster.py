"""`Roster`: every living sequence of an engine, who of them runs, who waits, and who was let go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ..cache.manager import BlockManager
from ..executor.base import Capacity
from ..params import FinishReason, Request
from ..sequence import NOWHERE, Sequence, Status
from .beam import BeamSearch
from .drafts import Drafts
from .policy import Policy
from .pool import PoolSearch
from .preemption import Preemption
from .sample import SampleSearch, open_choices
from .search import Search


class Roster:
    """Sequences from their birth to their end, and the searches they belong to: the `Family` of
    every search. A living sequence runs or waits (also swapped out), never both.

    Args:
        places: sequences that may run at the same time.
    """

    def __init__(
        self,
        *,
        blocks: BlockManager,
        policy: Policy,
        preemption: Preemption,
        drafts: Drafts,
        places: int,
        capacity: Capacity,
    ) -> None:
        self.live: dict[int, Sequence] = {}
        self.waiting: dict[int, Sequence] = {}  # WAITING or SWAPPED
        self.running: list[Sequence] = []  # in policy order after `in_order`
        self.searches: dict[
            str, Search
        ] = {}  # by request id, as long as one of its sequences lives
        self._blocks = blocks
        self._policy = policy
        self._preemption = preemption
        self._drafts = drafts
        self._most = places
        self._capacity = capacity
        self._ordered = True
        self._family_size: Counter[str] = Counter()  # live sequences of each request
        self._retired: list[int] = []  # to be told to the compute wing with the next plan
        self._next_id = 0

    @property
    def places(self) -> int:
        """How many more sequences may run."""
        return self._most - len(self.running)

    def in_order(self, now: float) -> list[Sequence]:
        """Those that run, in policy order: the list itself, which preempting shortens."""
        if not self._ordered:
            self.running = self._policy.order(self.running, now)
            self._ordered = True
        return self.running

    def queue(self, now: float) -> list[Sequence]:
        """Those that wait, in policy order."""
        return self._policy.order(self.waiting.values(), now)

    def search(self, sequence: Sequence) -> Search:
        return self.searches[sequence.request.id]

    # --- a sequence's life ---------------------------------------------------------------------

    def begin(self, request: Request) -> None:
        """The first sequence of a request, which waits, and how the request is searched."""
        choices = open_choices(request)
        if not choices:
            return
        root = self.create(request, list(request.prompt_token_ids))
        search: Search
        if request.pooling is not None:
            search = PoolSearch(root, request.pooling, self._capacity, self)
        elif request.sampling.beam_width:
            search = BeamSearch(root, self._capacity, self)
        else:
            search = SampleSearch(root, choices, self._capacity, self)
        self.searches[request.id] = search

    def create(self, request: Request, token_ids: list[int]) -> Sequence:
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
        self.live[sequence.id] = self.waiting[sequence.id] = sequence
        self._family_size[request.id] += 1
        return sequence

    def hold(self, request_id: str, held: bool) -> None:
        """Whether the waiting sequences of a request must go on waiting."""
        for sequence in self.waiting.values():
            if sequence.request.id == request_id:
                sequence.held = held

    def admit(self, sequence: Sequence) -> bool:
        """Let a waiting sequence run, if there is room for all it has pending."""
        if sequence.status is Status.SWAPPED:
            fits = self._blocks.swap_in(sequence)
        else:
            fits = self._blocks.attach(sequence)
        if fits:
            self._run(sequence)
        return fits

    def fork(self, parent: Sequence) -> Sequence:
        """A copy of `parent` that shares its blocks, or that waits when no place is free."""
        child = self.create(parent.request, parent.token_ids.copy())
        child.cached_tokens = parent.cached_tokens
        child.first_scheduled = parent.first_scheduled
        child.limit, child.end, child.yields = parent.limit, parent.end, parent.yields
        if parent.status is Status.RUNNING and self.places > 0:
            self._blocks.fork(parent, child)
            self._run(child)
        return child

    def preempt(self, victim: Sequence) -> None:
        """Take the blocks of a running sequence; it waits again, or is swapped out."""
        self._drafts.give_up(victim)
        self._preemption.apply(victim)
        self.running.remove(victim)
        self.waiting[victim.id] = victim
        if victim.introduced:
            victim.introduced = False
            self._retired.append(victim.id)

    def make_way(self, now: float) -> bool:
        """Nothing runs, and what waits does not fit: take blocks from who cannot use them now.

        Those are beams that wait for their siblings, and swapped sequences that have kept their
        references to shared blocks. False when there are none.
        """
        for sequence in reversed(self.running):
            if sequence.held:
                self.preempt(sequence)
                return True
        for sequence in reversed(self.queue(now)):
            if any(block != NOWHERE for block in sequence.block_table):
                self._preemption.drop(sequence)
                return True
        return False

    def end(self, sequence: Sequence, reason: FinishReason) -> None:
        """Free all that `sequence` holds and have the compute wing forget it."""
        self._blocks.free(sequence)
        self._drafts.forget(sequence)
        if sequence.status is Status.RUNNING:
            self.running.remove(sequence)
        else:
            del self.waiting[sequence.id]
        del self.live[sequence.id]
        sequence.status = Status.FINISHED
        sequence.finish_reason = reason
        if sequence.introduced:
            self._retired.append(sequence.id)
        self._family_size[sequence.request.id] -= 1
        if not self._family_size[sequence.request.id]:
            del self._family_size[sequence.request.id]
            self.searches.pop(sequence.request.id, None)

    # --- what the compute wing may forget ------------------------------------------------------

    def take_retired(self) -> tuple[int, ...]:
        """The sequences that the compute wing may forget with the next plan."""
        retired, self._retired = tuple(self._retired), []
        return retired

    def retire_again(self, sequences: Iterable[int]) -> None:
        """It is not known whether these were forgotten. Those it was told of since then stay."""
        self._retired += [i for i in sequences if i not in self.live or not self.live[i].introduced]

    def check(self) -> None:
        """Raise AssertionError unless every sequence runs or waits and belongs to a request."""
        running = {sequence.id for sequence in self.running}
        assert len(running) == len(self.running) <= self._most
        assert running | self.waiting.keys() == self.live.keys()
        assert not running & self.waiting.keys()
        assert {s.request.id for s in self.live.values()} == self.searches.keys()
        for sequence in self.live.values():
            assert (sequence.status is Status.RUNNING) == (sequence.id in running), sequence

    def _run(self, sequence: Sequence) -> None:
        del self.waiting[sequence.id]
        sequence.status = Status.RUNNING
        self.running.append(sequence)
        self._ordered = False
