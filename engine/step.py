"""The letters between the two wings, and what the outside sees of a step.

Down goes a `StepPlan`, up comes a `StepOutput`; `Scheduler.commit` turns the two into `Delta`s.
Plain frozen values of standard types only: they cross processes as they are (engine/channel.py).
What each step makes for each sequence is a named tuple, which takes a third of the time of a frozen
dataclass to make and to send (`tools/host_path.py`); name its fields, in any order, as there. Where
one is made for each sequence of each step they are not named: that takes twice as long.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from functools import cached_property
from operator import mul
from typing import NamedTuple

from .errors import OctavoError, SequenceFailed, Unsatisfiable
from .params import FinishReason, SamplingParams

NOTHING_LEFT = (
    "allowed_token_ids, bad_words, min_tokens, logit_bias or the grammar leave no token to choose"
)
GRAMMAR_FAULT = "the grammar"
"""How an `error` begins that is its grammar's: one that compiles may still be too costly to follow.

These are the errors of a slice or delta that the request itself causes; all others are ours.
"""


def failure_of(error: str) -> OctavoError:
    """The `error` of a delta as the error to raise."""
    theirs = error == NOTHING_LEFT or error.startswith(GRAMMAR_FAULT)
    return (Unsatisfiable if theirs else SequenceFailed)(error)


class Wants(IntFlag):
    """What a slice is to yield besides its KV cells."""

    NOTHING = 0
    TOKEN = 1  # sample the token after the slice's last position
    CANDIDATES = 2  # beam search: the 2 * beam_width likeliest continuations, nothing sampled
    PROMPT_LOGPROBS = 4  # log-probabilities of the prompt tokens that follow the slice's positions
    EMBEDDING = 8  # the final hidden state of its last position
    EMBEDDING_SUM = 16  # the sum of the final hidden states of its positions


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """All the compute wing must know of a sequence that it meets (again).

    Sent on a slice's first appearance, also after preemption, swap-in, fork or resume. Sampler
    state (penalty counts, minimum length) is rebuilt from it: `token_ids[:prompt_length]` is the
    prompt, the rest is output.
    """

    params: SamplingParams
    seed: int  # this choice's own seed, 0 <= seed < 2**64
    prompt_length: int
    token_ids: tuple[int, ...]  # every known id, whatever the slice's start
    request_id: str = ""  # for the log: whose sequence it is


class Slice(NamedTuple):
    """For this sequence, compute the `count` tokens at positions start .. start + count - 1.

    There is no phase: a prompt chunk, a decode and a verification differ in numbers only.
    `token_ids` are ids appended to the sequence since the compute wing last heard of it; usually
    empty, because the compute wing has the history and keeps what it samples itself.
    `blocks` replace the sequence's block table from entry `first_block` on.

    `draft` are guesses of what follows the known tokens, the last of the `count`: they are computed
    as if they were right, and those that are drawn where they stand are accepted (Leviathan et al.
    2023). They form a chain. Sampling is the verification of an empty draft.

    `guess`: how many tokens of what follows the token it yields are worth guessing, at most: they
    come back as the result's draft.
    """

    sequence: int
    start: int
    count: int  # type: ignore[assignment]  # nobody counts the values of a slice
    wants: Wants = Wants.NOTHING
    token_ids: tuple[int, ...] = ()
    first_block: int = 0
    blocks: tuple[int, ...] = ()
    history: History | None = None
    adapter: str | None = None
    draft: tuple[int, ...] = ()
    guess: int = 0

    @property
    def decodes(self) -> bool:
        """Whether it has one token, which is known to follow, and wants nothing but the next."""
        new = self.token_ids or self.draft or self.history is not None
        return self.count == 1 and self.wants == Wants.TOKEN and not new


@dataclass(frozen=True, slots=True, kw_only=True)
class Moves:
    """Whole-block KV traffic of one step, done in this order before the step's compute."""

    swap_out: tuple[tuple[int, int], ...] = ()  # (device block, host block)
    swap_in: tuple[tuple[int, int], ...] = ()  # (host block, device block)
    copies: tuple[tuple[int, int], ...] = ()  # (source, destination), both on the device

    def __bool__(self) -> bool:
        return bool(self.swap_out or self.swap_in or self.copies)


class StepSize(NamedTuple):
    """What a step's time depends on."""

    sequences: int
    tokens: int
    pairs: float  # of a token and one it attends to


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """One step, decided. `retired`: sequences the compute wing may forget, before this step.

    Without slots: it keeps its size.
    """

    number: int
    slices: tuple[Slice, ...]
    moves: Moves = Moves()
    retired: tuple[int, ...] = ()

    @cached_property
    def size(self) -> StepSize:
        """Asked for when the step is predicted, when it is priced and when it is told of."""
        counts = [s.count for s in self.slices]
        starts = [s.start for s in self.slices]
        tokens = sum(counts)
        # Of n tokens from position p on: n * p + n * (n + 1) / 2.
        pairs = sum(map(mul, counts, starts)) + (sum(map(mul, counts, counts)) + tokens) / 2
        return StepSize(len(counts), tokens, pairs)

    @property
    def token_count(self) -> int:
        """Tokens computed by the step: what the token budget limits."""
        return self.size.tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprobs:
    """Natural-log probabilities for one position, of the model's own distribution.

    Taken before temperature, penalties and truncation. `rank` of the token is 1 for the likeliest.
    `top_ids` and `top_logprobs` have the k likeliest, descending; ties go to the lower id.
    """

    token_id: int
    logprob: float
    rank: int
    top_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()


class SliceResult(NamedTuple):
    """What one slice yielded, or why it alone failed (`error`)."""

    sequence: int
    token_ids: tuple[int, ...] = ()  # accepted tokens, in order
    logprobs: tuple[TokenLogprobs, ...] = ()  # one per accepted token, where asked for
    candidates: tuple[tuple[int, float], ...] = ()  # (token id, log-probability), descending
    # For prompt tokens start + 1 .. start + count that are still prompt, where asked for.
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    embedding: tuple[float, ...] = ()  # one hidden state, or a sum of them, where asked for
    error: str | None = None
    draft: tuple[int, ...] = ()  # proposed to follow the last of `token_ids`


class StepOutput(NamedTuple):
    """The compute wing's answer to the plan of the same number."""

    number: int
    results: tuple[SliceResult, ...]
    seconds: float = 0.0  # wall time of the compute
    attempts: int = 1  # computes it took: more than one where the step failed and was run apart
    usual: bool = True  # whether such a step will take as long again: nothing was recorded in it
    graphs_recorded: int = 0  # of steps that are alike, so far ...
    graphs_planned: int = 0  # ... and in the end


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """When a sequence passed its stations, time.monotonic() seconds, and what it cost."""

    arrival: float
    first_scheduled: float
    first_token: float
    finished: float
    preemptions: int = 0


class Delta(NamedTuple):
    """What the outside sees of one sequence after one step.

    New ids with their log-probabilities; on the first one also the number of prompt tokens found
    in the prefix cache; on the last one the finish reason (and the token id that caused a stop,
    if it was not the end-of-sequence id) and the timing; or one error, which ends the choice.
    """

    request_id: str
    index: int = 0  # type: ignore[assignment]  # choice index
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    cached_tokens: int | None = None
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    score: float | None = None  # beam search: the returned beam's score
    embedding: tuple[float, ...] | None = None  # finished: pooled, cut, normalised
    timing: Timing | None = None
    error: str | None = None

    @property
    def last(self) -> bool:
        """Whether nothing more follows for this choice."""
        return self.finish_reason is not None


class StepStats(NamedTuple):
    """The only thing metrics read of the engine. Gauges are as of now, counters since start."""

    step: int = 0
    running: int = 0  # sequences
    waiting: int = 0
    swapped: int = 0
    blocks_total: int = 0
    blocks_used: int = 0  # held by live sequences; cached-but-free blocks do not count
    host_blocks_total: int = 0
    host_blocks_used: int = 0
    prefix_queries: int = 0  # tokens looked up, counter
    prefix_hits: int = 0  # tokens found, counter
    preemptions_recompute: int = 0  # counter
    preemptions_swap: int = 0  # counter
    blocks_swapped_out: int = 0  # counter
    blocks_swapped_in: int = 0  # counter
    blocks_copied: int = 0  # copy-on-write, counter
    audit_failures: int = 0  # block accounting mismatches, counter
    drafts: int = 0  # verified, counter
    draft_tokens: int = 0  # of these, counter
    drafts_accepted: tuple[int, ...] = ()  # of how many the i-th token was accepted, counters
    token_seconds: float = 0.0  # what one more prompt token costs, as fitted to past steps
    tokens_computed: int = 0  # by this step
    sequences_computed: int = 0  # by this step
    step_seconds: float = 0.0  # compute time of this step
    host_seconds: float = 0.0  # schedule + commit time of this step
    graphs_recorded: int = 0  # of steps that are alike: a GPU takes them in one call
    graphs_planned: int = 0

    @property
    def sequences(self) -> int:
        """All that live."""
        return self.running + self.waiting + self.swapped
