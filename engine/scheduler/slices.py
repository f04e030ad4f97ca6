"""`next_slice`: one sequence's part of a plan, and what the compute wing must be told for it.

The compute wing keeps what it has been told, so that a decoding sequence costs the same at any
length: its slice names nothing but a position, and once per block a new block.
"""

from __future__ import annotations

from ..sequence import Sequence
from ..step import History, Slice, Wants

SAMPLES = (Wants.TOKEN, Wants.TOKEN | Wants.PROMPT_LOGPROBS)
"""What a slice wants that yields a token of its sequence."""


def next_slice(sequence: Sequence, count: int, guess: int = 0) -> Slice:
    """The slice of the next `count` pending tokens, whose blocks are in the table already.

    They count as computed from here on, and a token that is to be sampled as promised: of a draft
    nothing but what follows the known tokens is sure to come. `guess`: see `Slice`.
    """
    start = sequence.computed
    stop = start + count
    wants = sequence.gathering
    draft: tuple[int, ...] = ()
    if sequence.draft:
        draft, sequence.draft = sequence.draft[: stop - sequence.known], ()
        sequence.drafted = len(draft)
    known = len(sequence.token_ids) + sequence.promised
    if stop - len(draft) == known < sequence.limit:
        wants = sequence.yields | wants if wants else sequence.yields  # rarely: `|` is slow
        if wants in SAMPLES:
            sequence.promised += 1
    history = None if sequence.introduced else _introduce(sequence)
    appended, sequence.unsent = sequence.unsent, ()
    table, told = sequence.block_table, sequence.told_blocks
    sequence.told_blocks = len(table)
    sequence.computed = stop
    sequence.in_flight += 1
    blocks = tuple(table[told:]) if told < len(table) else ()
    adapter = sequence.request.adapter
    return Slice(
        sequence.id, start, count, wants, appended, told, blocks, history, adapter, draft, guess
    )


def _introduce(sequence: Sequence) -> History:
    """All that the compute wing must know of a sequence that it meets, perhaps again."""
    sequence.introduced = True
    sequence.told_blocks = 0
    sequence.unsent = ()
    return History(
        params=sequence.request.sampling,
        seed=sequence.seed,
        prompt_length=sequence.prompt_length,
        token_ids=tuple(sequence.token_ids),
        request_id=sequence.request.id,
    )
