"""`Sequence`: one token history, the only mutable object of the planning wing."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

from .params import FinishReason, Request


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
    will yield: they are known to exist, their ids are not (one step of overlap). `computed`
    counts positions whose KV cells exist or are being written by a plan in flight.
    """

    id: int
    request: Request
    seed: int  # this choice's own seed
    token_ids: list[int]
    index: int = 0  # choice index
    promised: int = 0
    computed: int = 0
    block_table: list[int] = field(default_factory=list)
    host_table: list[int] = field(default_factory=list)  # block ids in host memory while swapped
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
        """Tokens known but not computed: the only quantity the scheduler needs."""
        return self.known - self.computed

    @property
    def output_length(self) -> int:
        """Generated tokens, counting promised ones."""
        return self.known - self.prompt_length
