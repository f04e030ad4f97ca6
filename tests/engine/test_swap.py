"""Swapping beside the main stream: every block arrives, and nobody reads or writes too early.

`LateStream` does what is given to the side stream as late as the waits between the streams allow,
which is when a missing wait shows.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from octavo.engine import swap
from octavo.engine.swap import SwapSpace
from octavo.engine.transfer import Shared

LAYERS, BLOCKS, HOST_BLOCKS = 3, 12, 10
BLOCK_BYTES = LAYERS * 2 * 4 * 1 * 2 * 4


class LateStream:
    """A side stream of which work is done at the last moment: when the main stream waits for it.

    Work of the main stream is done at once, so what it must not do before the side stream has
    come somewhere it does too early, unless it waits.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._inside = False
        self._followed = True
        copy = Tensor.copy_

        def copy_(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
            if not self._inside:
                return copy(target, source)
            assert self._followed, "work for the side stream does not wait for the main one"
            self._waiting.append((target, source))
            return target

        self._copy = copy
        monkeypatch.setattr(Tensor, "copy_", copy_)

    def __enter__(self) -> None:
        self._inside = True

    def __exit__(self, *raised: object) -> None:
        self._inside = self._followed = False

    def follow(self) -> None:
        self._followed = True

    def lead(self) -> None:
        for target, source in self._waiting:
            self._copy(target, source)
        self._waiting.clear()

    synchronize = lead


def layers_of(generator: torch.Generator) -> list[Tensor]:
    return [torch.randn(BLOCKS, 2, 4, 1, 2, generator=generator) for _ in range(LAYERS)]


def pairs(here: list[int], there: list[int]) -> tuple[tuple[int, int], ...]:
    return tuple(zip(here, there, strict=True))


@contextmanager
def staging_of(count: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(swap, "_STAGING_BYTES", count * BLOCK_BYTES)
    yield


@pytest.mark.parametrize("staged", [1, 2, 100])
def test_blocks_go_and_come_back_whatever_happens_in_between(
    staged: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random moves against plain lists; device blocks are overwritten as soon as they have left."""
    draw = random.Random(staged)
    generator = torch.Generator().manual_seed(staged)
    layers = layers_of(generator)
    stream = LateStream(monkeypatch)
    with staging_of(staged, monkeypatch):
        space = SwapSpace(layers, HOST_BLOCKS, stream, Shared())
    held: dict[int, list[Tensor]] = {}  # by host block: what each layer's block was
    for _ in range(60):
        free = [host for host in range(HOST_BLOCKS) if host not in held]
        count = min(4, len(free))
        leaving = pairs(draw.sample(range(BLOCKS), count), draw.sample(free, count))
        for device, host in leaving:
            held[host] = [layer[device].clone() for layer in layers]
        space.take_out(leaving)
        for device, _ in leaving:
            for layer in layers:
                layer[device] = draw.random()
        count = min(draw.randrange(5), len(held))
        coming = pairs(draw.sample(list(held), count), draw.sample(range(BLOCKS), count))
        space.bring_in(coming)
        for host, device in coming:
            for layer, block in zip(layers, held.pop(host), strict=True):
                assert torch.equal(layer[device], block)
    space.synchronize()
    assert held
    for host, blocks in held.items():
        assert torch.equal(space.blocks[host], torch.stack(blocks))


def test_neighbours_cross_in_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = LateStream(monkeypatch)
    space = SwapSpace(layers_of(torch.Generator().manual_seed(0)), HOST_BLOCKS, stream, Shared())
    space.take_out(((5, 1), (0, 2), (7, 3), (2, 9)))
    assert [len(source) for _, source in stream._waiting] == [3, 1]


def test_blocks_of_eight_bits_move_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [
        layer.to(torch.float8_e4m3fn) for layer in layers_of(torch.Generator().manual_seed(1))
    ]
    before = [layer.clone() for layer in layers]
    space = SwapSpace(layers, 2, LateStream(monkeypatch), Shared())
    space.take_out(((3, 1),))
    space.bring_in(((1, 7),))
    space.synchronize()
    for layer, old in zip(layers, before, strict=True):
        assert torch.equal(layer[7].view(torch.uint8), old[3].view(torch.uint8))
    assert space.blocks.dtype == torch.float8_e4m3fn
