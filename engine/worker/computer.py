"""`Computer.compute(slices)`: batch, model, choose, keep. All of it or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..errors import SequenceFailed
from ..kv_cache import KVCache
from ..models.base import Model
from ..params import SamplingParams
from ..sampling.sampler import Sampler
from ..step import NOTHING_LEFT, Slice, SliceResult, StepPlan, TokenLogprobs
from ..transfer import Transfer
from .gathering import Work, gather
from .pooling import pool
from .sequences import SequenceTable

_SCORING_BYTES = 32 << 20  # logits of prompt tokens that exist at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What the slices of a step yielded, by index of the slice."""

    token_ids: dict[int, int] = field(default_factory=dict)
    forced: dict[int, tuple[int, ...]] = field(default_factory=dict)  # what must follow these
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)
    candidates: dict[int, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    prompt_logprobs: dict[int, tuple[TokenLogprobs, ...]] = field(default_factory=dict)
    embeddings: dict[int, tuple[float, ...]] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)


class Computer:
    """Computes slices on one device. Not thread-safe.

    `compute` changes nothing that a second run of the same slices, together or apart, would not
    change in the same way, until it has succeeded: KV cells are written again, tokens are kept at
    the end. So whoever fails may be asked again.
    """

    def __init__(
        self,
        *,
        model: Model,
        kv: KVCache,
        sampler: Sampler,
        table: SequenceTable,
        transfer: Transfer,
    ) -> None:
        self._model = model
        self._kv = kv
        self._sampler = sampler
        self._table = table
        self._transfer = transfer

    def ready(self, params: SamplingParams) -> bool:
        """Whether a sequence with these parameters would not keep a step waiting; begins to
        prepare what is missing. From any thread."""
        return self._sampler.ready(params)

    def begin(self, plan: StepPlan) -> None:
        """A step begins: forget the sequences that have ended."""
        self._table.forget(plan.retired)

    @torch.inference_mode()
    def compute(self, slices: Sequence[Slice]) -> list[SliceResult]:
        """What each slice yielded, in their order.

        A slice that is at fault by itself carries its error. An exception means that nothing came
        of any of them, and that it is not known which one is to blame.
        """
        work = self._gather(slices)
        chosen = Chosen()
        if work.slices:
            self._sampler.prepare(work.rows[work.sampling], self._table)
            self._choose(work, self._model.forward(work.batch, self._kv), chosen)
            self._keep(work, chosen)
        return _results(slices, work, chosen)

    def _gather(self, slices: Sequence[Slice]) -> Work:
        work = gather(slices, self._table, self._kv.block_size, self._transfer)
        for part, row in zip(work.slices, work.rows.tolist(), strict=True):
            if part.history is not None:
                self._sampler.admit(row, part.history.params, part.history.seed)
        return work

    def _choose(self, work: Work, hidden: Tensor, chosen: Chosen) -> None:
        """All that slices are to yield, from hidden [tokens, hidden]."""
        if len(work.batch.logits_rows):
            logits = self._model.logits(hidden[work.batch.logits_rows])  # [rows, vocab]
            if len(work.sampling):
                self._sample(work, logits[: len(work.sampling)], chosen)
            if len(work.searching):
                self._search(work, logits[len(work.sampling) :], chosen)
        for at in work.scoring.tolist():
            self._score(work, at, hidden, chosen)
        if len(work.pooling):
            pooled = pool(hidden, work)
            chosen.embeddings.update(pooled.embeddings)
            chosen.errors.update(pooled.errors)

    def _sample(self, work: Work, logits: Tensor, chosen: Chosen) -> None:
        sampled = self._sampler.sample(logits, work.rows[work.sampling], self._table)
        at = work.sampling.tolist()
        chosen.token_ids.update(zip(at, sampled.token_ids, strict=True))
        chosen.logprobs.update({at[i]: named for i, named in sampled.logprobs.items()})
        chosen.errors.update({at[i]: error for i, error in sampled.errors.items()})

    def _search(self, work: Work, logits: Tensor, chosen: Chosen) -> None:
        found = self._sampler.candidates(logits, work.rows[work.searching], self._table)
        for at, candidates in zip(work.searching.tolist(), found, strict=True):
            chosen.candidates[at] = candidates
            if not candidates:
                chosen.errors[at] = NOTHING_LEFT

    def _score(self, work: Work, at: int, hidden: Tensor, chosen: Chosen) -> None:
        """Prompt log-probabilities of one slice, a bounded number of positions at a time."""
        part, row = work.slices[at], int(work.rows[at])
        count = min(part.count, int(self._table.prompt_lengths[row]) - 1 - part.start)
        following = self._table.token_ids[row, part.start + 1 : part.start + 1 + count]
        targets = torch.from_numpy(following.astype(np.int64)).to(hidden.device)
        first = sum(work.batch.query_lengths[:at])
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

    def _keep(self, work: Work, chosen: Chosen) -> None:
        """The step has succeeded: remember its tokens."""
        self._table.keep(work.rows)
        at = [i for i in chosen.token_ids if i not in chosen.errors]
        tokens = np.array([chosen.token_ids[i] for i in at], dtype=np.int64)
        self._table.append(work.rows[at], tokens)
        for i, run in self._sampler.forced(work.rows[at], self._table).items():
            chosen.forced[at[i]] = self._table.extend(int(work.rows[at[i]]), run)


def _results(slices: Sequence[Slice], work: Work, chosen: Chosen) -> list[SliceResult]:
    """In the order of the slices."""
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
    token = chosen.token_ids.get(at)
    token_ids = () if token is None else (token, *chosen.forced.get(at, ()))
    return SliceResult(
        sequence=sequence,
        token_ids=token_ids,
        logprobs=(chosen.logprobs[at],) if at in chosen.logprobs else (),
        candidates=chosen.candidates.get(at, ()),
        prompt_logprobs=chosen.prompt_logprobs.get(at, ()),
        embedding=chosen.embeddings.get(at, ()),
    )
