"""The stateless sampler: token = argmax(shaped logits + temperature * noise(seed, position, id)).

There is no generator to save. Which token a sequence gets depends on its own logits, parameters,
seed and position, bitwise, whatever else is in the batch; so batching, preemption, swapping and
restart cannot change it. Nor can speculation: a draft is right exactly when it equals the token
that is drawn here.

In order: log-probabilities are read from the model's own logits; the rules of `logits.py` shape
them; then temperature, min-p, top-k and top-p narrow the choice, and one token is drawn. A step
in which every row is greedy and unshaped costs one argmax.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from octavo.kernels.ops import Ops

from ..errors import SequenceFailed
from ..params import SamplingParams
from ..step import TokenLogprobs
from ..transfer import beside, together
from .drawing import FAILURES, NOT_FINITE, Drawer, outcomes_of, plain_draw
from .logits import Follow, Histories, LogitsRule, Rows
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
        ("bound", np.bool_),  # whether a rule applies that depends on what has been said
        ("plain", np.bool_),  # whether a token is wanted and nothing else, of all that there are
    ]
)


class Draws(Protocol):
    """Draws for rows of which nothing but a token is wanted, and that nothing shapes or narrows:
    what `drawing.plain_draw` gives, in one call, where somebody has that ready for these logits."""

    def __call__(
        self,
        logits: Tensor,
        temperature: npt.NDArray[np.float32],
        seeds: npt.NDArray[np.int64],
        positions: npt.NDArray[np.int64],
    ) -> tuple[Tensor, Tensor] | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """What was drawn for each row of logits, or why nothing could be."""

    token_ids: list[int]  # meaningless where there is an error
    logprobs: dict[int, TokenLogprobs]  # by row of logits, where asked for
    errors: dict[int, str]  # by row of logits


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """The same on the device. `tensors` are what must come to the host to `read` it."""

    token_ids: Tensor  # int64 [rows]
    tensors: tuple[Tensor, ...]
    asked: Rows  # rows of logits whose log-probabilities are asked for
    counts: npt.NDArray[np.int64]  # likeliest tokens to name of each of these
    failures: dict[int, str]  # by row of logits: what its grammar is at fault for

    def read(self, arrays: Sequence[npt.NDArray[Any]]) -> Sampled:
        """From the values of `tensors`."""
        outcomes = arrays[0]
        errors = {
            row: self.failures.get(row) or FAILURES[int(outcomes[row])]
            for row in np.flatnonzero(outcomes < 0).tolist()
        }
        logprobs: dict[int, TokenLogprobs] = {}
        if len(self.asked):
            named = token_logprobs(arrays[1:], self.counts)
            logprobs = dict(zip(self.asked.tolist(), named, strict=True))
        return Sampled(token_ids=outcomes.tolist(), logprobs=logprobs, errors=errors)


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
        # Sequences are admitted, and grammars walked, while the step before is being sampled.
        self._lock = threading.Lock()

    def admit(self, row: int, params: SamplingParams, seed: int) -> None:
        """A sequence now lives in `row`; whoever lived there before is forgotten."""
        with self._lock:
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
            params.logprobs is None and not any(needs) and not (temperature > 0 and narrows),
        )

    def reads_history(self, rows: Rows) -> bool:
        """Whether what may be said in any of these rows depends on what has been said."""
        return bool(self._rows["bound"][rows].any())

    def ready(self, params: SamplingParams) -> bool:
        """Whether `admit` would not wait; begins to prepare what is missing. From any thread."""
        return self._grammar is None or self._grammar.ready(params)

    def prepare(self, rows: Rows, histories: Histories) -> None:
        """Begin what can be done for `draw` of the same arguments before there are logits."""
        if self._grammar is not None:
            with self._lock:
                bound = rows[self._needs[-1, rows]]
                if len(bound):
                    self._grammar.prepare(bound, histories)

    def forced(self, rows: Rows, histories: Histories) -> dict[int, tuple[int, ...]]:
        """The tokens that must follow the known ones of sequences, whatever their logits are, by
        index into `rows`.

        None where log-probabilities are wanted: these take a forward pass for each token.
        """
        if self._grammar is None:
            return {}
        with self._lock:
            bound = self._needs[-1, rows] & (self._rows["logprobs"][rows] == _NO_LOGPROBS)
            runs = {
                i: self._grammar.forced(int(rows[i]), histories)
                for i in np.flatnonzero(bound).tolist()
            }
        return {i: run for i, run in runs.items() if run}

    def draw(self, logits: Tensor, rows: Rows, histories: Histories) -> Drawn:
        """Draw the next token of each sequence.

        Args:
            logits: float32 [rows, vocab]; changed in place.
            rows: int64 [rows], the sequence that each row of logits continues. The position
                drawn for is the length of its history.
        """
        with self._lock:
            if self._rows["plain"][rows].all():
                return self._draw_plain(logits, rows, histories)
            state = self._rows[rows]
            asked = np.flatnonzero(state["logprobs"] != _NO_LOGPROBS)
            largest = logits.amax(-1)  # NaN where there is one
            own = logits[beside(asked, logits)].log_softmax(-1) if len(asked) else None
            follows = self._shape(logits, rows, state["shaped"], histories)
            failures = self._failures(rows)
        chosen = self._drawer.draw(logits, state, histories.lengths[rows])
        with self._lock:
            for follow in follows:
                follow(chosen)
        counts = state["logprobs"][asked]
        named: tuple[Tensor, ...] = ()
        if own is not None:
            named = describe(self._ops, own, chosen[beside(asked, chosen)], counts)
        return Drawn(
            token_ids=chosen,
            tensors=(outcomes_of(largest, logits, chosen), *named),
            asked=asked,
            counts=counts,
            failures=failures,
        )

    def _draw_plain(self, logits: Tensor, rows: Rows, histories: Histories) -> Drawn:
        numbers = (
            self._rows["temperature"][rows],
            self._rows["seed"][rows],
            histories.lengths[rows],
        )
        drawn = None if self._draws is None else self._draws(logits, *numbers)
        if drawn is None:
            drawn = plain_draw(self._ops, logits, *together(logits, *numbers))
        chosen, outcomes = drawn
        none = np.zeros(0, np.int64)
        return Drawn(token_ids=chosen, tensors=(outcomes,), asked=none, counts=none, failures={})

    def candidates(
        self, logits: Tensor, rows: Rows, histories: Histories
    ) -> list[tuple[tuple[int, float], ...]]:
        """The 2 * beam_width likeliest continuations of each sequence.

        Args:
            logits, rows, histories: as for `sample`.

        Returns:
            Per row (token id, log-probability under the shaped logits), descending; fewer where
            the rules leave fewer, none where the logits are not finite.
        """
        state = self._rows[rows]
        finite: list[bool] = logits.amax(-1).isfinite().tolist()
        with self._lock:
            self._shape(logits, rows, state["shaped"], histories)
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

    def _shape(
        self, logits: Tensor, rows: Rows, shaped: npt.NDArray[np.bool_], histories: Histories
    ) -> list[Follow]:
        """Returns who wants to know what is drawn."""
        if not shaped.any():
            return []
        needs = self._needs[:, rows]  # [rules, rows]
        applied = []
        for rule, needed in zip(self._rules, needs, strict=True):
            at = np.flatnonzero(needed)
            if len(at):
                applied.append(rule.apply(logits, at, rows[at], histories))
        return [follow for follow in applied if follow is not None]
