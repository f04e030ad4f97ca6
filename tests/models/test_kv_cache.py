"""The KV cache moves whole blocks of all layers, in the order the plan promises."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

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
