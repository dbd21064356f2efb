"""Numba kernels of rank tests: values of many groups, each ranked by itself.

A group is sorted by the bits of its values as float32, in four passes; rounding never reverses an order, and values that
round to the same one are put in order afterwards.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"
from __future__ import annotations

import numpy as np

from scfm._compat import kernel

__all__ = ["put_by_group", "ranks_of_groups", "signed_rank_sums"]

_DIGITS = 4
_SIGN = np.uint32(0x80000000)


@kernel()
def put_by_group(groups, values, starts, out):
    """Put the values of each group one after the other, from its start on; ``starts`` becomes the ends."""
    for i in range(len(groups)):
        group = groups[i]
        out[starts[group]] = values[i]
        starts[group] += 1


@kernel()
def _sort(values, packed, spare, digits):
    """Positions of the values in ascending order, in the low 32 bits of ``packed``."""
    n = len(values)
    digits[:] = 0
    for i in range(n):
        bits = np.float32(values[i] + 0.0).view(np.uint32)  # −0 is 0
        key = ~bits if bits & _SIGN else bits | _SIGN
        packed[i] = (np.uint64(key) << np.uint64(32)) | np.uint64(i)
        for digit in range(_DIGITS):
            digits[digit, (key >> np.uint32(8 * digit)) & np.uint32(255)] += 1
    for digit in range(_DIGITS):
        shift = np.uint64(32 + 8 * digit)
        if digits[digit, (packed[0] >> shift) & np.uint64(255)] == n:
            continue  # all have the same
        total = 0
        for at in range(256):
            count = digits[digit, at]
            digits[digit, at] = total
            total += count
        for i in range(n):
            at = (packed[i] >> shift) & np.uint64(255)
            spare[digits[digit, at]] = packed[i]
            digits[digit, at] += 1
        packed[:n] = spare[:n]
    start = 0
    while start < n:
        key, stop, same = packed[start] >> np.uint64(32), start + 1, True
        first = values[packed[start] & np.uint64(0xFFFFFFFF)]
        while stop < n and (packed[stop] >> np.uint64(32)) == key:
            same &= values[packed[stop] & np.uint64(0xFFFFFFFF)] == first
            stop += 1
        if not same:
            own = np.empty(stop - start, np.float64)
            for i in range(start, stop):
                own[i - start] = values[packed[i] & np.uint64(0xFFFFFFFF)]
                spare[i] = packed[i]
            place = np.argsort(own)
            for i in range(start, stop):
                packed[i] = spare[start + place[i - start]]
        start = stop


@kernel()
def ranks_of_groups(values, starts, ranks):
    """Rank of each value in its group, from 1; equal values share their mean rank. Groups lie one after the other."""
    widest = np.diff(starts).max()
    packed, spare = np.empty(widest, np.uint64), np.empty(widest, np.uint64)
    digits = np.empty((_DIGITS, 256), np.int64)
    for group in range(len(starts) - 1):
        own, out = values[starts[group] : starts[group + 1]], ranks[starts[group] : starts[group + 1]]
        if len(own):
            _sort(own, packed, spare, digits)
        start = 0
        while start < len(own):
            stop, first = start + 1, own[packed[start] & np.uint64(0xFFFFFFFF)]
            while stop < len(own) and own[packed[stop] & np.uint64(0xFFFFFFFF)] == first:
                stop += 1
            for i in range(start, stop):
                out[packed[i] & np.uint64(0xFFFFFFFF)] = (start + stop + 1) / 2
            start = stop


@kernel()
def signed_rank_sums(values, starts, n, plus, minus, tied):
    """Of each group the number of values but zeros, the sums of the ranks of their sizes by sign, and Σ(t³ − t) of ties."""
    widest = np.diff(starts).max()
    packed, spare = np.empty(widest, np.uint64), np.empty(widest, np.uint64)
    sizes, digits = np.empty(widest, np.float64), np.empty((_DIGITS, 256), np.int64)
    positive = np.empty(widest, np.bool_)
    for group in range(len(starts) - 1):
        count = 0
        for i in range(starts[group], starts[group + 1]):
            if values[i] != 0:
                sizes[count], positive[count] = abs(values[i]), values[i] > 0
                count += 1
        n[group] = count
        if count:
            _sort(sizes[:count], packed, spare, digits)
        start = 0
        while start < count:
            stop, first, above = start, sizes[packed[start] & np.uint64(0xFFFFFFFF)], 0
            while stop < count and sizes[packed[stop] & np.uint64(0xFFFFFFFF)] == first:
                above += positive[packed[stop] & np.uint64(0xFFFFFFFF)]
                stop += 1
            rank, ties = (start + stop + 1) / 2, stop - start
            plus[group] += above * rank
            minus[group] += (ties - above) * rank
            tied[group] += float(ties) * ties * ties - ties
            start = stop
