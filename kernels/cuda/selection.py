"""The likeliest columns of each row, and a column's rank, without a sort (`search.py`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ops import Narrowing
from ..reference import sampling as reference
from .search import MOST, ordered, search_kernel, settle_kernel

# Columns that a program reads, and that it compares with pivots, at a time. Found by compiling:
# with more of them, or fewer warps, registers spill, if not with every Triton.
SEARCH = {"PART": 1024, "BLOCK": 512, "num_warps": 16}
SETTLE = {"CHUNK": 8, "num_warps": 8}
_PART = 4096


@triton.jit
def rank_kernel(values, chosen, partials, row_stride, columns, parts, PART: tl.constexpr):
    """Of one part of a row: how many columns come before the chosen one."""
    row, part = tl.program_id(0), tl.program_id(1)
    from_row = values + row.to(tl.int64) * row_stride
    mine = tl.load(chosen + row)
    key = ordered(tl.load(from_row + mine))
    column = part * PART + tl.arange(0, PART)
    inside = column < columns
    here = ordered(tl.load(from_row + column, mask=inside, other=float("-inf")))
    earlier = (here > key) | ((here == key) & (column < mine))
    before = tl.sum((inside & earlier).to(tl.int32), axis=0)
    tl.store(partials + row * parts + part, before)


@dataclass(frozen=True, slots=True)
class Ends:
    """Where the columns of each row end that are left: those with a larger number than `limits`
    float32 [rows], and of those with the same one as far as the column `places` int32 [rows]."""

    limits: Tensor
    places: Tensor


def narrowed(logits: Tensor, temperature: Tensor, narrowing: Narrowing) -> Ends:
    """What `narrowing` leaves of logits, float32 [rows, columns] with a stride of 1 in a row."""
    found = _Search(logits)
    found.run(temperature, narrowing)
    return Ends(found.limits, found.last_places)


def largest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """See `ops.Largest`."""
    rows, columns = values.shape
    if not rows or not 0 < count <= min(MOST, columns):
        return reference.largest(values, count)
    values = values if values.stride(1) == 1 else values.contiguous()
    # Zeros: where numbers are none, contrary to what was agreed, columns there must be.
    out = torch.zeros((rows, count), device=values.device)
    places = torch.zeros((rows, count), dtype=torch.int64, device=values.device)
    _Search(values).run(out=out, places=places)
    return out, places


def rank(values: Tensor, columns: Tensor) -> Tensor:
    """See `ops.Rank`."""
    values = values if values.stride(1) == 1 else values.contiguous()
    rows, width = values.shape
    parts = triton.cdiv(width, _PART)
    partials = torch.empty((rows, parts), dtype=torch.int32, device=values.device)
    if rows:
        rank_kernel[(rows, parts)](
            values, columns, partials, values.stride(0), width, parts, PART=_PART, num_warps=8
        )
    return partials.sum(1, dtype=torch.int64) + 1


class _Search:
    """The memory that a search needs, and its two launches."""

    def __init__(self, values: Tensor) -> None:
        rows, device = len(values), values.device
        self._values = values
        self._taken = torch.empty((rows, MOST), device=device)
        self._places = torch.empty((rows, MOST), dtype=torch.int32, device=device)
        self._sizes = torch.empty((rows, 2), dtype=torch.int32, device=device)
        self._masses = torch.empty((rows, 3), device=device)
        self.limits = torch.empty(rows, device=device)
        self.last_places = torch.empty(rows, dtype=torch.int32, device=device)

    def run(
        self,
        temperature: Tensor | None = None,
        narrowing: Narrowing | None = None,
        out: Tensor | None = None,
        places: Tensor | None = None,
    ) -> None:
        rows, columns = self._values.shape
        if not rows:
            return
        top_k, top_p, min_p = (
            (None, None, None)
            if narrowing is None
            else (narrowing.top_k, narrowing.top_p, narrowing.min_p)
        )
        state = (
            self._taken, self._places, self._sizes, self._masses, self.limits, self.last_places,
        )  # fmt: skip
        count = 0 if out is None else out.shape[1]
        search_kernel[(rows,)](
            self._values, temperature, top_k, top_p, min_p, *state,
            self._values.stride(0), columns, count,
            DRAW=narrowing is not None, MOST=MOST, **SEARCH,
        )  # fmt: skip
        settle_kernel[(rows,)](
            temperature, top_k, top_p, *state, out, places, count,
            DRAW=narrowing is not None, MOST=MOST, **SETTLE,
        )  # fmt: skip
