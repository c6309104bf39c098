"""Programs that copy in bulk: a barrier, a tile of shared memory, ways in and out of it."""

from __future__ import annotations

import numpy as np

MODES = ["early", "late", "random"]
SHARED = """
.extern .shared .align 1024 .b8 tile[];
.shared .align 8 .b64 barrier;
"""
INIT = """
    mov.u32 r0, barrier;
    mov.u32 r1, tile;
    mbarrier.init.shared::cta.b64 [r0], 1;
    fence.proxy.async.shared::cta;
"""
WAIT = """
WAIT:
    mbarrier.try_wait.parity.shared::cta.b64 p0, [r0], 0;
    @!p0 bra WAIT;
"""


def copy_out(count: int) -> str:
    """Copies `count` 4-byte words of the tile to `out`."""
    return f"""
    mov.u32 r20, 0;
DUMP:
    add.u32 r21, r1, r20;
    ld.shared.u32 r22, [r21];
    cvt.u64.u32 rd20, r20;
    add.u64 rd20, rd20, out;
    st.global.u32 [rd20], r22;
    add.u32 r20, r20, 4;
    setp.lt.u32 p1, r20, {4 * count};
    @p1 bra DUMP;
"""


def copy_in(count: int) -> str:
    """Copies `count` 4-byte words of `source` to the tile."""
    return f"""
    mov.u32 r20, 0;
FILL:
    add.u32 r21, r1, r20;
    cvt.u64.u32 rd20, r20;
    add.u64 rd20, rd20, source;
    ld.global.u32 r22, [rd20];
    st.shared.u32 [r21], r22;
    add.u32 r20, r20, 4;
    setp.lt.u32 p1, r20, {4 * count};
    @p1 bra FILL;
    fence.proxy.async.shared::cta;
"""


def swizzled(address: np.ndarray, swizzle: str) -> np.ndarray:
    """CUTLASS' Swizzle<B, 4, 3>: bits 7.. are xored into bits 4.. ."""
    bits = {"none": 0, "32B": 1, "64B": 2, "128B": 3}[swizzle]
    return address ^ (((address >> 7) & ((1 << bits) - 1)) << 4)


def sample(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    rng = np.random.default_rng(3)
    return rng.integers(1, 200, shape).astype(dtype)
