"""Temperature, min-p, top-k and top-p: which tokens may still be drawn.

Min-p keeps what is at least that share of the likeliest token's probability (Nguyen et al. 2024),
top-k the k likeliest, of equal ones the lower ids; top-p keeps the smallest set of the likeliest
whose probability reaches p of what the other two left (Holtzman et al. 2019, "nucleus").
`state` is a structured array with the fields temperature, min_p, top_k and top_p, a row each.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..transfer import beside


def heated(logits: Tensor, state: npt.NDArray[np.void]) -> Tensor:
    """Logits over temperature, largest 0: a small temperature gives minus infinity, not NaN."""
    temperature = column(state["temperature"], logits)[:, None]
    return (logits - logits.amax(-1, keepdim=True)) / temperature


def keep(
    probabilities: Tensor, state: npt.NDArray[np.void], vocab_size: int
) -> tuple[Tensor, Tensor]:
    """Which of the likeliest columns may be drawn.

    Args:
        probabilities: float32 [rows, width], of the largest logits, descending.
        state: the parameters of the rows.
        vocab_size: columns there are in all.

    Returns:
        bool [rows, width], and bool [rows]: whether the rest of the row may not be drawn.
    """
    width = probabilities.shape[1]
    top_k = column(state["top_k"], probabilities)[:, None]
    top_p = column(state["top_p"], probabilities)[:, None]
    min_p = column(state["min_p"], probabilities)[:, None]
    place = torch.arange(width, device=probabilities.device)
    kept = (place < top_k) & (probabilities >= min_p * probabilities[:, :1])  # a prefix
    # Top-p is a share of what the other two left: of all, where neither is on. The running sum is
    # a left-to-right one, so that no later column and no other row enters it.
    narrowed = (top_k < vocab_size) | (min_p > 0)
    mass = probabilities.cumsum(-1)
    last = (kept.sum(-1, keepdim=True) - 1).clamp_(min=0)
    total = torch.where(narrowed, mass.gather(-1, last), 1.0)
    # Whether what the other two leave is all in view.
    ended = ~kept[:, -1:] | (top_k <= width)
    before = mass - probabilities
    within = (before < top_p * total) | (top_p >= 1.0)
    within[:, 0] = True  # the likeliest token is always left
    left = kept & within
    complete = (ended | (~narrowed & ~within[:, -1:]))[:, 0]
    return left, complete


def column(values: npt.NDArray[np.generic], like: Tensor) -> Tensor:
    """A column of the structured rows as a tensor beside `like`."""
    return beside(values.copy(), like)
