"""`Sequence`: one token history, the only mutable object of the planning wing."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

from .params import FinishReason, Request
from .step import Wants

NOWHERE = -1  # no block, in a table of block ids


class Status(Enum):
    """Where a sequence stands. Preempted sequences wait again, or are swapped out."""

    WAITING = auto()
    RUNNING = auto()
    SWAPPED = auto()
    FINISHED = auto()


@dataclass(slots=True, eq=False)
class Sequence:
    """One history of tokens and how much of it has been computed.

    `token_ids` holds the ids that are really known. `promised` counts tokens that plans in flight
    will yield: they are known to exist, their ids are not (one step of overlap). `draft` are
    guesses of what follows the known ones, for the next plan. `computed`
    counts positions whose KV cells exist or are being written by a plan in flight, for a draft's
    tokens (`drafted`) too: those that turn out to be wrong are taken off again. The block
    table covers exactly the computed positions. While swapped out, its entry i is `NOWHERE` where
    `host_table[i]` names a host block, and the other way round where the block was shared.
    """

    id: int
    request: Request
    seed: int  # this choice's own seed
    token_ids: list[int]
    limit: int  # tokens, prompt included, at which it ends for its length
    end: int  # positions to compute at most; the last token of a sequence never needs computing
    index: int = 0  # choice index
    promised: int = 0
    draft: tuple[int, ...] = ()
    computed: int = 0
    drafted: int = 0  # the last so many of the computed positions are guesses in flight
    in_flight: int = 0  # plans in flight that have a slice of it
    overtaken: int = 0  # plans in flight whose token came with those of a plan before (forced ones)
    stepwise: bool = False  # its next step may yield several tokens: nothing is planned ahead of it
    held: bool = False  # waits for its siblings (beam search), or for what it needs beforehand
    yields: Wants = Wants.TOKEN  # wanted of the slice that reaches its last known token
    gathering: Wants = Wants.NOTHING  # wanted of every slice: the prefix cache does not help then
    block_table: list[int] = field(default_factory=list)
    host_table: list[int] = field(default_factory=list)
    forked: bool = False  # others hold blocks of it that were not full, or have held some: for good
    digests: list[bytes] = field(default_factory=list)  # chain hashes of its first full blocks
    published: int = 0  # blocks of its table offered to the prefix index
    # What the compute wing has been told of it.
    introduced: bool = False  # has its history
    told_blocks: int = 0  # entries of the block table it has
    unsent: tuple[int, ...] = ()  # appended by the planner, not yet sent
    cached_tokens: int | None = None  # found in the prefix cache at the first attempt
    status: Status = Status.WAITING
    finish_reason: FinishReason | None = None
    preemptions: int = 0
    first_scheduled: float | None = None
    first_token: float | None = None

    @property
    def prompt_length(self) -> int:
        return len(self.request.prompt_token_ids)

    @property
    def known(self) -> int:
        """Tokens that exist, counting those promised by plans in flight."""
        return len(self.token_ids) + self.promised

    @property
    def pending(self) -> int:
        """Tokens known or guessed but not computed: the only quantity the scheduler needs."""
        known = len(self.token_ids) + self.promised + len(self.draft)
        return (known if known < self.end else self.end) - self.computed  # asked at every step

    @property
    def output_length(self) -> int:
        """Generated tokens, counting promised ones."""
        return self.known - self.prompt_length
