"""Which columns of a row are the likeliest, found by thresholds: no sort, and few passes.

One program has a row. A pass adds up, for sixteen thresholds at once, how many columns are at or
above each, or what mass they have; the next sixteen lie between the two that what is wanted fell
between. It ends when so few columns are left that each can be compared with each: three or four
passes over any model's logits, the first for their peak and the last to take those columns (cf. the
pivots of FlashInfer's sampler, 2025). Sums have a fixed order, and nobody waits for the host.
"""

from __future__ import annotations

import triton
import triton.language as tl

MOST = 1024  # columns that are compared with each other
_BY_VALUE: tl.constexpr = tl.constexpr(
    2
)  # rounds whose thresholds are even in value; then by the floats there are


@triton.jit
def ordered(x):
    """float32 -> uint32 in the same order; of both zeros the same."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return key.to(tl.uint32, bitcast=True) ^ 0x80000000


@triton.jit
def unordered(key):
    """The float32 of what `ordered` gives."""
    bits = (key ^ 0x80000000).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _peak(from_row, columns, PART: tl.constexpr):
    """The largest number of a row, and the mean of those that are finite. NaN is passed over."""
    highest = tl.full([PART], float("-inf"), tl.float32)
    total, finite = tl.zeros([PART], tl.float32), tl.zeros([PART], tl.float32)
    for first in tl.range(0, columns, PART, num_stages=3):
        column = first + tl.arange(0, PART)
        value = tl.load(from_row + column, mask=column < columns, other=float("-inf"))
        value = tl.where(value == value, value, float("-inf"))
        highest = tl.maximum(highest, value)
        sound = (value > float("-inf")) & (value < float("inf"))
        total += tl.where(sound, value, 0.0)
        finite += sound.to(tl.float32)
    mean = tl.sum(total, axis=0) / tl.maximum(tl.sum(finite, axis=0), 1.0)
    return tl.max(highest, axis=0), mean


@triton.jit
def _weight(value, peak, heat):
    """exp((value - peak) / heat), rounded as the reference rounds it."""
    return tl.exp(tl.div_rn(value - peak, heat))


@triton.jit
def _at_or_above(from_row, columns, pivots, peak, heat, MASS: tl.constexpr, BLOCK: tl.constexpr):
    """How many columns are at or above each of sixteen pivots; with MASS their weights' sum, too.

    Each thread keeps sums of its own columns: they meet at the end.
    """
    counts, masses = tl.zeros([16, BLOCK], tl.int32), tl.zeros([16, BLOCK], tl.float32)
    for first in tl.range(0, columns, BLOCK, num_stages=4):
        column = first + tl.arange(0, BLOCK)
        value = tl.load(from_row + column, mask=column < columns, other=float("nan"))
        above = value[None, :] >= pivots[:, None]
        counts += above.to(tl.int32)
        if MASS:
            weight = _weight(value, peak, tl.full([BLOCK], 0.0, tl.float32) + heat)
            masses += tl.where(above, weight[None, :], 0.0)
    return tl.sum(counts, axis=1), tl.sum(masses, axis=1)


@triton.jit
def _between(low, high, by_value):
    """Sixteen pivots, ascending, the first of them `low`, all below `high`."""
    index = tl.arange(0, 16)
    evenly = low + (high - low) * (index.to(tl.float32) / 16.0)
    first = ordered(low)
    width = ordered(high) - first
    step = (width + 15) >> 4
    of_floats = unordered(first + tl.minimum(step * index.to(tl.uint32), width - 1))
    pivots = tl.where(by_value & (low > float("-inf")), evenly, of_floats)
    return tl.where(index == 0, low, pivots)


@triton.jit
def _pick(values, at):
    """values[at] of sixteen."""
    return tl.sum(tl.where(tl.arange(0, 16) == at, values, 0), axis=0)


@triton.jit
def _lowest_of_share(peak, heat, share):
    """The smallest number whose weight is at least `share` of the peak's, by bisection."""
    low, high = ordered(peak * 0.0 + float("-inf")), ordered(peak)
    for _ in range(32):
        middle = low + ((high - low) >> 1)
        enough = _weight(unordered(middle), peak, heat) >= share
        high = tl.where(enough, middle, high)
        low = tl.where(enough, low, middle)
    return unordered(high)


@triton.jit(do_not_specialize=["count"])
def search_kernel(
    values, temperature, top_k, top_p, min_p, taken, places, sizes, masses, limits, last_places,
    row_stride, columns, count,
    DRAW: tl.constexpr, MOST: tl.constexpr, PART: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Where the likeliest columns of one row end: the `count` largest, or with DRAW what top-k,
    top-p and min-p leave.

    Either that is found: the last one's number goes to `limits`, its column to `last_places`. Or it
    is among at most MOST columns: these go to `taken` and `places`, in their order; to `sizes` how
    many they are, and how many columns come before all of them; to `masses` what those weigh, what
    is wanted in all (-1: top-p's share of what top-k leaves of these), and the row's peak.
    """
    row = tl.program_id(0)
    from_row = values + row.to(tl.int64) * row_stride
    index = tl.arange(0, 16)
    tl.store(sizes + 2 * row, 0)
    tl.store(limits + row, float("-inf"))  # nothing is left out
    tl.store(last_places + row, columns)
    keep, share, least, heat = count, 0.0, 0.0, 1.0  # without DRAW each of them is wanted
    if DRAW:
        keep = tl.minimum(tl.load(top_k + row), columns).to(tl.int32)
        share, least = tl.load(top_p + row), tl.load(min_p + row)
        heat = tl.load(temperature + row)
        off = (keep >= columns) & (share >= 1.0) & (least <= 0.0)
        if off | (heat <= 0.0):
            return
    peak, mean = _peak(from_row, columns, PART)
    if (peak == float("-inf")) | (peak == float("inf")):
        return  # it is for others to say so
    none, zero, endless = keep * 0, peak * 0.0, peak * 0.0 + float("inf")
    floor = -endless
    if DRAW:
        if least > 0.0:
            floor = _lowest_of_share(peak, heat, least)
        tl.store(limits + row, floor)

    # By number. The end is in [low, high), and `above` columns are beyond that.
    spread = tl.maximum(peak - mean, 0.0)
    pivots = tl.maximum(peak - (spread / 14.0) * (15 - index).to(tl.float32), floor)
    pivots = tl.where(index == 0, floor, pivots)
    low, high, above, here, round_ = floor, endless, none, none, none
    quota = none + columns  # of the columns equal to `low`
    listed = none > 0  # few columns are left
    searching = (keep < columns) | (DRAW == 0)
    while searching:
        counts, _ = _at_or_above(from_row, columns, pivots, peak, heat, False, BLOCK)
        at = tl.maximum(tl.sum((counts >= keep).to(tl.int32), axis=0) - 1, 0)
        low, here = _pick(pivots, at), _pick(counts, at)
        high = tl.where(at == 15, high, _pick(pivots, at + 1))
        above = tl.where(at == 15, above, _pick(counts, at + 1))
        alike = (low >= peak) | (ordered(high) - ordered(low) <= 1)
        short = (low == floor) & (here < keep)  # min-p leaves fewer than top-k would
        whole = here <= MOST
        part = (here - above <= MOST) & (share >= 1.0)
        tied = alike & ((whole | part) == 0)
        quota = tl.where(tied, keep - above, quota)
        whole = whole | (tied & (keep <= MOST))
        above, high = tl.where(whole, 0, above), tl.where(whole, endless, high)
        listed = whole | part
        searching = (listed | alike | short) == 0
        round_ += 1
        if searching:
            pivots = _between(low, high, round_ <= _BY_VALUE)

    above_mass, wanted = zero, zero - 1.0
    if DRAW:
        # By mass, of what that leaves: from `floor` on, and of those equal to it the quota.
        searching = (listed == 0) & (share < 1.0)
        if searching:
            floor = tl.where(quota < columns, low, floor)
            beyond = unordered(ordered(floor) + 1)
            step = tl.minimum(0.9 * heat, spread / 8.0)
            pivots = tl.maximum(peak - step * (15 - index).to(tl.float32), beyond)
            pivots = tl.where(index == 1, beyond, pivots)
            pivots = tl.where(index == 0, floor, pivots)
            low, high, above, round_ = floor, endless, none, none
        while searching:
            counts, sums = _at_or_above(from_row, columns, pivots, peak, heat, True, BLOCK)
            if round_ == 0:
                equal = tl.minimum(_pick(counts, 0) - _pick(counts, 1), quota).to(tl.float32)
                total = _pick(sums, 1) + equal * _weight(floor, peak, heat)
                wanted = tl.maximum(share * total, 1e-30)  # the likeliest is always left
            at = tl.maximum(tl.sum((sums >= wanted).to(tl.int32), axis=0) - 1, 0)
            low, here = _pick(pivots, at), _pick(counts, at)
            high = tl.where(at == 15, high, _pick(pivots, at + 1))
            above = tl.where(at == 15, above, _pick(counts, at + 1))
            above_mass = tl.where(at == 15, above_mass, _pick(sums, at + 1))
            alike = (low >= peak) | (ordered(high) - ordered(low) <= 1)
            whole, part = here <= MOST, here - above <= MOST
            more = tl.ceil(tl.div_rn(wanted - above_mass, _weight(low, peak, heat)))
            more = tl.minimum(tl.maximum(more, 1.0), 1.0e9).to(tl.int32)
            tied = alike & ((whole | part) == 0)
            quota = tl.where(tied, tl.minimum(more, tl.where(low == floor, quota, columns)), quota)
            quota = tl.where((low > floor) & (tied == 0), columns, quota)
            above, high = tl.where(whole, 0, above), tl.where(whole, endless, high)
            above_mass = tl.where(whole, 0.0, above_mass)
            listed = whole | part
            searching = (listed | alike) == 0
            round_ += 1
            if searching:
                pivots = _between(low, high, round_ <= _BY_VALUE)

    # Take the columns; or where all that is missing is the last of equal ones, that.
    if listed | (quota < columns):
        size, same, last = none, none, none
        for first in tl.range(0, columns, PART, num_stages=3):
            column = first + tl.arange(0, PART)
            value = tl.load(from_row + column, mask=column < columns, other=float("nan"))
            within = (value >= low) & (value < high)
            if tl.max(within.to(tl.int32), axis=0) > 0:
                equal = (value == low).to(tl.int32)
                before = same + tl.cumsum(equal, axis=0) - equal
                same += tl.sum(equal, axis=0)
                first_ones = (equal == 1) & (before < quota)
                last = tl.maximum(last, tl.max(tl.where(first_ones, column, 0), axis=0))
                left = within & ((value > low) | first_ones) & listed
                kept = left.to(tl.int32)
                to = row.to(tl.int64) * MOST + size + tl.cumsum(kept, axis=0) - kept
                tl.store(taken + to, value, mask=kept == 1)
                tl.store(places + to, column, mask=kept == 1)
                size += tl.sum(kept, axis=0)
        tl.store(limits + row, low)
        tl.store(last_places + row, last)
        tl.store(sizes + 2 * row, size)
        tl.store(sizes + 2 * row + 1, above)
        tl.store(masses + 3 * row, above_mass)
        tl.store(masses + 3 * row + 1, wanted)
        tl.store(masses + 3 * row + 2, peak)


@triton.jit(do_not_specialize=["count"])
def settle_kernel(
    temperature, top_k, top_p, taken, places, sizes, masses, limits, last_places,
    largest, columns, count,
    DRAW: tl.constexpr, MOST: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Compares the columns that the search took with each other. With DRAW the last one that is
    left goes to `limits` and `last_places`, else the first `count` to `largest` and `columns`."""
    row = tl.program_id(0)
    size = tl.load(sizes + 2 * row)
    if size == 0:
        return
    above = tl.load(sizes + 2 * row + 1)
    mine = tl.arange(0, MOST)
    inside = mine < size
    taken += row.to(tl.int64) * MOST
    places += row.to(tl.int64) * MOST
    value = tl.load(taken + mine, mask=inside, other=float("-inf"))
    place = tl.load(places + mine, mask=inside, other=0).to(tl.int64)
    heat, peak = 1.0, 0.0
    if DRAW:
        heat, peak = tl.load(temperature + row), tl.load(masses + 3 * row + 2)
    rank, before = tl.zeros([MOST], tl.int32), tl.zeros([MOST], tl.float32)
    for first in range(0, size, CHUNK):
        other = first + tl.arange(0, CHUNK)
        theirs = tl.load(taken + other, mask=other < size, other=float("nan"))
        earlier = (theirs[:, None] == value[None, :]) & (other[:, None] < mine[None, :])
        earlier = earlier | (theirs[:, None] > value[None, :])
        rank += tl.sum(earlier.to(tl.int32), axis=0)
        if DRAW:
            weight = _weight(theirs, peak, tl.zeros([CHUNK], tl.float32) + heat)
            before += tl.sum(tl.where(earlier, weight[:, None], 0.0), axis=0)
    if DRAW:
        position = above + rank
        left = inside & (position < tl.load(top_k + row))
        share, wanted = tl.load(top_p + row), tl.load(masses + 3 * row + 1)
        if share < 1.0:
            if wanted < 0.0:
                weight = _weight(value, peak, tl.zeros([MOST], tl.float32) + heat)
                wanted = tl.maximum(share * tl.sum(tl.where(left, weight, 0.0), axis=0), 1e-30)
            left = left & ((tl.load(masses + 3 * row) + before < wanted) | (position == 0))
        end = tl.max(tl.where(left, rank, -1), axis=0)
        is_last = left & (rank == end)
        tl.store(limits + row, tl.sum(tl.where(is_last, value, 0.0), axis=0))
        tl.store(last_places + row, tl.sum(tl.where(is_last, place, 0), axis=0).to(tl.int32))
    else:
        to = row.to(tl.int64) * count + rank
        wanted_ones = inside & (rank < count)
        tl.store(largest + to, value, mask=wanted_ones)
        tl.store(columns + to, place, mask=wanted_ones)
