"""From the slices of a step to what is computed of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..errors import SequenceFailed
from ..step import Slice, Wants
from .inputs import Layout
from .sequences import Integers, SequenceTable

_KINDS = (
    int(Wants.TOKEN),
    int(Wants.CANDIDATES),
    int(Wants.PROMPT_LOGPROBS),
    int(Wants.EMBEDDING | Wants.EMBEDDING_SUM),
)
LACKING = "an earlier step, which was to yield its last token, failed"


class Work(NamedTuple):
    """Those of some slices that can be computed, laid out one after the other.

    A slice that wants a token draws one behind its last known token, and one behind each guess. The
    batch's `logits_rows` are of these draws, then of the slices in `searching`.
    """

    slices: tuple[Slice, ...]
    rows: Integers  # [slices] rows of the sequence table
    counts: Integers  # [slices] tokens of each
    # [slices] computed tokens and this step's, without guesses: the position a token is for
    contexts: Integers
    known: Integers  # [slices] tokens of the sequence that the host knew
    guesses: Integers | None  # [slices] tokens of each one's draft; None: nothing is guessed
    layout: Layout
    sampling: Integers  # indexes of slices that want a token
    searching: Integers  # of those that want candidates
    scoring: Integers  # of those that want prompt log-probabilities
    pooling: Integers  # of those that want an embedding
    failed: dict[int, str]  # why the others cannot be computed, by sequence
    tenants: int  # `SequenceTable.tenants` as it was
    decodes: bool  # every slice has one token, and wants nothing but the next one


def follow(before: Work, given: Sequence[Slice], table: SequenceTable) -> Work | None:
    """As `gather`, where these slices do for the very sequences of `before` what that did, one
    token further, as in most steps; None where it may be anything else."""
    slices, contexts = before.slices, before.contexts + 1
    if not before.decodes or before.tenants != table.tenants or len(given) != len(slices):
        return None
    for part, last in zip(given, slices, strict=True):
        if part.sequence != last.sequence or part.start != last.start + 1:
            return None
        if not part.decodes:
            return None
        if part.blocks:
            table.row(part)
    rows = before.rows
    if (table.lengths[rows] < contexts).any():  # a step has yielded less than it promised
        return None
    known = table.known(rows)
    layout = before.layout._replace(contexts=contexts, known=known, places=contexts)
    return before._replace(slices=tuple(given), contexts=contexts, known=known, layout=layout)


def gather(given: Sequence[Slice], table: SequenceTable) -> Work:
    """Take in what the slices bring, and lay their tokens out one after the other.

    A slice whose sequence lacks tokens or blocks, because an earlier step of it failed, is left
    out and named in `failed`.
    """
    slices, rows, failed = _take_in(given, table)
    counts = np.array([part.count for part in slices], dtype=np.int64)
    contexts = np.array([part.start for part in slices], dtype=np.int64) + counts
    guesses = None
    if any(part.draft for part in slices):
        guesses = np.array([len(part.draft) for part in slices], dtype=np.int64)
    table.guess(rows, 0 if guesses is None else guesses)
    able = table.reach(rows) >= contexts
    if not able.all():
        failed |= {slices[i].sequence: LACKING for i in np.flatnonzero(~able).tolist()}
        slices = [slices[i] for i in np.flatnonzero(able).tolist()]
        rows, counts, contexts = rows[able], counts[able], contexts[able]
        guesses = None if guesses is None else guesses[able]
    sampling, searching, scoring, pooling = _wanting(slices)
    known, ends = table.known(rows), np.cumsum(counts)
    layout = Layout(
        rows=rows,
        counts=counts,
        contexts=contexts,
        known=known,
        ends=ends,
        logits_rows=ends[np.concatenate((sampling, searching))] - 1,
        draws=sampling,
        places=contexts[sampling],
    )
    if guesses is not None:
        layout, contexts = _with_guesses(layout, guesses, searching), contexts - guesses
    return Work(
        slices=tuple(slices),
        rows=rows,
        counts=counts,
        contexts=contexts,
        known=known,
        guesses=guesses,
        layout=layout,
        sampling=sampling,
        searching=searching,
        scoring=scoring,
        pooling=pooling,
        failed=failed,
        tenants=table.tenants,
        decodes=not failed and all(part.decodes for part in slices),
    )


def _with_guesses(layout: Layout, guesses: Integers, searching: Integers) -> Layout:
    """One more draw of a slice behind each of its guesses, which are its last tokens."""
    counts = guesses[layout.draws] + 1
    draws = np.repeat(layout.draws, counts)
    behind = np.arange(len(draws)) - np.repeat(np.cumsum(counts) - counts, counts)
    behind -= guesses[draws]  # from 0 down: how many guesses come after it
    return layout._replace(
        known=layout.known + guesses,
        logits_rows=np.concatenate((layout.ends[draws] + behind, layout.ends[searching])) - 1,
        draws=draws,
        places=layout.contexts[draws] + behind,
    )


def _wanting(slices: Sequence[Slice]) -> tuple[Integers, Integers, Integers, Integers]:
    """Indexes of the slices that want a token, candidates, scores of the prompt, an embedding."""
    wanted = [part.wants for part in slices]
    if wanted.count(Wants.TOKEN) == len(wanted):  # as in most steps
        none = np.zeros(0, np.int64)
        return np.arange(len(wanted)), none, none, none
    wants = np.array(wanted, dtype=np.int64)
    sampling, searching, scoring, pooling = [np.flatnonzero(wants & kind) for kind in _KINDS]
    return sampling, searching, scoring, pooling


def _take_in(
    given: Sequence[Slice], table: SequenceTable
) -> tuple[list[Slice], Integers, dict[int, str]]:
    """The slices of known sequences, the rows of these, and why the others cannot be computed."""
    failed: dict[int, str] = {}
    slices: list[Slice] = []
    found: list[int] = []
    for part in given:
        try:
            found.append(table.row(part))
        except SequenceFailed as error:
            failed[part.sequence] = str(error)
        else:
            slices.append(part)
    return slices, np.array(found, dtype=np.int64), failed
