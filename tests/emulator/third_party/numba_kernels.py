"""Numba kernels of the tests: what people write with numba.cuda, compiled to PTX without a GPU."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import cuda, float32, float64, int32, int64

TILE = 16
POWERS = np.array([1, 2, 4, 8, 16, 32, 64, 128], np.int32)


def matmul_naive(a: Any, b: Any, c: Any) -> None:
    row, column = cuda.grid(2)
    if row < c.shape[0] and column < c.shape[1]:
        total = float32(0)
        for k in range(a.shape[1]):
            total += a[row, k] * b[k, column]
        c[row, column] = total


def matmul_tiled(a: Any, b: Any, c: Any) -> None:
    tile_a = cuda.shared.array((TILE, TILE), float32)
    tile_b = cuda.shared.array((TILE, TILE), float32)
    row, column = cuda.grid(2)
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    total = float32(0)
    for start in range(0, a.shape[1], TILE):
        tile_a[x, y] = 0
        tile_b[x, y] = 0
        if row < a.shape[0] and start + y < a.shape[1]:
            tile_a[x, y] = a[row, start + y]
        if start + x < b.shape[0] and column < b.shape[1]:
            tile_b[x, y] = b[start + x, column]
        cuda.syncthreads()
        for k in range(TILE):
            total += tile_a[x, k] * tile_b[k, y]
        cuda.syncthreads()
    if row < c.shape[0] and column < c.shape[1]:
        c[row, column] = total


def reduce_sum(x: Any, total: Any) -> None:
    """Shuffles within a warp, shared memory within a block, an atomic across blocks."""
    parts = cuda.shared.array(32, float32)
    value = float32(0)
    for i in range(cuda.grid(1), x.size, cuda.gridsize(1)):
        value += x[i]
    for distance in (16, 8, 4, 2, 1):
        value += cuda.shfl_down_sync(-1, value, distance)
    warp, lane = cuda.threadIdx.x // 32, cuda.threadIdx.x % 32
    if lane == 0:
        parts[warp] = value
    cuda.syncthreads()
    if warp == 0:
        value = parts[lane] if lane < cuda.blockDim.x // 32 else float32(0)
        for distance in (16, 8, 4, 2, 1):
            value += cuda.shfl_down_sync(-1, value, distance)
        if lane == 0:
            cuda.atomic.add(total, 0, value)


def argmax(x: Any, best: Any, place: Any) -> None:
    """The largest value by an atomic, then the first place that holds it by another."""
    i = cuda.grid(1)
    cuda.atomic.max(best, 0, x[i])
    cuda.syncthreads()
    if x[i] == best[0]:
        cuda.atomic.min(place, 0, i)


def scan(x: Any, out: Any) -> None:
    """Inclusive sums of a block, in two alternating shared arrays."""
    tiles = cuda.shared.array((2, 256), int64)
    i = cuda.threadIdx.x
    tiles[0, i] = x[i]
    cuda.syncthreads()
    source = 0
    distance = 1
    while distance < cuda.blockDim.x:
        value = tiles[source, i]
        if i >= distance:
            value += tiles[source, i - distance]
        tiles[1 - source, i] = value
        source = 1 - source
        distance *= 2
        cuda.syncthreads()
    out[i] = tiles[source, i]


def histogram(x: Any, counts: Any) -> None:
    """Of a block in shared memory, then of all in global memory."""
    local = cuda.shared.array(64, int32)
    t = cuda.threadIdx.x
    if t < 64:
        local[t] = 0
    cuda.syncthreads()
    i = cuda.grid(1)
    if i < x.size:
        cuda.atomic.add(local, x[i] & 63, 1)
    cuda.syncthreads()
    if t < 64:
        cuda.atomic.add(counts, t, local[t])


def mandelbrot(out: Any, limit: int) -> None:
    x, y = cuda.grid(2)
    if x < out.shape[0] and y < out.shape[1]:
        c = complex(-2.0 + 3.0 * x / out.shape[0], -1.25 + 2.5 * y / out.shape[1])
        z = 0j
        count = 0
        while count < limit and z.real * z.real + z.imag * z.imag <= 4.0:
            z = z * z + c
            count += 1
        out[x, y] = count


def functions(x: Any, out: Any) -> None:
    i = cuda.grid(1)
    v = x[i]
    out[0, i] = math.sin(v)
    out[1, i] = math.exp(v)
    out[2, i] = math.sqrt(math.fabs(v))
    out[3, i] = math.pow(math.fabs(v), 0.3)
    out[4, i] = math.atan2(v, float64(0.7))
    out[5, i] = math.erf(v)
    out[6, i] = math.floor(v) + math.fmod(v, 0.4)
    out[7, i] = v / (1.0 + v * v)


def integers(a: Any, b: Any, out: Any) -> None:
    i = cuda.grid(1)
    x, y = a[i], b[i]
    out[0, i] = x // y
    out[1, i] = x % y
    out[2, i] = x * y
    out[3, i] = (x << 7) ^ (y >> 11)
    out[4, i] = cuda.popc(x)
    out[5, i] = cuda.clz(x)
    out[6, i] = cuda.brev(x)
    out[7, i] = min(x, y) - max(x, y)
    out[8, i] = abs(x) & ~y


def votes(x: Any, out: Any) -> None:
    """Ballots, matches and shuffles of a warp, and a table in constant memory."""
    powers = cuda.const.array_like(POWERS)
    i = cuda.threadIdx.x
    odd = x[i] & 1
    out[0, i] = cuda.ballot_sync(-1, odd)
    out[1, i] = cuda.all_sync(-1, odd) + 2 * cuda.any_sync(-1, odd)
    out[2, i] = cuda.match_any_sync(-1, x[i])
    out[3, i] = cuda.shfl_xor_sync(-1, x[i], 3) + cuda.shfl_up_sync(-1, x[i], 2)
    out[4, i] = powers[x[i] & 7]
    out[5, i] = cuda.selp(odd != 0, 10, 20)


def local_sort(x: Any, out: Any) -> None:
    """Each thread sorts eight values in local memory, with indices known only at run time."""
    values = cuda.local.array(8, float64)
    i = cuda.grid(1)
    for k in range(8):
        values[k] = x[i, k]
    for k in range(1, 8):
        value = values[k]
        at = k
        while at > 0 and values[at - 1] > value:
            values[at] = values[at - 1]
            at -= 1
        values[at] = value
    for k in range(8):
        out[i, k] = values[k]


def spin_lock(lock: Any, total: Any) -> None:
    """One thread of each block adds under a lock: compare-and-swap, fences, exchange."""
    if cuda.threadIdx.x == 0:
        while cuda.atomic.cas(lock, 0, 0, 1) != 0:
            pass
        cuda.threadfence()
        total[0] += cuda.blockIdx.x + 1
        cuda.threadfence()
        cuda.atomic.exch(lock, 0, 0)
