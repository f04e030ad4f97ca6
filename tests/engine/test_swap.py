"""Swapping beside the main stream: every block arrives, and nobody reads or writes too early."""

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

from ..fakes.streams import LateStream

LAYERS, BLOCKS, HOST_BLOCKS = 3, 12, 10
BLOCK_BYTES = LAYERS * 2 * 4 * 1 * 2 * 4


def layers_of(generator: torch.Generator) -> list[Tensor]:
    return [torch.randn(BLOCKS, 2, 4, 1, 2, generator=generator) for _ in range(LAYERS)]


def swap_space(layers: list[Tensor], stream: LateStream) -> SwapSpace:
    return SwapSpace(layers, HOST_BLOCKS, stream, stream.marker, Shared())


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
        space = swap_space(layers, stream)
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
    space = swap_space(layers_of(torch.Generator().manual_seed(0)), stream)
    space.take_out(((5, 1), (0, 2), (7, 3), (2, 9)))
    assert [len(source) for _, source in stream.waiting] == [3, 1]


def test_who_waits_for_what(monkeypatch: pytest.MonkeyPatch) -> None:
    """The side stream for what was gathered or last scattered in the same area, and for nothing
    else: what comes in crosses the bus beside the step that is under way."""
    stream = LateStream(monkeypatch)
    space = swap_space(layers_of(torch.Generator().manual_seed(0)), stream)
    filled, emptied = (0, 2), (1, 3)
    for turn in range(4):
        area = turn % 2
        stream.events.clear()
        if turn % 3 == 0:
            space.take_out(((turn, turn),))
            assert stream.events == [
                ("main", "wait", emptied[area]),
                ("main", "record", filled[area]),
                ("side", "wait", filled[area]),
                ("side", "copy", -1),
                ("side", "record", emptied[area]),
            ]
        else:
            space.bring_in(((turn, turn),))
            assert stream.events == [
                ("side", "wait", emptied[area]),
                ("side", "copy", -1),
                ("side", "record", filled[area]),
                ("main", "wait", filled[area]),
                ("main", "record", emptied[area]),
            ]


def test_blocks_of_eight_bits_move_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [
        layer.to(torch.float8_e4m3fn) for layer in layers_of(torch.Generator().manual_seed(1))
    ]
    before = [layer.clone() for layer in layers]
    space = swap_space(layers, LateStream(monkeypatch))
    space.take_out(((3, 1),))
    space.bring_in(((1, 7),))
    space.synchronize()
    for layer, old in zip(layers, before, strict=True):
        assert torch.equal(layer[7].view(torch.uint8), old[3].view(torch.uint8))
    assert space.blocks.dtype == torch.float8_e4m3fn
