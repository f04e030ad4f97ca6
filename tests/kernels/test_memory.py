"""Memory for weights and the KV cache."""

from __future__ import annotations

import pytest
import torch

from octavo.kernels.memory import zeros


@pytest.mark.parametrize("shape", [(0, 3), (5,), (3, 7, 11), (1 << 11, 1 << 10)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.uint8])
def test_it_is_a_tensor_of_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    memory = zeros(shape, dtype)
    assert (memory.shape, memory.dtype) == (shape, dtype)
    assert memory.is_contiguous() and not memory.any()
    assert memory.data_ptr() % 64 == 0


def test_it_is_there_as_long_as_something_views_it() -> None:
    part = zeros((1 << 20,), torch.float32)[1000:1004]
    part.fill_(7)
    others = [zeros((1 << 20,), torch.float32).fill_(1) for _ in range(3)]
    assert part.tolist() == [7.0] * 4 and len(others) == 3
