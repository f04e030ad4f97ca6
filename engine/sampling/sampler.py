"""The stateless sampler: token = argmax(shaped logits + temperature * noise(seed, position, id)).

There is no generator to save. Which token a sequence gets depends on its own logits, parameters,
seed and position, bitwise, whatever else is in the batch; so batching, preemption, swapping and
restart cannot change it. Nor can speculation: a draft is right exactly when it equals the token
that is drawn here. Several tokens of a sequence are drawn at once where what may be said depends on
nothing that has been said (`foreseeable`).

In order: log-probabilities are read from the model's own logits; the rules of `logits.py` shape
them; then temperature, min-p, top-k and top-p narrow the choice, and one token is drawn. A step
in which every row is greedy and unshaped costs one argmax.

What a draw takes is settled on the host before there are logits (`Sampler.settle`), so that what
the device must know of it can go with what else the step sends. `Sampler.draw` then asks nobody.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from octavo.kernels.ops import Ops

from ..errors import SequenceFailed
from ..params import SamplingParams
from ..step import TokenLogprobs
from ..transfer import Array, together
from .drawing import FAILURES, NOT_FINITE, Drawer, outcomes_of
from .logits import Histories, LogitsRule, Rows, Shaping
from .scores import describe, token_logprobs

if TYPE_CHECKING:
    from .grammar_rule import GrammarRule

_NO_LOGPROBS = -1

_ROW = np.dtype(
    [
        ("seed", np.int64),
        ("temperature", np.float32),  # 0: greedy
        ("top_k", np.int64),  # columns kept; the vocabulary's size when off
        ("top_p", np.float32),
        ("min_p", np.float32),
        ("narrowed", np.bool_),  # whether any of the three above is on
        ("logprobs", np.int64),  # likeliest tokens to name, or _NO_LOGPROBS
        ("prompt_logprobs", np.int64),  # the same for prompt tokens
        ("candidates", np.int64),  # continuations to name for beam search
        ("shaped", np.bool_),  # whether any rule applies
        ("bound", np.bool_),  # whether a rule applies that reads what has been said
        ("foreseeable", np.bool_),  # whether none applies that depends on it
        ("plain", np.bool_),  # whether a token is wanted and nothing else, of all that there are
    ]
)


class Draws(Protocol):
    """Draws for rows of which nothing but a token is wanted, and that nothing shapes or narrows:
    what `ops.draw` gives, where somebody has that ready for these logits."""

    def __call__(
        self, logits: Tensor, temperature: Tensor, seeds: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor] | None: ...


class Settled(NamedTuple):
    """A draw, before there are logits. `arrays` are what the device must be sent to make it."""

    state: npt.NDArray[np.void]  # [rows] parameters of the sequences, in the order of the logits
    arrays: tuple[Array, ...]
    asked: Rows  # rows of logits whose log-probabilities are asked for
    failures: dict[int, str]  # by row of logits: what its grammar is at fault for
    numbers: int = 3  # of the arrays, which come first: see `Drawer.numbers`
    plain: bool = False  # nothing but tokens is wanted, and nothing shapes or narrows them
    shapings: tuple[Shaping, ...] = ()
    verifies: bool = False  # drafts: the last two of the arrays are what `ops.Verify` takes


class Sampled(NamedTuple):
    """What was drawn for each row of logits, or why nothing could be."""

    token_ids: list[int]  # meaningless where there is an error
    logprobs: dict[int, TokenLogprobs]  # by row of logits, where asked for
    errors: dict[int, str]  # by row of logits
    accepted: list[int]  # guesses of each sequence that are right; empty where there were no drafts


class Drawn(NamedTuple):
    """The same on the device. `tensors` are what must come to the host to `read` it."""

    token_ids: Tensor  # int64 [rows]
    tensors: tuple[Tensor, ...]
    asked: Rows  # rows of logits whose log-probabilities are asked for
    counts: npt.NDArray[np.int64]  # likeliest tokens to name of each of these
    failures: dict[int, str]  # as `Settled.failures`
    verified: bool = False  # the last of the tensors says how many guesses are right

    def read(self, arrays: Sequence[npt.NDArray[Any]]) -> Sampled:
        """From the values of `tensors`."""
        accepted: list[int] = []
        if self.verified:
            *arrays, right = arrays
            accepted = right.tolist()
        outcomes: list[int] = arrays[0].tolist()
        errors: dict[int, str] = {}
        if min(outcomes, default=0) < 0:
            failed = [(row, told) for row, told in enumerate(outcomes) if told < 0]
            errors = {row: self.failures.get(row) or FAILURES[told] for row, told in failed}
        logprobs: dict[int, TokenLogprobs] = {}
        if len(self.asked):
            named = token_logprobs(arrays[1:], self.counts)
            logprobs = dict(zip(self.asked.tolist(), named, strict=True))
        return Sampled(token_ids=outcomes, logprobs=logprobs, errors=errors, accepted=accepted)


class Sampler:
    """Draws one token for each row of logits. Parameters are kept by sequence row.

    Args:
        vocab_size: columns of the logits.
        rules: in the order in which they apply.
        grammar: the rule that comes after them, where answers can be constrained.
        unseen: see `Drawer`.
        draws: asked first, where a step wants nothing but plain draws.
    """

    def __init__(
        self,
        vocab_size: int,
        rules: Sequence[LogitsRule],
        ops: Ops,
        *,
        grammar: GrammarRule | None = None,
        unseen: bool = False,
        draws: Draws | None = None,
    ) -> None:
        self._vocab_size = vocab_size
        self._ops = ops
        self._grammar = grammar
        self._drawer = Drawer(vocab_size, ops, unseen=unseen)
        self._draws = draws
        self._rules = tuple(rules) if grammar is None else (*rules, grammar)
        self._rows = np.zeros(0, dtype=_ROW)
        self._needs = np.zeros((len(self._rules), 0), dtype=np.bool_)  # [rules, rows]
        # What was settled last for rows all of whose draws are plain. As long as they are the same
        # array they are the same sequences, and their draws differ in nothing but their positions.
        self._plain_rows: Rows | None = None
        self._plain: Settled | None = None
        # Draws are settled while beams of the step before are being searched.
        self._lock = threading.Lock()

    def admit(self, row: int, params: SamplingParams, seed: int) -> None:
        """A sequence now lives in `row`; whoever lived there before is forgotten."""
        with self._lock:
            self._plain_rows = None
            self._admit(row, params, seed)

    def _admit(self, row: int, params: SamplingParams, seed: int) -> None:
        if row >= len(self._rows):
            more = row + 1
            # Both or, where memory is missing, none.
            rows = np.concatenate((self._rows, np.zeros(more, dtype=_ROW)))
            self._needs = np.pad(self._needs, ((0, 0), (0, more)))
            self._rows = rows
        needs = [rule.needs(params) for rule in self._rules]
        for rule, needed in zip(self._rules, needs, strict=True):
            if needed:
                rule.admit(row, params)
        self._needs[:, row] = needs
        top_k = min(params.top_k, self._vocab_size) if params.top_k > 0 else self._vocab_size
        temperature = np.float32(0.0 if params.greedy else params.temperature)
        narrows = top_k < self._vocab_size or params.top_p < 1.0 or params.min_p > 0.0
        self._rows[row] = (
            seed - (1 << 64) if seed >= 1 << 63 else seed,
            temperature,
            top_k,
            params.top_p,
            params.min_p,
            temperature > 0 and narrows,
            _NO_LOGPROBS if params.logprobs is None else min(params.logprobs, self._vocab_size),
            min(params.prompt_logprobs or 0, self._vocab_size),
            min(2 * params.beam_width, self._vocab_size),
            any(needs),
            any(n and rule.reads_history for n, rule in zip(needs, self._rules, strict=True)),
            not any(n and r.depends_on_output for n, r in zip(needs, self._rules, strict=True)),
            params.logprobs is None and not any(needs) and not (temperature > 0 and narrows),
        )

    def reads_history(self, rows: Rows) -> bool:
        """Whether what may be said in any of these rows depends on what has been said."""
        return bool(self._rows["bound"][rows].any())

    def foreseeable(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Of which rows several tokens may be drawn at once."""
        return self._rows["foreseeable"][rows]

    def ready(self, params: SamplingParams) -> bool:
        """Whether `admit` would not wait; begins to prepare what is missing. From any thread."""
        return self._grammar is None or self._grammar.ready(params)

    def forced(self, rows: Rows, histories: Histories) -> dict[int, tuple[int, ...]]:
        """The tokens that must follow the known ones of sequences, whatever their logits are, by
        index into `rows`.

        None where log-probabilities are wanted: these take a forward pass for each token.
        """
        if self._grammar is None:
            return {}
        with self._lock:
            bound = self._needs[-1, rows]
            if not bound.any():
                return {}
            bound &= self._rows["logprobs"][rows] == _NO_LOGPROBS
            runs = {
                i: self._grammar.forced(int(rows[i]), histories)
                for i in np.flatnonzero(bound).tolist()
            }
        return {i: run for i, run in runs.items() if run}

    def settle(
        self, rows: Rows, histories: Histories, drafts: Sequence[tuple[int, ...]] = ()
    ) -> Settled:
        """What the next token of each sequence is drawn by, in the order of their logits; the
        position drawn for is the length of its history. To be drawn in the order of the calls, or
        never.

        With `drafts`, one for each sequence that may be empty, also what follows each guess if all
        before it are right: of sequences that are `foreseeable`.
        """
        if not drafts:
            return self._settle(rows, histories.lengths[rows], histories)
        counts = np.array([len(draft) + 1 for draft in drafts])
        offsets = np.concatenate(([0], np.cumsum(counts)))
        behind = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
        each = np.repeat(rows, counts)
        settled = self._settle(each, histories.lengths[each] + behind, histories)
        guesses = np.array([token for draft in drafts for token in (0, *draft)], dtype=np.int64)
        arrays = (*settled.arrays, guesses, offsets.astype(np.int32))
        return settled._replace(arrays=arrays, verifies=True)

    def _settle(self, rows: Rows, positions: Rows, histories: Histories) -> Settled:
        with self._lock:
            if self._plain is not None and rows is self._plain_rows:
                return self._plain._replace(arrays=(*self._plain.arrays[:2], positions))
            state = self._rows.take(rows)  # a third of the time of indexing by them
            numbers = self._drawer.numbers(state, positions)
            if state["plain"].all():
                none = np.zeros(0, np.int64)
                settled = Settled(state=state, arrays=numbers, plain=True, asked=none, failures={})
                self._plain_rows, self._plain = rows, settled
                return settled
            asked = np.flatnonzero(state["logprobs"] != _NO_LOGPROBS)
            shapings = self._shapings(rows, state["shaped"], histories)
            return Settled(
                state=state,
                arrays=(*numbers, asked, *(array for one in shapings for array in one.arrays)),
                numbers=len(numbers),
                asked=asked,
                shapings=shapings,
                failures=self._failures(rows),
            )

    def draw(self, logits: Tensor, settled: Settled, sent: Sequence[Tensor]) -> Drawn:
        """Draw the next token of each sequence, and see which guesses are right.

        Args:
            logits: float32 [rows, vocab]; changed in place.
            settled: what is drawn.
            sent: its arrays, on the device.
        """
        if not settled.verifies:
            return self._draw(logits, settled, sent)
        *sent, guesses, offsets = sent
        drawn = self._draw(logits, settled, sent)
        accepted, _, _ = self._ops.verify(guesses, drawn.token_ids, offsets)
        return drawn._replace(tensors=(*drawn.tensors, accepted), verified=True)

    def _draw(self, logits: Tensor, settled: Settled, sent: Sequence[Tensor]) -> Drawn:
        if settled.plain:
            drawn = None if self._draws is None else self._draws(logits, *sent)
            temperature, seeds, positions = sent
            chosen, outcomes = drawn or self._ops.draw(logits, temperature, seeds, positions)
            return Drawn(
                token_ids=chosen,
                tensors=(outcomes,),
                asked=settled.asked,
                counts=settled.asked,
                failures=settled.failures,
            )
        given = iter(sent)
        numbers = list(islice(given, settled.numbers))
        asked = next(given)
        largest = logits.amax(-1)  # NaN where there is one
        whole = len(asked) == len(logits)
        own = (logits if whole else logits[asked]).log_softmax(-1) if len(asked) else None
        follows = []
        for shaping in settled.shapings:
            follows.append(shaping.apply(logits, list(islice(given, len(shaping.arrays)))))
        chosen = self._drawer.draw(logits, settled.state, numbers)
        for follow in follows:
            if follow is not None:
                follow(chosen)
        counts = settled.state["logprobs"][settled.asked]
        named: tuple[Tensor, ...] = ()
        if own is not None:
            named = describe(self._ops, own, chosen if whole else chosen[asked], counts)
        outcomes = outcomes_of(largest, chosen, logits if settled.shapings else None)
        return Drawn(
            token_ids=chosen,
            tensors=(outcomes, *named),
            asked=settled.asked,
            counts=counts,
            failures=settled.failures,
        )

    def candidates(
        self, logits: Tensor, rows: Rows, histories: Histories
    ) -> list[tuple[tuple[int, float], ...]]:
        """The 2 * beam_width likeliest continuations of each sequence.

        Args:
            logits: float32 [rows, vocab]; changed in place.
            rows, histories: as for `settle`.

        Returns:
            Per row (token id, log-probability under the shaped logits), descending; fewer where
            the rules leave fewer, none where the logits are not finite.
        """
        state = self._rows[rows]
        finite: list[bool] = logits.amax(-1).isfinite().tolist()
        with self._lock:
            for shaping in self._shapings(rows, state["shaped"], histories):
                shaping.apply(logits, together(logits, *shaping.arrays))
                if shaping.undrawn is not None:
                    shaping.undrawn()
        values, ids = self._ops.largest(logits.log_softmax(-1), int(state["candidates"].max()))
        return [
            tuple(
                (token, value)
                for token, value in zip(row_ids[:count], row_values[:count], strict=True)
                if ok and value > float("-inf")
            )
            for ok, count, row_ids, row_values in zip(
                finite, state["candidates"].tolist(), ids.tolist(), values.tolist(), strict=True
            )
        ]

    def score(self, logits: Tensor, token_ids: Tensor, row: int) -> tuple[TokenLogprobs, ...]:
        """Log-probabilities of prompt tokens.

        Args:
            logits: float32 [tokens, vocab], of the positions before them.
            token_ids: int64 [tokens].
            row: the sequence they belong to.

        Raises:
            SequenceFailed: the logits are not finite.
        """
        if not bool(logits.amax(-1).isfinite().all()):
            raise SequenceFailed(NOT_FINITE)
        counts = np.full(len(logits), self._rows["prompt_logprobs"][row])
        named = describe(self._ops, logits.log_softmax(-1), token_ids, counts)
        return tuple(token_logprobs([tensor.numpy(force=True) for tensor in named], counts))

    def _failures(self, rows: Rows) -> dict[int, str]:
        """What the grammars of rows are at fault for, by index into `rows`."""
        if self._grammar is None:
            return {}
        bound = np.flatnonzero(self._needs[-1, rows]).tolist()
        found = {i: self._grammar.failure(int(rows[i])) for i in bound}
        return {i: why for i, why in found.items() if why is not None}

    def _shapings(
        self, rows: Rows, shaped: npt.NDArray[np.bool_], histories: Histories
    ) -> tuple[Shaping, ...]:
        """What the rules do to logits of these sequences, in their order."""
        if not shaped.any():
            return ()
        needs = self._needs[:, rows]  # [rules, rows]
        return tuple(
            rule.shaping(at, rows[at], histories)
            for rule, at in zip(self._rules, map(np.flatnonzero, needs), strict=True)
            if len(at)
        )
