"""A naive matrix product for Numba, and how fast Numba's own CUDA simulator runs it.

``NUMBA_ENABLE_CUDASIM=1 python -m bench.numba_product 16`` prints multiply-adds a second.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from typing import Any

import numpy as np

cuda: Any = importlib.import_module("numba.cuda")  # untyped


def product(a: Any, b: Any, out: Any) -> None:
    """One element of out = a @ b a thread."""
    column, row = cuda.grid(2)
    if row < out.shape[0] and column < out.shape[1]:
        total = np.float32(0)
        i = 0
        while i < a.shape[1]:  # a range object would cost three times as many instructions
            total += a[row, i] * b[i, column]
            i += 1
        out[row, column] = total


def main(size: int) -> float:
    """The simulator runs each thread of a block as a thread of Python."""
    if os.environ.get("NUMBA_ENABLE_CUDASIM") != "1":
        raise RuntimeError("set NUMBA_ENABLE_CUDASIM=1")
    generator = np.random.default_rng(0)
    a, b = (generator.integers(-4, 5, (size, size)).astype(np.float32) for _ in range(2))
    out = np.zeros_like(a)
    simulated = cuda.jit(product)
    best = float("inf")
    for _ in range(10):
        start = time.process_time()
        simulated[(size // 16, size // 16), (16, 16)](a, b, out)
        best = min(best, time.process_time() - start)
    np.testing.assert_array_equal(out, a @ b)
    return size**3 / best


if __name__ == "__main__":
    print(main(int(sys.argv[1])))
