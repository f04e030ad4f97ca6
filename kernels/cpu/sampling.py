"""Choosing tokens."""

from __future__ import annotations

from ctypes import byref

import numpy as np
import torch
from torch import Tensor

from ..ops import Draw, GumbelArgmax, Narrowing
from ..reference.narrowing import draw as reference_draw
from ..reference.sampling import gumbel_argmax as reference
from .library import COUNT, POINTER, Function, Library, dense


def gumbel_argmax(library: Library) -> GumbelArgmax:
    function = _function(library)

    def run(
        logits: Tensor,
        temperature: Tensor,
        seeds: Tensor,
        positions: Tensor,
        token_ids: Tensor | None = None,
    ) -> Tensor:
        return _drawn(function, logits, temperature, seeds, positions, token_ids)[0]

    return run


def draw(library: Library) -> Draw:
    function = _function(library)

    def run(
        logits: Tensor,
        temperature: Tensor,
        seeds: Tensor,
        positions: Tensor,
        narrowing: Narrowing | None = None,
    ) -> tuple[Tensor, Tensor]:
        if narrowing is not None:
            return reference_draw(logits, temperature, seeds, positions, narrowing)
        return _drawn(function, logits, temperature, seeds, positions, None, outcomes=True)

    return run


def _function(library: Library) -> Function:
    return library.function("gumbel_argmax", POINTER, COUNT, COUNT, *[POINTER] * 7)


def _drawn(
    function: Function,
    logits: Tensor,
    temperature: Tensor,
    seeds: Tensor,
    positions: Tensor,
    token_ids: Tensor | None,
    *,
    outcomes: bool = False,
) -> tuple[Tensor, Tensor]:
    """The drawn columns and, if asked for, the outcomes of `Draw`."""
    logits, temperature = dense(logits), dense(temperature)
    seeds, positions = dense(seeds), dense(positions)
    if token_ids is not None:
        token_ids = dense(token_ids.expand_as(logits))
    rows, columns = logits.shape
    # numpy's: after a forward pass torch's own code comes from memory, and each op costs 20 us.
    chosen, told = map(torch.from_numpy, np.empty((2, rows), dtype=np.int64))
    close = COUNT()
    function(
        logits.data_ptr(),
        rows,
        columns,
        temperature.data_ptr(),
        seeds.data_ptr(),
        positions.data_ptr(),
        None if token_ids is None else token_ids.data_ptr(),
        chosen.data_ptr(),
        told.data_ptr() if outcomes else None,
        byref(close),
    )
    if close.value:  # two columns within rounding: the definition decides
        at = (chosen < 0).nonzero()[:, 0]
        chosen[at] = reference(
            logits[at],
            temperature[at],
            seeds[at],
            positions[at],
            None if token_ids is None else token_ids[at],
        )
        if outcomes:
            told[at] = torch.where(logits[at].amax(-1).isfinite(), chosen[at], -1)
    return chosen, told
