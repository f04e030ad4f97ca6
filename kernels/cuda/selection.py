"""The likeliest of each row without a sort: their threshold is found by its digits.

Floats are turned into unsigned numbers of the same order (cf. `reference/sampling.py`). Eight
rounds find the largest such number at or above which there are `target` columns, or columns of
together that mass, four bits a round: each part of a row sums up for all sixteen digits at once,
and the next round decides. So rows are worked on by many programs, sums have a fixed order, and
neither the host nor an atomic operation is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference import sampling as reference

_ROUNDS = 8
_DIGITS = 16
_BLOCK = 512
_PART = 4096  # columns of a program
_MOST_SORTED = 1024


@triton.jit
def ordered(x):
    """float32 -> uint32 in the same order; of both zeros the same."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return key.to(tl.uint32, bitcast=True) ^ 0x80000000


@triton.jit
def _decided(prefixes, partials, target, row, round_, rows, parts, PARTS: tl.constexpr):
    """The digits that are known before this round, uint32."""
    prefix = tl.zeros([], tl.uint32)
    if round_ > 0:
        prefix = tl.load(prefixes + (round_ - 1) * rows + row).to(tl.uint32)
        part = tl.arange(0, PARTS)[:, None]
        digit = tl.arange(0, 16)[None, :]
        at = (((round_ - 1) * rows + row).to(tl.int64) * parts + part) * 16 + digit
        sums = tl.sum(tl.load(partials + at, mask=part < parts, other=0.0), axis=0)
        reached = tl.maximum(tl.sum((sums >= target).to(tl.int32), axis=0) - 1, 0)
        prefix = prefix + (reached.to(tl.uint32) << (32 - 4 * round_).to(tl.uint32))
    return prefix


@triton.jit(do_not_specialize=["round_"])
def search_kernel(
    values, peak, temperature, targets, prefixes, partials,
    row_stride, columns, rows, parts, round_,
    MASS: tl.constexpr, PART: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One round for one part of a row. A target of 0 or less: nothing is searched for."""
    row, part = tl.program_id(0), tl.program_id(1)
    target = tl.load(targets + row)
    if target <= 0:
        return
    prefix = _decided(prefixes, partials, target, row, round_, rows, parts, PARTS)
    if part == 0:
        tl.store(prefixes + round_ * rows + row, prefix.to(tl.int64))
    shift = tl.full([], 28, tl.uint32) - (4 * round_).to(tl.uint32)
    digit = tl.arange(0, 16)
    pivots = prefix + (digit.to(tl.uint32) << shift)
    sums = tl.zeros([16], tl.float32)
    for first in range(0, PART, BLOCK):
        column = part * PART + first + tl.arange(0, BLOCK)
        inside = column < columns
        at = values + row.to(tl.int64) * row_stride + column
        value = tl.load(at, mask=inside, other=float("-inf"))
        weight = inside.to(tl.float32)
        if MASS:
            heat = tl.load(temperature + row)
            weight = weight * tl.exp(tl.div_rn(value - tl.load(peak + row), heat))
        above = ordered(value)[:, None] >= pivots[None, :]
        sums += tl.sum(tl.where(above, weight[:, None], 0.0), axis=0)
    at = ((round_ * rows + row).to(tl.int64) * parts + part) * 16 + digit
    tl.store(partials + at, sums)


@triton.jit(do_not_specialize=["round_"])
def found_kernel(prefixes, partials, targets, keys, rows, parts, round_, PARTS: tl.constexpr):
    """What the rounds found, int64; 0 where nothing was searched for."""
    row = tl.program_id(0)
    target = tl.load(targets + row)
    key = tl.zeros([], tl.int64)
    if target > 0:
        key = _decided(prefixes, partials, target, row, round_, rows, parts, PARTS).to(tl.int64)
    tl.store(keys + row, key)


@triton.jit
def beside_kernel(
    values, keys, peak, temperature, min_p, above, equal, mass,
    row_stride, columns, parts,
    MASS: tl.constexpr, PART: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of one part of a row: how many columns are above the row's key, and equal to it; with MASS
    the mass of those above, as far as they have at least the share `min_p` of the likeliest."""
    row, part = tl.program_id(0), tl.program_id(1)
    key = tl.load(keys + row).to(tl.uint32)
    higher, same, sums = 0, 0, 0.0
    for first in range(0, PART, BLOCK):
        column = part * PART + first + tl.arange(0, BLOCK)
        inside = column < columns
        at = values + row.to(tl.int64) * row_stride + column
        value = tl.load(at, mask=inside, other=float("-inf"))
        here = ordered(value)
        higher += tl.sum((inside & (here > key)).to(tl.int32), axis=0)
        same += tl.sum((inside & (here == key)).to(tl.int32), axis=0)
        if MASS:
            weight = tl.exp(tl.div_rn(value - tl.load(peak + row), tl.load(temperature + row)))
            kept = inside & (here > key) & (weight >= tl.load(min_p + row))
            sums += tl.sum(tl.where(kept, weight, 0.0), axis=0)
    at = row * parts + part
    tl.store(above + at, higher)
    tl.store(equal + at, same)
    if MASS:
        tl.store(mass + at, sums)


@triton.jit
def take_kernel(
    values, keys, first_above, first_equal, quota, taken, places,
    row_stride, columns, parts, count,
    PART: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The columns above the row's key and the first `quota` of those equal to it, in their order;
    `first_above` and `first_equal`: how many of both the parts before this one have."""
    row, part = tl.program_id(0), tl.program_id(1)
    key = tl.load(keys + row).to(tl.uint32)
    most = tl.load(quota + row)
    higher = tl.load(first_above + row * parts + part)
    same = tl.load(first_equal + row * parts + part)
    for first in range(0, PART, BLOCK):
        column = part * PART + first + tl.arange(0, BLOCK)
        inside = column < columns
        at = values + row.to(tl.int64) * row_stride + column
        value = tl.load(at, mask=inside, other=float("-inf"))
        here = ordered(value)
        is_above = (inside & (here > key)).to(tl.int32)
        is_equal = (inside & (here == key)).to(tl.int32)
        equals = same + tl.cumsum(is_equal, axis=0) - is_equal
        to = higher + tl.cumsum(is_above, axis=0) - is_above + tl.minimum(equals, most)
        kept = (is_above == 1) | ((is_equal == 1) & (equals < most))
        tl.store(taken + row * count + to, value, mask=kept)
        tl.store(places + row * count + to, column.to(tl.int64), mask=kept)
        higher += tl.sum(is_above, axis=0)
        same += tl.sum(is_equal, axis=0)


@triton.jit
def rank_kernel(
    values, chosen, partials, row_stride, columns, parts, PART: tl.constexpr, BLOCK: tl.constexpr
):
    """Of one part of a row: how many columns come before the chosen one."""
    row, part = tl.program_id(0), tl.program_id(1)
    from_row = values + row.to(tl.int64) * row_stride
    mine = tl.load(chosen + row)
    key = ordered(tl.load(from_row + mine))
    before = 0
    for first in range(0, PART, BLOCK):
        column = part * PART + first + tl.arange(0, BLOCK)
        inside = column < columns
        here = ordered(tl.load(from_row + column, mask=inside, other=float("-inf")))
        earlier = (here > key) | ((here == key) & (column < mine))
        before += tl.sum((inside & earlier).to(tl.int32), axis=0)
    tl.store(partials + row * parts + part, before)


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows that are searched, with what a search over their masses needs.

    values float32 [rows, columns] with a stride of 1 along columns; peak, the largest of each row,
    temperature > 0 and min_p float32 [rows].
    """

    values: Tensor
    peak: Tensor | None = None
    temperature: Tensor | None = None
    min_p: Tensor | None = None

    @property
    def parts(self) -> int:
        return -(-self.values.shape[1] // _PART)

    def search(self, targets: Tensor, *, mass: bool) -> Tensor:
        """Keys of the thresholds, int64 [rows]; targets float32 [rows], 0 where none is wanted."""
        rows, columns = self.values.shape
        device = self.values.device
        prefixes = torch.empty((_ROUNDS, rows), dtype=torch.int64, device=device)
        partials = torch.empty((_ROUNDS, rows, self.parts, _DIGITS), device=device)
        padded = triton.next_power_of_2(self.parts)
        for round_ in range(_ROUNDS):
            search_kernel[(rows, self.parts)](
                self.values, self.peak, self.temperature, targets, prefixes, partials,
                self.values.stride(0), columns, rows, self.parts, round_,
                MASS=mass, PART=_PART, PARTS=padded, BLOCK=_BLOCK, num_warps=4,
            )  # fmt: skip
        keys = torch.empty(rows, dtype=torch.int64, device=device)
        found_kernel[(rows,)](
            prefixes, partials, targets, keys, rows, self.parts, _ROUNDS,
            PARTS=padded, num_warps=1,
        )  # fmt: skip
        return keys

    def beside(self, keys: Tensor, *, mass: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """By part: columns above the keys and equal to them, int32, and the mass of those above
        that min-p keeps, all [rows, parts]."""
        rows, columns = self.values.shape
        counts = torch.empty((2, rows, self.parts), dtype=torch.int32, device=self.values.device)
        masses = torch.empty((rows, self.parts), device=self.values.device)
        beside_kernel[(rows, self.parts)](
            self.values, keys, self.peak, self.temperature, self.min_p,
            counts[0], counts[1], masses, self.values.stride(0), columns, self.parts,
            MASS=mass, PART=_PART, BLOCK=_BLOCK, num_warps=4,
        )  # fmt: skip
        return counts[0], counts[1], masses

    def launch_parts(self, kernel: Callable[..., None], *arguments: object) -> None:
        """Run a kernel on every part of every row."""
        kernel[(len(self.values), self.parts)](  # type: ignore[index]
            self.values, *arguments, PART=_PART, BLOCK=_BLOCK, num_warps=4
        )


def before_part(counts: Tensor) -> Tensor:
    """[rows, parts] -> how many the parts before each one have, int32."""
    return (counts.cumsum(1, dtype=torch.int32) - counts).contiguous()


def largest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """See `ops.Largest`."""
    rows, columns = values.shape
    if not rows or not 0 < count <= min(_MOST_SORTED, columns):
        return reference.largest(values, count)
    values = values if values.stride(1) == 1 else values.contiguous()
    searched = Rows(values)
    keys = searched.search(values.new_full((rows,), float(count)), mass=False)
    above, equal, _ = searched.beside(keys)
    quota = count - above.sum(1, dtype=torch.int32)
    taken = torch.empty((rows, count), device=values.device)
    places = torch.empty((rows, count), dtype=torch.int64, device=values.device)
    searched.launch_parts(
        take_kernel, keys, before_part(above), before_part(equal), quota, taken, places,
        values.stride(0), columns, searched.parts, count,
    )  # fmt: skip
    taken, order = taken.sort(dim=1, descending=True, stable=True)
    return taken, places.gather(1, order)


def rank(values: Tensor, columns: Tensor) -> Tensor:
    """See `ops.Rank`."""
    values = values if values.stride(1) == 1 else values.contiguous()
    searched = Rows(values)
    shape = (len(values), searched.parts)
    partials = torch.empty(shape, dtype=torch.int32, device=values.device)
    if len(values):
        searched.launch_parts(
            rank_kernel, columns, partials, values.stride(0), values.shape[1], searched.parts
        )
    return partials.sum(1, dtype=torch.int64) + 1
