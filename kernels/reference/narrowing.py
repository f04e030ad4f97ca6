"""What min-p, top-k and top-p leave."""

from __future__ import annotations

import torch
from torch import Tensor

from .sampling import largest


def narrow(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor
) -> None:
    """See `ops.Narrow`."""
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
    logits.masked_fill_(~left & heated[:, None], float("-inf"))
