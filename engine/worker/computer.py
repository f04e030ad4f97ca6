"""`Computer`: launches a step's batch, model and sampler, and keeps its tokens when it lands."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial, wraps
from itertools import takewhile
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..device import without_gradients
from ..errors import SequenceFailed
from ..kv_cache import KVCache
from ..models.base import Model
from ..params import SamplingParams
from ..sampling.sampler import Drawn, Sampled, Sampler, Settled
from ..speculative.base import Proposer
from ..step import NOTHING_LEFT, Slice, SliceResult, StepPlan, TokenLogprobs
from ..transfer import Array, Transfer, beside
from .gathering import LACKING, Work, follow, gather
from .graphs import Eager, Forwards
from .inputs import Inputs, Sent
from .pooling import pool
from .sequences import AsOf, Integers, SequenceTable
from .stream import Stream

P = ParamSpec("P")
R = TypeVar("R")
_SCORING_BYTES = 32 << 20  # logits of prompt tokens that exist at a time
_NONE: Integers = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What the slices of a step yielded, by index of the slice."""

    token_ids: dict[int, tuple[int, ...]] = field(default_factory=dict)
    logprobs: dict[int, tuple[TokenLogprobs, ...]] = field(default_factory=dict)
    drafts: dict[int, tuple[int, ...]] = field(default_factory=dict)
    candidates: dict[int, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    prompt_logprobs: dict[int, tuple[TokenLogprobs, ...]] = field(default_factory=dict)
    embeddings: dict[int, tuple[float, ...]] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)

    @property
    def beside_tokens(self) -> bool:
        """Whether any slice yielded something else than tokens."""
        more = self.drafts or self.logprobs or self.candidates or self.prompt_logprobs
        return bool(more or self.embeddings or self.errors)


@dataclass(slots=True, eq=False)
class Launched:
    """A step that the device has been given, or as much of it as could be."""

    given: Sequence[Slice]
    work: Work
    sent: Sent | None = None  # what the device needs of it; None: of nothing
    # Logits of all draws, and what slices yield besides a token: None where they want no more.
    computed: Callable[[], tuple[Tensor, Chosen | None]] | None = None
    drawn: Callable[[], tuple[Drawn, Callable[[], list[Array]]]] | None = None
    arrived: list[Array] | None = None  # what was drawn, on the host
    drawing: Integers = field(default_factory=lambda: _NONE)  # slices drawn for
    rows: Integers = field(default_factory=lambda: _NONE)  # those slices' rows
    plain: bool = False  # nothing shapes what is drawn

    @property
    def complete(self) -> bool:
        """Whether the device has been given all of it."""
        return self.computed is None or self.drawn is not None


def inferring(method: Callable[P, R]) -> Callable[P, R]:
    """Have a call, and what it calls in its thread, computed without gradients. Torch's own
    decorator would enter once more where that is so already, as it is in the engine's thread
    (assembly.run_engine): 40 us between two steps."""

    @wraps(method)
    def run(*given: P.args, **named: P.kwargs) -> R:
        if torch.is_inference_mode_enabled():
            return method(*given, **named)
        with without_gradients():
            return method(*given, **named)

    return run


class Computer:
    """Computes slices on one device. Not thread-safe: one thread calls it.

    A step may be launched while the one before is under way: what that one samples is read where
    the device has it, and the host learns of it when it lands. Only where the choice depends on
    what has been said (bad words, grammars) does the sampler, but not the model, wait for that.

    Nothing changes, until a step has landed, that a second run of the same slices, together or
    apart, would not change in the same way: KV cells are written again, tokens are kept at the
    end. So after a `rewind` whoever failed may be asked again.
    """

    def __init__(
        self,
        *,
        model: Model,
        kv: KVCache,
        sampler: Sampler,
        table: SequenceTable,
        inputs: Inputs,
        transfer: Transfer,
        stream: Stream,
        forwards: Forwards | None = None,
        proposer: Proposer | None = None,
    ) -> None:
        """`forwards`: how batches are computed; None: by `model`, kernel by kernel. `proposer`: who
        drafts; None: nobody."""
        self._model = model
        self._kv = kv
        self._sampler = sampler
        self._table = table
        self._inputs = inputs
        self._transfer = transfer
        self._stream = stream
        self._forwards = forwards or Eager(model, kv)
        self._proposer = proposer
        self._gathered: Work | None = None  # what was launched last

    def ready(self, params: SamplingParams) -> bool:
        """Whether a sequence with these parameters would not keep a step waiting; begins to
        prepare what is missing. From any thread."""
        return self._sampler.ready(params)

    def begin(self, plan: StepPlan) -> None:
        """A step begins."""

    def forget(self, sequences: Iterable[int]) -> None:
        """These have ended; no step under way names them."""
        self._table.forget(sequences)

    def compute(self, slices: Sequence[Slice]) -> list[SliceResult]:
        """One step that nothing overlaps: what each slice yielded, in their order.

        A slice that is at fault by itself carries its error. An exception means that nothing came
        of any of them, and that it is not known which one is to blame.
        """
        try:
            return self.land(self.launch(slices))
        except Exception:  # whatever it was, it goes on its way
            self.rewind()
            raise

    @inferring
    def launch(self, slices: Sequence[Slice]) -> Launched:
        """Give the device a step: its model, and its sampler where that need not wait."""
        launched = Launched(slices, self._gather(slices))
        work = launched.work
        if work.slices:
            settled = None if self._waits(work) else self._settle(launched)
            launched.sent = self._inputs.send(work.layout, settled.arrays if settled else ())
            beams = self._table.as_of(work.rows, work.contexts) if len(work.searching) else None
            launched.computed = self._stream.run(partial(self._forward, work, launched.sent, beams))
            if settled is not None:
                self._give_to_sampler(launched, settled, launched.sent.others)
        return launched

    @inferring
    def sample(self, launched: Launched) -> None:
        """Give the device the sampler of a step, if it has waited; the step before has landed."""
        if launched.computed is not None and launched.drawn is None:
            settled = self._settle(launched)
            self._give_to_sampler(launched, settled, self._transfer.send(*settled.arrays))

    def land(self, launched: Launched) -> list[SliceResult]:
        """Wait for a step; what each of its slices yielded, in their order, is kept. After an
        exception it may be asked for once more: what has arrived is there."""
        if launched.computed is None or launched.drawn is None:
            return _results(launched.given, launched.work, Chosen())
        _, chosen = launched.computed()
        drawn, arrived = launched.drawn()
        if launched.arrived is None:
            launched.arrived = arrived()
        sampled = drawn.read(launched.arrived)
        if self._one_each(launched, sampled):
            self._table.append(launched.rows, launched.arrived[0])
            return [
                SliceResult(part.sequence, (token,))
                for part, token in zip(launched.given, sampled.token_ids, strict=True)
            ]
        chosen = chosen or Chosen()
        self._read(launched, sampled, chosen)
        self._keep(launched, chosen)
        return _results(launched.given, launched.work, chosen)

    def rewind(self) -> None:
        """Give up what is under way."""
        self._gathered = None
        self._table.rewind()

    # --- on the host ---------------------------------------------------------------------------

    def _gather(self, slices: Sequence[Slice]) -> Work:
        before, self._gathered = self._gathered, None
        work = follow(before, slices, self._table) if before is not None else None
        if work is None:
            work = gather(slices, self._table)
            for part, row in zip(work.slices, work.rows.tolist(), strict=True):
                if part.history is not None:
                    self._sampler.admit(row, part.history.params, part.history.seed)
        self._gathered = work
        return work

    def _waits(self, work: Work) -> bool:
        """Whether the sampler needs tokens that the host has yet to learn."""
        rows = work.rows[work.sampling]
        unknown = work.known[work.sampling] < work.contexts[work.sampling]
        return bool(unknown.any() and self._sampler.reads_history(rows[unknown]))

    def _settle(self, launched: Launched) -> Settled:
        """Settle which slices are drawn for, and how.

        What a grammar forces is known without a draw: then it is passed over.
        """
        work = launched.work
        at, rows, lengths = work.sampling, work.rows, work.contexts
        if not work.decodes:
            rows, lengths = rows[at], lengths[at]
        awaiting = self._table.lengths[rows] == lengths
        if not awaiting.all():
            at, rows, lengths = at[awaiting], rows[awaiting], lengths[awaiting]
        launched.drawing, launched.rows = at, rows
        histories = self._table.as_of(rows, lengths)
        if work.guesses is None:
            return self._sampler.settle(rows, histories)
        drafts = [work.slices[i].draft for i in launched.drawing.tolist()]
        return self._sampler.settle(rows, histories, drafts)

    def _give_to_sampler(
        self, launched: Launched, settled: Settled, sent: Sequence[Tensor]
    ) -> None:
        launched.plain = settled.plain
        launched.drawn = self._stream.run(partial(self._draw, launched, settled, sent))
        self._table.promise(launched.rows)

    def _one_each(self, launched: Launched, sampled: Sampled) -> bool:
        """Whether every slice has yielded one token and nothing else, as in most steps."""
        work = launched.work
        if not (launched.plain and work.decodes and len(launched.drawing) == len(work.slices)):
            return False
        wishes = [part.guess for part in work.slices]
        if self._proposer is not None and any(wishes):
            return False
        return not (sampled.errors or self._lacking(work))

    def _read(self, launched: Launched, sampled: Sampled, chosen: Chosen) -> None:
        at = launched.drawing.tolist()
        if sampled.accepted:
            begin = 0
            for i, right in zip(at, sampled.accepted, strict=True):
                _accept(i, range(begin, begin + right + 1), sampled, chosen)
                begin += 1 + len(launched.work.slices[i].draft)
            return
        chosen.token_ids.update(zip(at, zip(sampled.token_ids, strict=True), strict=True))
        chosen.logprobs.update({at[i]: (named,) for i, named in sampled.logprobs.items()})
        chosen.errors.update({at[i]: error for i, error in sampled.errors.items()})

    def _keep(self, launched: Launched, chosen: Chosen) -> None:
        """The step has succeeded: remember its tokens."""
        work, drawing, rows = launched.work, launched.drawing, launched.rows
        self._table.keep(work.rows, work.known)
        chosen.errors.update(dict.fromkeys(self._lacking(work), LACKING))
        if chosen.errors:
            fine = np.array([i not in chosen.errors for i in drawing.tolist()], dtype=np.bool_)
            self._table.break_promise(rows[~fine])
            drawing, rows = drawing[fine], rows[fine]
        at = drawing.tolist()
        one, one_rows = at, rows  # that had nothing but a token to yield
        if work.guesses is not None:
            guessed = work.guesses[drawing] > 0
            one, one_rows = drawing[~guessed].tolist(), rows[~guessed]
            for i in drawing[guessed].tolist():
                self._table.accept(int(work.rows[i]), chosen.token_ids[i])
        tokens = np.array([chosen.token_ids[i][0] for i in one], dtype=np.int64)
        self._table.append(one_rows, tokens)
        if not launched.plain:
            # Nothing has been promised meanwhile to whom a grammar binds.
            for i, run in self._sampler.forced(rows, self._table).items():
                chosen.token_ids[at[i]] += self._table.extend(int(rows[i]), run)
        if self._proposer is not None:
            self._propose(self._proposer, work, drawing, chosen)

    def _lacking(self, work: Work) -> list[int]:
        """Slices of a step whose last token has not come: the step before has landed meanwhile,
        without one."""
        wanting = work.sampling
        lacking = self._table.known(work.rows[wanting]) < work.contexts[wanting]
        indexes: list[int] = wanting[lacking].tolist()
        return indexes

    def _propose(self, proposer: Proposer, work: Work, drawing: Integers, chosen: Chosen) -> None:
        """What sequences may say next, where that was asked and several tokens can be drawn at
        once."""
        for i in drawing.tolist():
            most = work.slices[i].guess
            if most:
                length = int(work.contexts[i]) + len(chosen.token_ids[i])
                draft = proposer.propose(self._table.token_ids[work.rows[i], :length], most)
                if draft and self._sampler.foreseeable(work.rows[i : i + 1])[0]:
                    chosen.drafts[i] = draft

    # --- on the stream -------------------------------------------------------------------------

    @inferring
    def _forward(self, work: Work, sent: Sent, beams: AsOf | None) -> tuple[Tensor, Chosen | None]:
        """The logits to draw from, and what slices yield besides a token.

        Beams, prompt log-probabilities and hidden states are waited for here and now: such steps
        overlap less.
        """
        hidden, logits = self._forwards(sent.batch())
        if work.decodes:
            return logits, None
        chosen = Chosen()
        if beams is not None:
            self._search(work, logits[len(work.layout.draws) :], beams, chosen)
            logits = logits[: len(work.layout.draws)]
        for at in work.scoring.tolist():
            self._score(work, at, hidden, chosen)
        if len(work.pooling):
            pooled = pool(hidden, work)
            chosen.embeddings.update(pooled.embeddings)
            chosen.errors.update(pooled.errors)
        return logits, chosen

    @inferring
    def _draw(
        self, launched: Launched, settled: Settled, sent: Sequence[Tensor]
    ) -> tuple[Drawn, Callable[[], list[Array]]]:
        """Draw, and see which guesses are right; remember the tokens for the next step, and begin
        to bring them to the host."""
        assert launched.computed is not None and launched.sent is not None
        logits, _ = launched.computed()
        work, drawing = launched.work, launched.drawing
        targets = launched.sent.targets
        if len(drawing) < len(work.sampling):
            kept = np.flatnonzero(np.isin(work.layout.draws, drawing))
            (place,) = self._transfer.send(kept)
            logits, targets = logits[place], targets[place]
        drawn = self._sampler.draw(logits, settled, sent)
        if len(drawing):
            self._inputs.remember(targets, drawn.token_ids)
        return drawn, self._transfer.receive(*drawn.tensors)

    def _search(self, work: Work, logits: Tensor, histories: AsOf, chosen: Chosen) -> None:
        found = self._sampler.candidates(logits, work.rows[work.searching], histories)
        for at, candidates in zip(work.searching.tolist(), found, strict=True):
            chosen.candidates[at] = candidates
            if not candidates:
                chosen.errors[at] = NOTHING_LEFT

    def _score(self, work: Work, at: int, hidden: Tensor, chosen: Chosen) -> None:
        """Prompt log-probabilities of one slice, a bounded number of positions at a time."""
        part, row = work.slices[at], int(work.rows[at])
        count = min(part.count, int(self._table.prompt_lengths[row]) - 1 - part.start)
        following = self._table.token_ids[row, part.start + 1 : part.start + 1 + count]
        targets = beside(following.astype(np.int64), hidden)
        first = int(work.counts[:at].sum())
        step = max(1, _SCORING_BYTES // (4 * self._model.config.vocab_size))
        named: list[TokenLogprobs] = []
        try:
            for begin in range(0, count, step):
                end = min(begin + step, count)
                logits = self._model.logits(hidden[first + begin : first + end])
                named += self._sampler.score(logits, targets[begin:end], row)
        except SequenceFailed as error:
            chosen.errors[at] = str(error)
        else:
            chosen.prompt_logprobs[at] = tuple(named)


def _results(slices: Sequence[Slice], work: Work, chosen: Chosen) -> list[SliceResult]:
    """In the order of the slices."""
    if not (work.failed or chosen.beside_tokens):  # a quick way for most steps
        tokens = chosen.token_ids
        return [SliceResult(part.sequence, tokens.get(at, ())) for at, part in enumerate(slices)]
    by_sequence = {
        sequence: SliceResult(sequence=sequence, error=error)
        for sequence, error in work.failed.items()
    }
    for at, part in enumerate(work.slices):
        by_sequence[part.sequence] = _result(at, part.sequence, chosen)
    return [by_sequence[part.sequence] for part in slices]


def _result(at: int, sequence: int, chosen: Chosen) -> SliceResult:
    if at in chosen.errors:
        return SliceResult(sequence=sequence, error=chosen.errors[at])
    return SliceResult(
        sequence=sequence,
        token_ids=chosen.token_ids.get(at, ()),
        logprobs=chosen.logprobs.get(at, ()),
        candidates=chosen.candidates.get(at, ()),
        prompt_logprobs=chosen.prompt_logprobs.get(at, ()),
        embedding=chosen.embeddings.get(at, ()),
        draft=chosen.drafts.get(at, ()),
    )


def _accept(at: int, draws: range, sampled: Sampled, chosen: Chosen) -> None:
    """The accepted draws of a slice. Where one of them went wrong, those before it are good: it is
    drawn once more in the next step, which has nothing before it."""
    good = list(takewhile(lambda i: i not in sampled.errors, draws))
    if not good:
        chosen.errors[at] = sampled.errors[draws[0]]
    chosen.token_ids[at] = tuple([sampled.token_ids[i] for i in good])
    if good and good[0] in sampled.logprobs:
        chosen.logprobs[at] = tuple([sampled.logprobs[i] for i in good])
