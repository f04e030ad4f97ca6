"""`FakeExecutor`: an executor without tensors that is unforgiving about paging.

Its KV cache is real in the one respect that matters: a cell holds (token, position), written by
the slice that computes that position and moved by `Moves`. The next token is a hash of the cells
that the block table leads to. Every context read is also compared with the history, so that a
wrong copy-on-write, an early free or a stale swap raises `PagingFault` at once.
"""

from __future__ import annotations

import hashlib
import struct
import time
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from octavo.engine.executor.base import Capacity, Progress
from octavo.engine.params import PoolingKind, Request, SamplingParams
from octavo.engine.step import Slice, SliceResult, StepOutput, StepPlan, TokenLogprobs, Wants

from .readers import Readers

Script = Callable[[tuple[int, ...]], tuple[int, ...] | None]
"""Prompt ids to the output ids to produce (then end-of-sequence), or None for the hash."""

UNKNOWN_CELLS = "it reads cells that a failed step should have written"

_CELL = struct.Struct("<II")  # token id + 1, position
_UNKNOWN = _CELL.pack(0xFFFFFFFF, 0xFFFFFFFF)
_LOGPROB_STEP = 0.25
HIDDEN = 8  # size of a hidden state


def cells_of(token_ids: Sequence[int]) -> bytes:
    """What the positions of a history hold."""
    return b"".join([_CELL.pack(token + 1, position) for position, token in enumerate(token_ids)])


def hidden_state(cells: bytes) -> tuple[float, ...]:
    """Of the position that ends a context: whole numbers, so that sums of them are exact."""
    return tuple([float(x - 128) for x in hashlib.blake2b(cells, digest_size=HIDDEN).digest()])


def pooled(request: Request) -> tuple[float, ...]:
    """The embedding of a request, by its definition; whole, and not normalised."""
    assert request.pooling is not None
    prompt = request.prompt_token_ids
    states = [hidden_state(cells_of(prompt[:end])) for end in range(1, len(prompt) + 1)]
    if request.pooling.kind is PoolingKind.LAST:
        return states[-1]
    return tuple([sum(column) / len(prompt) for column in zip(*states, strict=True)])


class PagingFault(AssertionError):
    """The planner sent a plan whose cells, tables or histories do not fit together."""


def _complain(sentence: str) -> None:
    raise PagingFault(sentence)


@dataclass(slots=True)
class _Known:
    """What the compute wing keeps of a sequence."""

    params: SamplingParams
    seed: int
    prompt: tuple[int, ...]
    token_ids: list[int]
    cells: bytearray  # what its computed positions must hold
    table: list[int] = field(default_factory=list)
    script: tuple[int, ...] | None = None


class FakeExecutor:
    """An `Executor`. Plans are carried out when they are collected, in order.

    Knobs for tests, changeable at any time: `failing_slices` and `failing_steps` count down as
    they fail; a slice of a sequence that holds the id `poison` always fails; `dead` fails all;
    no grammar is ready before `preparing` is False.

    A grammar changes no token, but makes some of them forced: these come in one step. With
    `drafts` it guesses up to so many tokens ahead, where there is no grammar; it knows the right
    ones, but errs.
    """

    def __init__(
        self,
        *,
        num_blocks: int = 256,
        num_host_blocks: int = 0,
        block_size: int = 16,
        max_model_len: int = 1024,
        vocab_size: int = 512,
        eos_token_ids: tuple[int, ...] = (0,),
        eos_rate: float = 0.0,
        recompute_seconds_per_token: float = 1e-3,
        swap_seconds_per_block: float = 1e-3,
        script: Script | None = None,
        drafts: int = 0,
        seconds_per_step: float = 0.0,
        price: Callable[[StepPlan], float] = lambda plan: 1e-3,
    ) -> None:
        self.capacity = Capacity(
            num_blocks=num_blocks,
            block_size=block_size,
            num_host_blocks=num_host_blocks,
            max_model_len=max_model_len,
            vocab_size=vocab_size,
            eos_token_ids=eos_token_ids,
            recompute_seconds_per_token=recompute_seconds_per_token,
            swap_seconds_per_block=swap_seconds_per_block,
            dtype="float32",
            device="fake",
            kv_bytes=num_blocks * block_size * _CELL.size,
            weight_bytes=0,
            parameters=0,
            longest_draft=drafts,
        )
        self.failing_slices = 0
        self.failing_steps = 0
        self.poison: int | None = None
        self.dead = False
        self.preparing = False
        self.stopped = False
        self.plans: list[StepPlan] = []  # everything submitted, for tests to look at
        self._eos_rate = eos_rate
        self._script = script
        self._drafts = drafts
        self._seconds_per_step = seconds_per_step
        self._price = price  # the seconds a step is said to have taken
        block_bytes = block_size * _CELL.size
        self._cells = [bytearray(block_bytes) for _ in range(num_blocks)]
        self._host = [bytearray(block_bytes) for _ in range(num_host_blocks)]
        self._sequences: dict[int, _Known] = {}
        self._lost: set[int] = set()  # sequences that failed: their state is not known
        self._queue: deque[StepPlan] = deque()
        self.readers = Readers(block_size, _complain)

    # --- Executor ------------------------------------------------------------------------------

    def start(self, progress: Progress) -> Capacity:
        progress("fake weights", 1, 1)
        return self.capacity

    def ready(self, params: SamplingParams) -> bool:
        return params.grammar is None or not self.preparing

    def submit(self, plan: StepPlan) -> None:
        if self.dead or self.stopped:
            raise RuntimeError("the fake executor is dead")
        if plan.number != len(self.plans):
            raise PagingFault(f"plan {plan.number} is out of order")
        self.readers.submit(plan)
        self.plans.append(plan)
        self._queue.append(plan)

    def collect(self) -> StepOutput:
        plan = self._queue.popleft()
        self.readers.collect()
        if self.dead or self.stopped:
            raise RuntimeError("the fake executor is dead")
        if self.failing_steps > 0:
            self.failing_steps -= 1
            self._lost.update(piece.sequence for piece in plan.slices)
            for _, host in plan.moves.swap_out:
                self._host[host][:] = _UNKNOWN * self.capacity.block_size
            raise RuntimeError("the fake executor was told to fail this step")
        if self._seconds_per_step:
            time.sleep(self._seconds_per_step)
        for sequence in plan.retired:
            self._sequences.pop(sequence, None)
        self._move(plan)
        results = tuple([self._compute(piece) for piece in plan.slices])
        return StepOutput(number=plan.number, results=results, seconds=self._price(plan))

    def improve(self, *, idle: bool) -> bool:
        return False

    def stop(self) -> None:
        self.stopped = True

    def contexts(self) -> dict[int, list[int]]:
        """The ids whose cells have been written, for each sequence."""
        return {
            number: known.token_ids[: len(known.cells) // _CELL.size]
            for number, known in self._sequences.items()
        }

    # --- the model -----------------------------------------------------------------------------

    def _move(self, plan: StepPlan) -> None:
        written = [device for _, device in (*plan.moves.swap_in, *plan.moves.copies)]
        copied = {source for source, _ in plan.moves.copies}
        if len(written) != len(set(written)) or copied & {d for _, d in plan.moves.swap_in}:
            raise PagingFault(f"the moves of plan {plan.number} overwrite each other")
        for device, host in plan.moves.swap_out:
            self._host[host][:] = self._cells[device]
        for host, device in plan.moves.swap_in:
            self._cells[device][:] = self._host[host]
        for source, target in plan.moves.copies:
            self._cells[target][:] = self._cells[source]

    def _compute(self, piece: Slice) -> SliceResult:
        if piece.sequence in self._lost:
            return SliceResult(sequence=piece.sequence, error="it had failed before")
        sequence = self._meet(piece)
        if self.failing_slices > 0 or (
            self.poison is not None and self.poison in sequence.token_ids
        ):
            self.failing_slices = max(0, self.failing_slices - 1)
            self._lost.add(piece.sequence)
            return SliceResult(sequence=piece.sequence, error="the fake executor failed this slice")
        self._write(piece, sequence)
        context = self._read(piece, sequence)
        if _UNKNOWN in context:
            return SliceResult(sequence=piece.sequence, error=UNKNOWN_CELLS)
        params = sequence.params
        token_ids: tuple[int, ...] = ()
        logprobs: tuple[TokenLogprobs, ...] = ()
        candidates: tuple[tuple[int, float], ...] = ()
        draft: tuple[int, ...] = ()
        first = piece.start + piece.count - len(piece.draft)
        forced_before = first < len(sequence.token_ids)
        if piece.wants & Wants.TOKEN and not forced_before:
            for guess in (*piece.draft, None):
                so_far = context[: len(sequence.token_ids) * _CELL.size]
                token = self._sample(sequence, so_far)
                token_ids += (token,)
                if params.logprobs is not None:
                    logprobs += (self._logprobs(zlib.crc32(so_far), token, params.logprobs),)
                sequence.token_ids.append(token)
                if token != guess:
                    break
            self._trim(sequence, len(sequence.token_ids) - 1)
            if params.grammar is not None:
                if params.logprobs is None:
                    token_ids += self._force(sequence, context)
            elif piece.guess:
                draft = self._guess(sequence)[: piece.guess]
        if piece.wants & Wants.CANDIDATES:
            ranked = self._ranking(zlib.crc32(context), 2 * params.beam_width)
            candidates = tuple(ranked)
        prompt_logprobs: tuple[TokenLogprobs, ...] = ()
        if piece.wants & Wants.PROMPT_LOGPROBS and params.prompt_logprobs is not None:
            follow = sequence.prompt[piece.start + 1 : piece.start + piece.count + 1]
            prompt_logprobs = tuple(
                [
                    self._logprobs(zlib.crc32(context[: position * _CELL.size]), token, k)
                    for k in (params.prompt_logprobs,)
                    for position, token in enumerate(follow, piece.start + 1)
                ]
            )
        return SliceResult(
            sequence=piece.sequence,
            token_ids=token_ids,
            logprobs=logprobs,
            candidates=candidates,
            prompt_logprobs=prompt_logprobs,
            embedding=self._embedding(piece, context),
            draft=draft,
        )

    def _trim(self, sequence: _Known, computed: int) -> None:
        """Positions from `computed` on were wrong guesses: their blocks will be told again."""
        del sequence.cells[computed * _CELL.size :]
        del sequence.table[-(-computed // self.capacity.block_size) :]

    def _guess(self, sequence: _Known) -> tuple[int, ...]:
        """What comes next, some of it wrong."""
        known = len(sequence.token_ids)
        luck = zlib.crc32(bytes(sequence.cells), known)
        for place in range(luck % (self._drafts + 1)):
            token = self._sample(sequence, cells_of(sequence.token_ids))
            wrong = (luck >> place) % 4 == 0
            sequence.token_ids.append((token + wrong) % self.capacity.vocab_size)
        guesses = tuple(sequence.token_ids[known:])
        del sequence.token_ids[known:]
        return guesses

    def _force(self, sequence: _Known, context: bytes) -> tuple[int, ...]:
        """0 to 3 more tokens, those that further steps would have given."""
        known = sequence.token_ids
        run: tuple[int, ...] = ()
        for _ in range(zlib.crc32(context) % 4):
            if known[-1] in self.capacity.eos_token_ids:
                break
            if len(known) > self.capacity.max_model_len:
                break
            context += _CELL.pack(known[-1] + 1, len(known) - 1)
            run += (self._sample(sequence, context),)
            known.append(run[-1])
        return run

    def _embedding(self, piece: Slice, context: bytes) -> tuple[float, ...]:
        stop = piece.start + piece.count
        if piece.wants & Wants.EMBEDDING:
            return hidden_state(context)
        if piece.wants & Wants.EMBEDDING_SUM:
            states = [
                hidden_state(context[: i * _CELL.size]) for i in range(piece.start + 1, stop + 1)
            ]
            return tuple(map(sum, zip(*states, strict=True)))
        return ()

    def _meet(self, piece: Slice) -> _Known:
        """The sequence of a slice, brought up to date with what the slice tells of it."""
        if piece.history is not None:
            told = piece.history
            prompt = told.token_ids[: told.prompt_length]
            self._sequences[piece.sequence] = _Known(
                params=told.params,
                seed=told.seed,
                prompt=prompt,
                token_ids=list(told.token_ids),
                cells=bytearray(cells_of(told.token_ids[: piece.start])),
                script=self._script(prompt) if self._script else None,
            )
        sequence = self._sequences.get(piece.sequence)
        if sequence is None:
            raise PagingFault(f"sequence {piece.sequence} was never introduced")
        sequence.token_ids += piece.token_ids
        if piece.blocks:
            if piece.first_block > len(sequence.table):
                raise PagingFault(f"sequence {piece.sequence} has a gap in its block table")
            sequence.table[piece.first_block :] = piece.blocks
        return sequence

    def _write(self, piece: Slice, sequence: _Known) -> None:
        if len(sequence.cells) != piece.start * _CELL.size:
            raise PagingFault(f"sequence {piece.sequence} skips or repeats cells at {piece.start}")
        stop = piece.start + piece.count
        guessed = len(piece.draft)
        if not guessed < piece.count or stop - guessed > len(sequence.token_ids):
            raise PagingFault(f"sequence {piece.sequence} has no token at {stop - 1}")
        size = self.capacity.block_size
        if len(sequence.table) != (stop + size - 1) // size:
            raise PagingFault(
                f"sequence {piece.sequence} has {len(sequence.table)} blocks at {stop}"
            )
        if guessed and (stop - guessed < len(sequence.token_ids) or not piece.wants & Wants.TOKEN):
            raise PagingFault(f"sequence {piece.sequence} has a draft that follows nothing")
        token_ids = (*sequence.token_ids[piece.start : stop - guessed], *piece.draft)
        for position, token in enumerate(token_ids, piece.start):
            cell = _CELL.pack(token + 1, position)
            offset = position % size * _CELL.size
            block = self._cells[sequence.table[position // size]]
            block[offset : offset + _CELL.size] = cell
            sequence.cells += cell

    def _read(self, piece: Slice, sequence: _Known) -> bytes:
        """All cells up to the slice's last position, through the block table."""
        length = (piece.start + piece.count) * _CELL.size
        context = b"".join([self._cells[block] for block in sequence.table])[:length]
        if context != sequence.cells and _UNKNOWN not in context:
            bad = next(i for i in range(length) if context[i] != sequence.cells[i])
            raise PagingFault(
                f"sequence {piece.sequence} reads a foreign cell at position {bad // _CELL.size}"
            )
        return context

    def _sample(self, sequence: _Known, context: bytes) -> int:
        """A hash of the context; of the seed too, unless greedy."""
        params = sequence.params
        ends = self.capacity.eos_token_ids
        done = len(sequence.token_ids) - len(sequence.prompt)
        if sequence.script is not None:
            if done < len(sequence.script):
                return sequence.script[done]
            return ends[0]
        state = zlib.crc32(context)
        if not params.greedy:
            state = zlib.crc32(sequence.seed.to_bytes(8, "little"), state)
        draw = zlib.crc32(b"end", state) / 2**32
        masked = params.ignore_eos or done < params.min_tokens
        if ends and not masked and draw < self._eos_rate:
            return ends[state % len(ends)]
        banned = {*ends, *(params.stop_token_ids if done < params.min_tokens else ())}
        token = state % self.capacity.vocab_size
        while token in banned:
            token = (token + 1) % self.capacity.vocab_size
        return token

    def _ranking(self, state: int, count: int) -> list[tuple[int, float]]:
        """The `count` likeliest tokens: distinct, log-probabilities falling, ends among them."""
        vocab = self.capacity.vocab_size
        tokens = [(state + rank * 7919) % vocab for rank in range(min(count, vocab))]
        if self.capacity.eos_token_ids and zlib.crc32(b"end", state) / 2**32 < self._eos_rate:
            end = self.capacity.eos_token_ids[0]
            tokens = [token for token in tokens if token != end]
            tokens.insert(state % (len(tokens) + 1), end)
        shift = (state >> 8) % 97 / 97
        ranked = dict.fromkeys(tokens)
        return [
            (token, -shift - _LOGPROB_STEP * (rank + 1))
            for rank, token in enumerate(list(ranked)[:count])
        ]

    def _logprobs(self, state: int, token: int, top: int) -> TokenLogprobs:
        ranked = self._ranking(state, max(top, 1))
        ids = [other for other, _ in ranked]
        rank = ids.index(token) + 1 if token in ids else len(ids) + 1
        return TokenLogprobs(
            token_id=token,
            logprob=dict(ranked).get(token, ranked[-1][1] - _LOGPROB_STEP),
            rank=rank,
            top_ids=tuple(ids[:top]),
            top_logprobs=tuple(logprob for _, logprob in ranked[:top]),
        )
