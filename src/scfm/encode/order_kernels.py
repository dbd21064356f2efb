"""Numba kernels of expression sequences; the rules of :mod:`scfm.encode.rank_kernels` apply."""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"
from __future__ import annotations

import numpy as np

from scfm._compat import kernel

__all__ = ["BY_COLUMN", "BY_VALUE", "SHUFFLED", "order_rows"]

BY_COLUMN, BY_VALUE, SHUFFLED = 0, 1, 2
_INFINITY_BITS = np.uint32(0x7F800000)
_TOKEN_MASK = np.uint64((1 << 24) - 1)


@kernel()
def _mix(x):
    """Mix 64 bits well (the finaliser of SplitMix64, Steele et al. 2014, doi:10.1145/2714064.2660195)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@kernel()
def _hash(token, value):
    """Hash of a gene and its value."""
    return _mix((np.uint64(token) << np.uint64(32)) | np.uint64(np.float32(value).view(np.uint32)))


@kernel()
def _key(mode, column_key, value, token, cell_hash):
    """Sort key of a gene of a cell: smaller comes first; equal keys do not occur within a cell."""
    if mode == BY_VALUE:
        bits = _INFINITY_BITS - np.float32(value).view(np.uint32)
        return (np.uint64(bits) << np.uint64(32)) | np.uint64(column_key)
    if mode == SHUFFLED:
        return (_mix(cell_hash ^ _hash(token, value)) & ~_TOKEN_MASK) | (np.uint64(column_key) & _TOKEN_MASK)
    return np.uint64(column_key)


@kernel()
def _gather(indices, data, begin, end, slots, tokens, order, mode, seed, place, values, columns, keys):
    """Collect the expressed genes of a row, columns of one slot added up; returns their number."""
    n, ascending = 0, True
    for k in range(begin, end):
        column = indices[k]
        slot = slots[column]
        if slot < 0 or data[k] == 0:
            continue
        if len(place):
            at = place[slot]
            if at >= 0:
                values[at] += np.float64(data[k])
                continue
            place[slot] = n
        values[n] = np.float64(data[k])
        columns[n] = column
        n += 1
    cell_hash = np.uint64(seed)
    if mode == SHUFFLED:
        content = np.uint64(0)
        for i in range(n):
            content += _hash(
                tokens[columns[i]], values[i]
            )  # a sum does not depend on the order in which genes are stored
        cell_hash = _mix(cell_hash + _mix(content))
    for i in range(n):
        if len(place):
            place[slots[columns[i]]] = -1
        keys[i] = _key(mode, order[columns[i]], values[i], tokens[columns[i]], cell_hash)
        ascending = ascending and (i == 0 or keys[i] > keys[i - 1])
    return n, ascending


@kernel()
def order_rows(
    indptr,
    indices,
    data,
    row_start,
    row_stop,
    slots,
    merge,
    column_tokens,
    order,
    mode,
    seed,
    keep,
    fed,
    scale,
    clip,
    tokens,
    counts,
    starts,
    n_genes,
):
    """Write the first ``fed`` genes of each row and their counts at ``starts``; write the number of expressed genes.

    ``slots`` gives the gene of a column (columns of one gene are added up with ``merge``), −1 for none. With
    ``scale`` > 0 the counts of the first ``keep`` genes are scaled to that sum; with ``clip`` ≥ 0 they are cut there.
    """
    widest = 0
    for row in range(row_start, row_stop):
        widest = max(widest, indptr[row + 1] - indptr[row])
    values = np.empty(widest, np.float64)
    columns = np.empty(widest, np.int32)
    keys = np.empty(widest, np.uint64)
    place = np.full(len(slots) if merge else 0, -1, np.int64)
    for row in range(row_start, row_stop):
        begin, end = indptr[row], indptr[row + 1]
        n, ascending = _gather(
            indices, data, begin, end, slots, column_tokens, order, mode, seed, place, values, columns, keys
        )
        n_genes[row] = n
        kept = min(n, keep)
        if ascending:
            where = np.arange(kept)
        else:
            where = np.argsort(keys[:n])[:kept]
        total = np.float64(0)
        if scale > 0:
            for i in range(kept):
                total += np.float32(values[where[i]])
        at = starts[row]
        for i in range(min(kept, fed)):
            value = np.float32(values[where[i]])
            if scale > 0:
                value = np.float32(np.float32(value / np.float32(total)) * np.float32(scale))
            if clip >= 0:
                value = min(value, np.float32(clip))
            tokens[at + i] = column_tokens[columns[where[i]]]
            counts[at + i] = value
