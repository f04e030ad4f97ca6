"""Choosing tokens in pure torch: stateless noise, ordered selection, penalties.

Every function treats each row by itself and in an order that does not depend on the other rows:
a row gives bitwise the same result alone and in any batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # 2**64 / golden ratio, as int64
_STAFFORD_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_STAFFORD_2 = 0x94D049BB133111EB - (1 << 64)
_PROSPECTOR_1 = 0x21F0AAAD
_PROSPECTOR_2 = 0xD35A2D97 - (1 << 32)
_BELOW_ONE = 1.0 - 2.0**-24  # the float32 before 1


def gumbel(seeds: Tensor, positions: Tensor, token_ids: Tensor) -> Tensor:
    """Standard Gumbel noise, a pure function of (seed, position, token id).

    A counter-based generator in the sense of Salmon, Moraes, Dror, Shaw, "Parallel random numbers:
    as easy as 1, 2, 3" (2011). Seed and position become a 64-bit row key by two rounds of the
    SplitMix64 finaliser (Steele, Lea, Flood 2014; constants: Stafford's variant 13); the token id
    becomes 32 bits by the two-multiply xorshift hash found by exhaustive search in Wellons'
    hash-prospector (constants by TheIronBorn), the halves of the key entering before and between
    its rounds. Integer arithmetic wraps; it is exact on every device.

    31 of the bits are the uniform w, and the noise is -log(-log1p(-w)): small w, which give the
    large noise that wins, keep all their bits in float32. Every value is finite: -2.9 to 22.2.

    Args:
        seeds: int64 [rows]; a seed of 64 bits in two's complement.
        positions: int64 [rows]; the position of the token to be chosen.
        token_ids: int64 [columns] or [rows, columns], below 2**31.

    Returns:
        float32 [rows, columns].
    """
    key = _finalise64(_finalise64(seeds) + positions * _GOLDEN)  # [rows]
    low = key.to(torch.int32)[:, None]  # conversion keeps the low 32 bits
    high = (key >> 32).to(torch.int32)[:, None]
    x = token_ids.to(torch.int32) ^ low  # [rows, columns]
    x = _xorshift32(x, 16).mul_(_PROSPECTOR_1).bitwise_xor_(high)
    x = _xorshift32(x, 15).mul_(_PROSPECTOR_2)
    x = _xorshift32(x, 15)
    uniform = _shift32(x, 1).to(torch.float32).add_(0.5).mul_(2.0**-31).clamp_(max=_BELOW_ONE)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def _finalise64(x: Tensor) -> Tensor:
    x = (x ^ _shift64(x, 30)) * _STAFFORD_1
    x = (x ^ _shift64(x, 27)) * _STAFFORD_2
    return x ^ _shift64(x, 31)


def _shift64(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's own is arithmetic."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _shift32(x: Tensor, bits: int) -> Tensor:
    return (x >> bits).bitwise_and_((1 << (32 - bits)) - 1)


def _xorshift32(x: Tensor, bits: int) -> Tensor:
    return x.bitwise_xor_(_shift32(x, bits))


def gumbel_argmax(
    logits: Tensor,
    temperature: Tensor,
    seeds: Tensor,
    positions: Tensor,
    token_ids: Tensor | None = None,
) -> Tensor:
    if not temperature.any():  # no noise is needed
        return logits.argmax(-1)
    if token_ids is None:
        token_ids = torch.arange(logits.shape[1], device=logits.device)
    noise = gumbel(seeds, positions, token_ids)
    return noise.mul_(temperature[:, None]).add_(logits).argmax(-1)


def largest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    keys = _descending(values).topk(count, dim=-1).values  # [rows, count]
    columns = values.shape[1] - 1 - (keys & 0xFFFFFFFF)
    return values.gather(-1, columns), columns


def rank(values: Tensor, columns: Tensor) -> Tensor:
    keys = _descending(values)
    return (keys > keys.gather(-1, columns[:, None])).sum(-1) + 1


def penalise(
    logits: Tensor,
    prompt_seen: Tensor,
    output_counts: Tensor,
    presence: Tensor,
    frequency: Tensor,
    repetition: Tensor,
) -> Tensor:
    said = output_counts > 0
    factor = repetition[:, None]
    lowered = torch.where(logits > 0, logits / factor, logits * factor)
    logits = torch.where(prompt_seen | said, lowered, logits)
    logits = logits - output_counts * frequency[:, None]
    return logits - said * presence[:, None]


def _descending(values: Tensor) -> Tensor:
    """int64 keys that order a row by descending value; of equal values the lower column first.

    The bits of a float, with the magnitude of negative ones inverted, order like the float; the
    inverted column number fills the low half. The order is total, so that ranks and the k largest
    are unambiguous where 16-bit logits produce ties. Larger keys are larger values.
    """
    bits = (values + 0.0).view(torch.int32)  # + 0.0 turns minus zero into zero
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    columns = torch.arange(values.shape[1] - 1, -1, -1, device=values.device)
    return (bits.to(torch.int64) << 32) | columns
