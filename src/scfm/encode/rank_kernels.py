"""Numba kernels of rank value encoding.

All kernels release the GIL, work on a range of rows and share nothing but their output, so a plain thread pool runs
them side by side. ``parallel=True`` is not used: numba's own threads abort when two Python threads enter them.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"
from __future__ import annotations

import numpy as np

from scfm._compat import kernel

__all__ = ["count_model_genes", "encode_rows"]

_LOW_BITS = 11
_MIDDLE_BITS = 10
_TOP_SHIFT = _LOW_BITS + _MIDDLE_BITS
_LOW_SIZE = 1 << _LOW_BITS
_MIDDLE_SIZE = 1 << _MIDDLE_BITS
_TOP_SIZE = 1 << (31 - _TOP_SHIFT)
# Any finite positive float32 has smaller bits than infinity; subtracting from it turns the order around.
_INFINITY_BITS = np.uint32(0x7F800000)


@kernel()
def count_model_genes(indptr, indices, data, column_tokens, keep_zeros, counts):
    """Count the stored values of model genes in each row, into ``counts``.

    Returns the position in ``data`` of the first negative, infinite or NaN value, or −1.
    """
    for row in range(len(indptr) - 1):
        n = 0
        for k in range(indptr[row], indptr[row + 1]):
            value = data[k]
            if not (value >= 0 and value < np.inf):
                return k
            if column_tokens[indices[k]] >= 0 and (value > 0 or keep_zeros):
                n += 1
        counts[row] = n
    return -1


@kernel()
def _before(value_a, token_a, value_b, token_b):
    return value_a > value_b or (value_a == value_b and token_a < token_b)


@kernel()
def _order_run(packed, start, stop, values, tokens):
    """Shell sort of ``packed[start:stop]`` by value descending, token ascending (equal float32 keys only)."""
    for gap in (701, 301, 132, 57, 23, 10, 4, 1):
        for i in range(start + gap, stop):
            item = packed[i]
            at = item & np.uint64(0xFFFFFFFF)
            j = i
            while j - gap >= start:
                other = packed[j - gap] & np.uint64(0xFFFFFFFF)
                if not _before(values[at], tokens[at], values[other], tokens[other]):
                    break
                packed[j] = packed[j - gap]
                j -= gap
            packed[j] = item


@kernel()
def _radix_pass(source, target, n, histogram, shift, mask):
    total = np.int64(0)
    for digit in range(len(histogram)):
        count = histogram[digit]
        histogram[digit] = total
        total += count
    for i in range(n):
        digit = (source[i] >> shift) & mask
        target[histogram[digit]] = source[i]
        histogram[digit] += 1


@kernel()
def _rank(values, tokens, n, keep, packed, spare, low, middle, top):
    """Sort the first ``n`` values: order in ``packed`` (low 32 bits), the first ``keep`` entries are final.

    A radix sort of the float32 bits (31 of them, three passes); runs of equal float32 keys, few in practice, are then
    put in order by the float64 value and the token. Rounding to float32 never reverses an order, so neither does this.
    """
    top[:] = 0
    for i in range(n):
        key = _INFINITY_BITS - np.float32(values[i]).view(np.uint32)
        packed[i] = (np.uint64(key) << np.uint64(32)) | np.uint64(i)
        top[key >> _TOP_SHIFT] += 1
    if n > keep:
        # values whose leading digit is past the limit cannot be among the first `keep`
        seen, last = 0, 0
        while seen < keep:
            seen += top[last]
            last += 1
        top[last:] = 0
        kept = 0
        for i in range(n):
            if (packed[i] >> np.uint64(32 + _TOP_SHIFT)) < last:
                packed[kept] = packed[i]
                kept += 1
        n = kept
    low[:] = 0
    middle[:] = 0
    for i in range(n):
        key = packed[i] >> np.uint64(32)
        low[key & np.uint64(_LOW_SIZE - 1)] += 1
        middle[(key >> np.uint64(_LOW_BITS)) & np.uint64(_MIDDLE_SIZE - 1)] += 1
    _radix_pass(packed, spare, n, low, np.uint64(32), np.uint64(_LOW_SIZE - 1))
    _radix_pass(spare, packed, n, middle, np.uint64(32 + _LOW_BITS), np.uint64(_MIDDLE_SIZE - 1))
    _radix_pass(packed, spare, n, top, np.uint64(32 + _TOP_SHIFT), np.uint64(_TOP_SIZE - 1))
    start = 0
    while start < min(n, keep):
        key = spare[start] >> np.uint64(32)
        stop = start + 1
        while stop < n and (spare[stop] >> np.uint64(32)) == key:
            stop += 1
        if stop - start > 1:
            _order_run(spare, start, stop, values, tokens)
        start = stop


@kernel()
def _gather_row(
    indices, data, begin, end, column_tokens, factors, depth_factor, scale, single, keep_zeros, slot, values, tokens
):
    """Collect value and token of the model genes of a row; with ``slot``, add up columns of one token.

    Values are multiplied by ``depth_factor`` (0 for none), ``scale`` and the factor of the token, one after the other;
    ``single`` rounds the first two products to float32.
    """
    n = 0
    for k in range(begin, end):
        column = indices[k]
        token = column_tokens[column]
        if token < 0 or not (data[k] > 0 or keep_zeros):
            continue
        value = np.float64(data[k])
        if len(slot):
            at = slot[token]
            if at >= 0:
                values[at] += value
                continue
            slot[token] = n
        values[n] = value
        tokens[n] = token
        n += 1
    for i in range(n):
        if len(slot):
            slot[tokens[i]] = -1
        value = values[i]
        if single:
            value = np.float64(np.float32(np.float32(value) * np.float32(depth_factor)) * np.float32(scale))
        elif depth_factor > 0:
            value = value * depth_factor * scale
        values[i] = value * factors[tokens[i]]
    return n


@kernel()
def encode_rows(
    indptr,
    indices,
    data,
    row_start,
    row_stop,
    column_tokens,
    factors,
    depth_factors,
    scale,
    single,
    keep_zeros,
    merge,
    keep,
    first,
    last,
    offsets,
    out,
    lengths,
    n_genes,
):
    """Encode rows ``row_start:row_stop`` into ``out`` at ``offsets``; write their lengths and gene numbers.

    ``factors`` are 1 / median by token; ``depth_factors`` those of the rows, or empty; ``first`` and ``last`` are the
    special tokens around a cell, −1 for none; ``merge`` adds up columns that share a token.
    """
    widest = 0
    for row in range(row_start, row_stop):
        widest = max(widest, indptr[row + 1] - indptr[row])
    values = np.empty(widest, np.float64)
    tokens = np.empty(widest, np.int32)
    packed = np.empty(widest, np.uint64)
    spare = np.empty(widest, np.uint64)
    low = np.zeros(_LOW_SIZE, np.int64)
    middle = np.zeros(_MIDDLE_SIZE, np.int64)
    top = np.zeros(_TOP_SIZE, np.int64)
    slot = np.full(len(factors) if merge else 0, -1, np.int64)
    for row in range(row_start, row_stop):
        begin, end = indptr[row], indptr[row + 1]
        depth = depth_factors[row] if len(depth_factors) else 0.0
        n = _gather_row(
            indices, data, begin, end, column_tokens, factors, depth, scale, single, keep_zeros, slot, values, tokens
        )
        n_genes[row] = n
        kept = min(n, keep)
        if kept:
            _rank(values, tokens, n, kept, packed, spare, low, middle, top)
        at = offsets[row]
        if first >= 0:
            out[at] = first
            at += 1
        for i in range(kept):
            out[at + i] = tokens[spare[i] & np.uint64(0xFFFFFFFF)]
        at += kept
        if last >= 0:
            out[at] = last
            at += 1
        lengths[row] = at - offsets[row]
