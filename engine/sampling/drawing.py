"""One token of each row of shaped logits: the likeliest, or by noise among what may be drawn.

`state` is a structured array with the fields temperature, seed, min_p, top_k, top_p and narrowed, a
row each.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from octavo.kernels.ops import Narrowing, Ops

from ..step import NOTHING_LEFT
from ..transfer import beside, together
from .narrowing import heated, keep

NOT_FINITE = "the model's logits are not finite"
FAILURES = {-1: NOT_FINITE, -2: NOTHING_LEFT}  # by what stands where a token should
_FIRST_CANDIDATES = 64  # columns looked at first when the choice is narrowed


class Drawer:
    """Draws over a vocabulary of `vocab_size`.

    Args:
        unseen: all is left to `ops.draw`, which takes more work, but nobody to look how many
            columns are left: for devices whose work the host runs ahead of.
    """

    def __init__(self, vocab_size: int, ops: Ops, *, unseen: bool = False) -> None:
        self._vocab_size = vocab_size
        self._ops = ops
        self._unseen = unseen

    def draw(
        self, logits: Tensor, state: npt.NDArray[np.void], positions: npt.NDArray[np.int64]
    ) -> Tensor:
        """The chosen token id of each row, int64 [rows]."""
        narrowed = state["narrowed"]
        if self._unseen:
            return self._draw_unseen(logits, state, positions)
        if not narrowed.any():
            return self._gumbel_argmax(logits, state, positions)
        chosen = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
        for members, draw in ((~narrowed, self._gumbel_argmax), (narrowed, self._draw_narrowed)):
            at = np.flatnonzero(members)
            if len(at):
                place = beside(at, logits)
                chosen[place] = draw(logits[place], state[at], positions[at])
        return chosen

    def _draw_unseen(
        self, logits: Tensor, state: npt.NDArray[np.void], positions: npt.NDArray[np.int64]
    ) -> Tensor:
        names = ["temperature", "seed"]
        if state["narrowed"].any():
            names += ["top_k", "top_p", "min_p"]
        columns = (state[name] for name in names)
        at, temperature, seeds, *rest = together(logits, positions, *columns)
        narrowing = None
        if rest:
            narrowing = Narrowing(top_k=rest[0], top_p=rest[1], min_p=rest[2])
        return self._ops.draw(logits, temperature, seeds, at, narrowing)[0]

    def _gumbel_argmax(
        self,
        logits: Tensor,
        state: npt.NDArray[np.void],
        positions: npt.NDArray[np.int64],
        token_ids: Tensor | None = None,
    ) -> Tensor:
        temperature, seeds, at = together(logits, state["temperature"], state["seed"], positions)
        return self._ops.gumbel_argmax(logits, temperature, seeds, at, token_ids)

    def _draw_narrowed(
        self, logits: Tensor, state: npt.NDArray[np.void], positions: npt.NDArray[np.int64]
    ) -> Tensor:
        """Draw among what min-p, top-k and top-p leave, int64 [rows].

        Only the likeliest columns are looked at, more of them for rows whose choice is wider; how
        many never changes what is left.
        """
        probabilities = heated(logits, state).softmax(-1)  # [rows, vocab]
        chosen = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
        open_rows = np.arange(len(logits))
        width = min(_FIRST_CANDIDATES, logits.shape[1])
        while len(open_rows):
            at = beside(open_rows, logits)
            values, ids = self._ops.largest(logits[at], width)  # [rows, width]
            likely = probabilities[at].gather(-1, ids)
            kept, complete = keep(likely, state[open_rows], self._vocab_size)
            drawn = self._gumbel_argmax(
                values.masked_fill(~kept, float("-inf")),
                state[open_rows],
                positions[open_rows],
                ids,
            )
            chosen[at] = ids.gather(-1, drawn[:, None])[:, 0]
            open_rows = open_rows[~complete.numpy(force=True)]
            width = min(8 * width, logits.shape[1])
        return chosen


def plain_draw(
    ops: Ops, logits: Tensor, temperature: Tensor, seeds: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """The chosen tokens of rows that nothing shapes or narrows, and their outcomes: where the
    largest logit is finite, so is the chosen one."""
    chosen, largest = ops.draw(logits, temperature, seeds, positions)
    return chosen, torch.where(largest.isfinite(), chosen, -1)


def outcomes_of(largest: Tensor, logits: Tensor, chosen: Tensor) -> Tensor:
    """The chosen tokens, or why rows have none (`FAILURES`), from each row's largest logit as it
    came from the model, and the chosen one as the rules left it."""
    sound = largest.isfinite()
    left = logits.gather(-1, chosen[:, None])[:, 0].isfinite()
    return torch.where(sound & left, chosen, -1 - sound.to(chosen.dtype))
