"""`GrammarRule`: the logits rule that keeps every answer within its grammar."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np
import torch
from llguidance import LLExecutor
from torch import Tensor

from octavo.kernels.ops import AllowOnly

from ..errors import SequenceFailed
from ..params import SamplingParams
from ..transfer import beside
from .grammar import WORD_BITS, Bitmask, Grammar, GrammarCompiler, fill_masks
from .logits import Histories, Rows, Shaping

log = logging.getLogger(__name__)

_BROKEN = "the server failed to follow the grammar of this request; its log says more"


class GrammarRule:
    """`grammar`: only what continues a valid answer may be said. A `LogitsRule`; the last one.

    The masks are computed beside the forward pass, and sent when they are there: the one thing of a
    step that does not travel in its first copy. The grammar wins over other rules: where these have
    left nothing that it allows, all that it allows has the logit 0, and so has a forced token.

    Args:
        vocab_size: columns of the logits.
        threads: cores to compute masks on.
    """

    reads_history = True
    depends_on_output = True

    def __init__(
        self, vocab_size: int, compiler: GrammarCompiler, allow_only: AllowOnly, *, threads: int = 1
    ) -> None:
        self._words = -(-vocab_size // WORD_BITS)
        self._compiler = compiler
        self._allow_only = allow_only
        self._executor = LLExecutor(threads)
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="octavo-masks")
        self._walks: dict[int, Grammar | None] = {}  # by row; None: it failed
        self._failures: dict[int, str] = {}  # why, by row
        self._read: dict[int, int] = {}  # by row: output tokens accepted
        self._masking: Future[Bitmask] | None = None

    def needs(self, params: SamplingParams) -> bool:
        return params.grammar is not None

    def ready(self, params: SamplingParams) -> bool:
        """Whether `admit` would not wait; begins to compile what is not yet there."""
        return params.grammar is None or self._compiler.ready(params.grammar)

    def admit(self, row: int, params: SamplingParams) -> None:
        assert params.grammar is not None, "only rows that need the rule are admitted"
        self._settle()
        self._read[row] = 0
        self._failures.pop(row, None)
        try:
            self._walks[row] = self._compiler.start(params.grammar)
        except SequenceFailed as error:
            self._fail(row, error)

    def shaping(self, at: Rows, rows: Rows, histories: Histories) -> Shaping:
        """Begins to compute the masks."""
        self._settle()
        living = tuple(rows.tolist())
        for row in living:
            self._catch_up(row, histories)
        masking = self._masking = self._beside.submit(self._masks, living)

        def apply(logits: Tensor, given: Sequence[Tensor]) -> None:
            (place,) = given
            self._mask(logits, place, beside(masking.result(), logits))

        return Shaping(arrays=(at,), apply=apply)

    def failure(self, row: int) -> str | None:
        """Why the sequence in `row` cannot go on, if that is the grammar's fault."""
        return self._failures.get(row)

    def forced(self, row: int, histories: Histories) -> tuple[int, ...]:
        """The tokens that must follow the sequence's known ones; empty where there is a choice."""
        self._settle()
        self._catch_up(row, histories)
        walk = self._walks[row]
        return () if walk is None else walk.forced()

    def _catch_up(self, row: int, histories: Histories) -> None:
        """Bring a walk to where its history stands: a token further, or replayed from the start."""
        walk = self._walks[row]
        if walk is None:
            return
        begin, end = int(histories.prompt_lengths[row]), int(histories.lengths[row])
        said = end - begin
        walk.rollback(max(0, self._read[row] - said))
        fresh = histories.token_ids[row, begin + min(self._read[row], said) : end]
        self._read[row] = said
        try:
            walk.accept(fresh.tolist())
        except SequenceFailed as error:
            self._fail(row, error)
        except Exception:  # nobody knows how far it came
            log.exception("a grammar broke")
            self._fail(row, SequenceFailed(_BROKEN))

    def _fail(self, row: int, error: SequenceFailed) -> None:
        self._walks[row] = None
        self._failures[row] = str(error)

    def _masks(self, rows: tuple[int, ...]) -> Bitmask:
        masks = np.zeros((len(rows), self._words), dtype=np.int32)
        walks = [self._walks[row] for row in rows]
        living = [row for row, walk in enumerate(walks) if walk is not None]
        part = np.zeros((len(living), self._words), dtype=np.int32)
        fill_masks([walk for walk in walks if walk is not None], part, self._executor)
        masks[living] = part
        return masks

    def _mask(self, logits: Tensor, at: Tensor, bitmask: Tensor) -> None:
        allowed = logits[at]
        self._allow_only(allowed, bitmask)
        # Whether a row is lost the device alone knows: who asked it would wait for it.
        lost = allowed.amax(-1, keepdim=True) == float("-inf")
        anything = torch.zeros_like(allowed)
        self._allow_only(anything, bitmask)
        logits[at] = torch.where(lost, anything, allowed)

    def _settle(self) -> None:
        """Wait for the thread, which alone may touch the walks while it runs."""
        if self._masking is not None:
            wait((self._masking,))
            self._masking = None
