"""The KV cache moves whole blocks of all layers, in the order the plan promises."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from octavo.engine import kv_cache
from octavo.engine.bundled import TARGET
from octavo.engine.checkpoint import read_model_config
from octavo.engine.kv_cache import KVCache, block_bytes
from octavo.engine.step import Moves
from octavo.kernels.registry import resolve

from .stepping import CPU

CONFIG = read_model_config(TARGET)


def filled(dtype: torch.dtype = torch.float32) -> KVCache:
    """Every cell of device block b of layer l is 100 l + b, of host block b 100 l + 50 + b."""
    kv = KVCache(
        CONFIG,
        resolve(CPU),
        num_blocks=6,
        block_size=8,
        dtype=dtype,
        device=CPU,
        num_host_blocks=3,
    )
    for layer in range(CONFIG.layers):
        for block in range(6):
            kv.layers[layer][block] = 100 * layer + block
        for block in range(3):
            kv.host_layers[layer][block] = 100 * layer + 50 + block
    return kv


def blocks(layers: list[Tensor]) -> list[int]:
    """What the blocks hold, less 100 l, which is the same in all layers and cells."""
    contents = torch.stack([cache.flatten(1) - 100 * i for i, cache in enumerate(layers)])
    assert torch.equal(contents, contents[:1, :, :1].expand_as(contents))
    return [int(content) for content in contents[0, :, 0]]


def test_a_new_cache_is_zero_and_has_the_planned_size() -> None:
    kv = KVCache(CONFIG, resolve(CPU), num_blocks=2, block_size=8, dtype=torch.bfloat16, device=CPU)
    assert len(kv.layers) == CONFIG.layers
    assert kv.layers[0].shape == (2, 2, 8, CONFIG.kv_heads, CONFIG.head_dim)
    assert not any(layer.any() for layer in kv.layers)
    planned = 2 * block_bytes(CONFIG, block_size=8, dtype=torch.bfloat16)
    assert sum(layer.nbytes for layer in kv.layers) == planned
    assert all(layer.shape[0] == 0 for layer in kv.host_layers)


def test_no_moves_change_nothing() -> None:
    kv = filled()
    kv.apply(Moves())
    assert blocks(kv.layers) == [0, 1, 2, 3, 4, 5]


def test_swap_out_then_in_then_copies() -> None:
    """Block 1 goes out; host block 0, just overwritten by it, comes in as 4, which is copied
    to 0."""
    kv = filled()
    kv.apply(Moves(swap_out=((1, 0), (3, 2)), swap_in=((0, 4),), copies=((4, 0), (5, 1))))
    assert blocks(kv.host_layers) == [1, 51, 3]
    assert blocks(kv.layers) == [1, 5, 2, 3, 1, 5]


def test_a_swapped_block_comes_back_bit_by_bit() -> None:
    kv = filled(torch.bfloat16)
    original = torch.randn_like(kv.layers[3][2])
    kv.layers[3][2] = original
    kv.apply(Moves(swap_out=((2, 1),)))
    kv.layers[3][2] = 0
    kv.apply(Moves(swap_in=((1, 5),)))
    assert torch.equal(kv.layers[3][5], original)


@pytest.mark.parametrize("pair", [(0, 6), (6, 0)])
def test_a_block_that_does_not_exist_is_refused(pair: tuple[int, int]) -> None:
    with pytest.raises((IndexError, RuntimeError)):
        filled().apply(Moves(copies=(pair,)))


@pytest.mark.parametrize("used", [(), (3, 40), (300,), (4095,)])
def test_memory_of_the_blocks_that_come_next_is_taken(
    used: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every layer, from the last block used so far on, and not more than was to be."""
    taken: list[Tensor] = []
    monkeypatch.setattr(kv_cache, "populate", lambda part: not taken.append(part))
    monkeypatch.setattr(kv_cache, "available_memory", lambda: 1 << 40)
    sizes = {"block_size": 16, "dtype": torch.float32}
    one = block_bytes(CONFIG, **sizes)
    kv = KVCache(CONFIG, resolve(CPU), num_blocks=4096, device=CPU, ahead=1000 * one, **sizes)
    if used:
        kv.use(used)
    while kv.populate():
        assert len(taken) < 4096
    first = max(used, default=-1) + 1
    for layer in kv.layers:
        mine = [part for part in taken if part.data_ptr() in range(*span(layer))]
        expected = layer[first : first + 1000]
        assert sum(len(part) for part in mine) == len(expected)
        if mine:
            assert min(span(part)[0] for part in mine) == span(expected)[0]
            assert max(span(part)[1] for part in mine) == span(expected)[1]
    count = len(taken)
    assert not kv.populate() and len(taken) == count


def span(tensor: Tensor) -> tuple[int, int]:
    """Where it lies."""
    return tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes


@pytest.mark.parametrize(("gives", "free"), [(False, 1 << 40), (True, 3 << 30)])
def test_no_memory_is_taken_ahead_where_it_is_short_or_not_given(
    gives: bool, free: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Tensor] = []
    monkeypatch.setattr(kv_cache, "populate", lambda part: gives or asked.append(part))
    monkeypatch.setattr(kv_cache, "available_memory", lambda: free)
    kv = KVCache(
        CONFIG, resolve(CPU), num_blocks=99, block_size=16, dtype=torch.float32, device=CPU
    )
    assert not kv.populate() and not kv.populate()
    assert len(asked) == (not gives)
