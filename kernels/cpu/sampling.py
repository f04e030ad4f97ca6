"""Choosing tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import GumbelArgmax
from ..reference.sampling import gumbel_argmax as reference
from .library import COUNT, POINTER, Library, dense


def gumbel_argmax(library: Library) -> GumbelArgmax:
    function = library.function(
        "gumbel_argmax", POINTER, COUNT, COUNT, POINTER, POINTER, POINTER, POINTER, POINTER
    )

    def run(
        logits: Tensor,
        temperature: Tensor,
        seeds: Tensor,
        positions: Tensor,
        token_ids: Tensor | None = None,
    ) -> Tensor:
        logits, seeds, positions = dense(logits), dense(seeds), dense(positions)
        temperature = dense(temperature)
        if token_ids is not None:
            token_ids = dense(token_ids.expand_as(logits))
        rows, columns = logits.shape
        chosen = seeds.new_empty(rows + 1)
        function(
            logits.data_ptr(),
            rows,
            columns,
            temperature.data_ptr(),
            seeds.data_ptr(),
            positions.data_ptr(),
            None if token_ids is None else token_ids.data_ptr(),
            chosen.data_ptr(),
        )
        close = int(chosen[rows])
        chosen = chosen[:rows]
        if close:  # two columns within rounding: the definition decides
            at = torch.nonzero(chosen < 0)[:, 0]
            chosen[at] = reference(
                logits[at],
                temperature[at],
                seeds[at],
                positions[at],
                None if token_ids is None else token_ids[at],
            )
        return chosen

    return run
