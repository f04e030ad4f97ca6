"""One token of each row of shaped logits: the likeliest, or by noise among what may be drawn.

`state` is a structured array with the fields temperature, seed, min_p, top_k, top_p and narrowed, a
row each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from octavo.kernels.ops import Narrowing, Ops

from ..step import NOTHING_LEFT
from ..transfer import Array, beside
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

    def numbers(
        self, state: npt.NDArray[np.void], positions: npt.NDArray[np.int64]
    ) -> tuple[Array, ...]:
        """What the device must know to `draw`."""
        columns = ["temperature", "seed"]
        if self._unseen and state["narrowed"].any():
            columns += ["top_k", "top_p", "min_p"]
        # Copied, because torch takes no column of a structured array, not even one of a single row.
        temperature, seeds, *rest = (state[name].copy() for name in columns)
        return temperature, seeds, positions, *rest

    def draw(
        self, logits: Tensor, state: npt.NDArray[np.void], numbers: Sequence[Tensor]
    ) -> Tensor:
        """The chosen token id of each row, int64 [rows]. `numbers`: on the device."""
        temperature, seeds, positions, *rest = numbers
        if self._unseen:
            narrowing = None
            if rest:
                narrowing = Narrowing(top_k=rest[0], top_p=rest[1], min_p=rest[2])
            return self._ops.draw(logits, temperature, seeds, positions, narrowing)[0]
        narrowed = state["narrowed"]
        if not narrowed.any():
            return self._ops.gumbel_argmax(logits, temperature, seeds, positions)
        chosen = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
        members = np.flatnonzero(~narrowed)
        if len(members):
            at = beside(members, logits)
            chosen[at] = self._ops.gumbel_argmax(logits[at], *(number[at] for number in numbers))
        members = np.flatnonzero(narrowed)
        at = beside(members, logits)
        own = [number[at] for number in numbers]
        chosen[at] = self._draw_narrowed(logits[at], state[members], own)
        return chosen

    def _draw_narrowed(
        self, logits: Tensor, state: npt.NDArray[np.void], numbers: Sequence[Tensor]
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
            values = values.masked_fill(~kept, float("-inf"))
            heat, seeds, positions = (number[at] for number in numbers)
            drawn = self._ops.gumbel_argmax(values, heat, seeds, positions, ids)
            chosen[at] = ids.gather(-1, drawn[:, None])[:, 0]
            open_rows = open_rows[~complete.numpy(force=True)]
            width = min(8 * width, logits.shape[1])
        return chosen


def outcomes_of(largest: Tensor, chosen: Tensor, shaped: Tensor | None = None) -> Tensor:
    """The chosen tokens, or why rows have none (`FAILURES`), from each row's largest logit as it
    came from the model, and all of them as the rules left them. Where no rule applies (None) and
    the largest logit is finite, so is the chosen one."""
    sound = largest.isfinite()
    if shaped is None:
        return torch.where(sound, chosen, -1)
    left = shaped.gather(-1, chosen[:, None])[:, 0].isfinite()
    return torch.where(sound & left, chosen, -1 - sound.to(chosen.dtype))
