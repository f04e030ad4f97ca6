"""Drawing among what min-p, top-k and top-p leave."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import Narrowing
from .sampling import gumbel_argmax, largest


def draw(
    logits: Tensor,
    temperature: Tensor,
    seeds: Tensor,
    positions: Tensor,
    narrowing: Narrowing | None = None,
) -> tuple[Tensor, Tensor]:
    """See `ops.Draw`."""
    sound = logits.amax(-1).isfinite()
    if narrowing is not None:
        logits = narrow(logits, temperature, narrowing)
    chosen = gumbel_argmax(logits, temperature, seeds, positions)
    return chosen, torch.where(sound, chosen, -1)


def narrow(logits: Tensor, temperature: Tensor, narrowing: Narrowing) -> Tensor:
    """Logits with minus infinity for what is left out."""
    top_k, top_p, min_p = narrowing.top_k, narrowing.top_p, narrowing.min_p
    heated = temperature > 0
    heat = torch.where(heated, temperature, 1.0)[:, None]
    probabilities = ((logits - logits.amax(-1, keepdim=True)) / heat).softmax(-1)
    _, columns = largest(logits, logits.shape[1])
    likely = probabilities.gather(-1, columns)  # descending
    place = torch.arange(logits.shape[1], device=logits.device)
    kept = (place < top_k[:, None]) & (likely >= min_p[:, None] * likely[:, :1])  # a prefix
    mass = likely.cumsum(-1)
    last = kept.sum(-1, keepdim=True).clamp_(min=1) - 1
    within = (mass - likely < top_p[:, None] * mass.gather(-1, last)) | (top_p >= 1.0)[:, None]
    within[:, 0] = True  # the likeliest is always left
    left = torch.zeros_like(kept).scatter_(-1, columns, kept & within)
    return logits.masked_fill(~left & heated[:, None], float("-inf"))
