"""Choosing tokens."""

from __future__ import annotations

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
        return _chosen(function, logits, temperature, seeds, positions, token_ids, None)

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
        highest = logits.new_empty(len(logits))
        chosen = _chosen(function, logits, temperature, seeds, positions, None, highest)
        return chosen, highest

    return run


def _function(library: Library) -> Function:
    return library.function("gumbel_argmax", POINTER, COUNT, COUNT, *[POINTER] * 6)


def _chosen(
    function: Function,
    logits: Tensor,
    temperature: Tensor,
    seeds: Tensor,
    positions: Tensor,
    token_ids: Tensor | None,
    highest: Tensor | None,
) -> Tensor:
    """The drawn columns; the largest logit of each row goes to `highest`."""
    logits, temperature = dense(logits), dense(temperature)
    seeds, positions = dense(seeds), dense(positions)
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
        None if highest is None else highest.data_ptr(),
    )
    close = int(chosen[rows])
    chosen = chosen[:rows]
    if close:  # two columns within rounding: the definition decides
        at = (chosen < 0).nonzero()[:, 0]
        chosen[at] = reference(
            logits[at],
            temperature[at],
            seeds[at],
            positions[at],
            None if token_ids is None else token_ids[at],
        )
    return chosen
