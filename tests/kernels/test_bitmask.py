"""Packed token masks against the plain definition."""

from __future__ import annotations

import pytest
import torch

from octavo.kernels.reference.bitmask import allow_only


@pytest.mark.parametrize("vocab", [1, 31, 32, 33, 100, 4096])
def test_a_token_stays_exactly_when_its_bit_is_set(vocab: int) -> None:
    generator = torch.Generator().manual_seed(vocab)
    words = -(-vocab // 32)
    allowed = torch.rand(5, words * 32, generator=generator) < 0.5
    allowed[0], allowed[1] = True, False
    weights = torch.tensor([1 << bit for bit in range(32)])
    packed = (allowed.view(5, words, 32) * weights).sum(-1)  # up to 2 ** 32
    bitmask = torch.where(packed >= 1 << 31, packed - (1 << 32), packed).to(torch.int32)
    logits = torch.randn(5, vocab, generator=generator)
    before = logits.clone()
    allow_only(logits, bitmask)
    for row in range(5):
        for token in range(vocab):
            if allowed[row, token]:
                assert logits[row, token] == before[row, token]
            else:
                assert logits[row, token] == float("-inf")
