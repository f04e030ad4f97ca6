"""Writing text with a model: a batch of prompts of one length, greedy or sampled."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from bundled.model import KeyValue, Llama


@torch.no_grad()
def generate(
    model: Llama,
    prompts: Tensor,
    *,
    most: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    ends: Collection[int] = (),
) -> Tensor:
    """Continues `prompts` [batch, length] by up to `most` tokens: [batch, at most `most`].

    Temperature 0 takes the likeliest token. Ends early once every row has shown one of `ends`; what
    a row shows after its own end is to be ignored.
    """
    generator = torch.Generator(prompts.device).manual_seed(seed)
    past = empty_past(model, len(prompts))
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=prompts.device)
    column = prompts
    written = []
    for _ in range(most):
        logits = model.logits(model(column, past)[:, -1]).float()
        if temperature == 0:
            chosen = logits.argmax(dim=-1)
        else:
            chances = nucleus((logits / temperature).softmax(dim=-1), top_p)
            chosen = torch.multinomial(chances, 1, generator=generator)[:, 0]
        written.append(chosen)
        for end in ends:
            ended |= chosen == end
        if bool(ended.all()):
            break
        column = chosen[:, None]
    return torch.stack(written, dim=1)


def nucleus(chances: Tensor, top_p: float) -> Tensor:
    """Zeroes all but the likeliest entries that together reach `top_p`; not renormalised."""
    if top_p >= 1:
        return chances
    ordered, order = chances.sort(dim=-1, descending=True)
    ordered[ordered.cumsum(dim=-1) - ordered >= top_p] = 0
    return torch.zeros_like(chances).scatter(-1, order, ordered)


def empty_past(model: Llama, batch: int) -> list[KeyValue]:
    """A key-value cache without positions, one entry a layer."""
    weight = model.embed_tokens.weight
    shape = (batch, model.shape.kv_heads, 0, model.shape.head_dim)
    return [(weight.new_zeros(shape), weight.new_zeros(shape)) for _ in range(model.shape.layers)]
