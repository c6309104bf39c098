"""ldmatrix, stmatrix, mma.sync and WGMMA: whole numbers, whose products and sums are exact."""

from __future__ import annotations

import re

import ml_dtypes
import numpy as np
import numpy.typing as npt

from tests.emulator.isa.wgmma_program import k_major, to_fragments

from .forms import published_forms
from .row import Row

_DTYPES: dict[str, npt.DTypeLike] = {
    "bf16": ml_dtypes.bfloat16, "f16": np.float16, "tf32": np.float32,
    "e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2,
}  # fmt: skip
_TILE = ".shared .align 16 .b8 tile[512]; mov.u32 r1, tile; mad.lo.u32 r2, lane, 16, r1; "


def _integers(seed: int, *shape: int) -> npt.NDArray[np.float64]:
    return np.random.default_rng(seed).integers(-6, 7, shape).astype(np.float64)


def _ldmatrix(form: str) -> Row:
    matrices = np.random.default_rng(20).integers(0, 2**16, (4, 8, 8)).astype(np.uint16)
    body = (
        f"{_TILE} mad.wide.u32 rd1, lane, 16, source; "
        "ld.global.v4.b32 {r10, r11, r12, r13}, [rd1]; "
        "st.shared.v4.b32 [r2], {r10, r11, r12, r13}; "
        f"bar.warp.sync -1; {form} {{r20, r21, r22, r23}}, [r2]; mad.wide.u32 rd2, lane, 4, out; "
        + " ".join(f"st.global.b32 [rd2+{128 * i}], r{20 + i};" for i in range(4))
    )
    wanted = matrices.view(np.uint32).reshape(4, 32)  # lane 4 * row + pair has a pair of matrix i
    return Row(form, body, {"source": matrices}, {"out": wanted})


def _stmatrix(form: str) -> Row:
    count = 4 if ".x4" in form else 2
    matrices = np.random.default_rng(21).integers(0, 2**16, (count, 8, 8)).astype(np.uint16)
    registers = [f"r{20 + i}" for i in range(count)]
    body = (
        f"{_TILE} mad.wide.u32 rd1, lane, 4, source; "
        + " ".join(f"ld.global.b32 {r}, [rd1+{128 * i}];" for i, r in enumerate(registers))
        + f" and.b32 r3, lane, {8 * count - 1}; mad.lo.u32 r3, r3, 16, r1; "
        f"{form} [r3], {{{', '.join(registers)}}}; bar.warp.sync -1; "
        f"setp.ge.u32 p1, lane, {8 * count}; @p1 bra END; "
        "ld.shared.v4.b32 {r10, r11, r12, r13}, [r2]; mad.wide.u32 rd2, lane, 16, out; "
        "st.global.v4.b32 [rd2], {r10, r11, r12, r13}; END:"
    )
    wanted = matrices.transpose(0, 2, 1).copy() if ".trans" in form else matrices
    return Row(form, body, {"source": matrices}, {"out": wanted})


def _mma() -> Row:
    """Fragments as the PTX ISA draws them for m16n8k16."""
    form = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
    a, b, c = _integers(22, 16, 16), _integers(23, 16, 8), _integers(24, 16, 8)
    lane = np.arange(32)
    group, member = lane // 4, lane % 4
    halves_a = a.astype(np.float16)
    fragment_a = np.empty((32, 4, 2), np.float16)
    fragment_b = np.empty((32, 2, 2), np.float16)
    fragment_c = np.empty((32, 4), np.float32)
    fragment_d = np.empty((32, 4), np.float32)
    d = a @ b + c
    for i in range(4):
        row, column = group + 8 * (i % 2), member * 2 + 8 * (i // 2)
        fragment_a[:, i, 0], fragment_a[:, i, 1] = halves_a[row, column], halves_a[row, column + 1]
    for i in range(2):
        row = member * 2 + 8 * i
        fragment_b[:, i, 0], fragment_b[:, i, 1] = b[row, group], b[row + 1, group]
    for i in range(4):
        row, column = group + 8 * (i // 2), member * 2 + i % 2
        fragment_c[:, i], fragment_d[:, i] = c[row, column], d[row, column]
    body = (
        "mad.wide.u32 rd1, lane, 16, a; ld.global.v4.b32 {r10, r11, r12, r13}, [rd1]; "
        "mad.wide.u32 rd2, lane, 8, b; ld.global.v2.b32 {r14, r15}, [rd2]; "
        "mad.wide.u32 rd3, lane, 16, c; ld.global.v4.f32 {f0, f1, f2, f3}, [rd3]; "
        f"{form} {{f4, f5, f6, f7}}, {{r10, r11, r12, r13}}, {{r14, r15}}, {{f0, f1, f2, f3}}; "
        "mad.wide.u32 rd4, lane, 16, out; st.global.v4.f32 [rd4], {f4, f5, f6, f7};"
    )
    inputs = {"a": fragment_a, "b": fragment_b, "c": fragment_c}
    return Row(form, body, inputs, {"out": fragment_d})


_SHARED_BYTES = 16384
_B_START = 4096
_WGMMA_BODY = """
    mov.u32 r1, tile;
    shl.b32 r3, tid, 4;
COPY:
    cvt.u64.u32 rd4, r3;
    add.s64 rd5, image, rd4;
    ld.global.v4.b32 {{r10, r11, r12, r13}}, [rd5];
    add.s32 r5, r1, r3;
    st.shared.v4.b32 [r5], {{r10, r11, r12, r13}};
    add.s32 r3, r3, 2048;
    setp.lt.u32 p0, r3, {size};
    @p0 bra COPY;
    fence.proxy.async.shared::cta;
    bar.sync 0;
    and.b32 r7, r1, 262143;
    shr.u32 r7, r7, 4;
    cvt.u64.u32 rd13, r7;
    add.s64 rd1, a_descriptor, rd13;
    add.s64 rd2, b_descriptor, rd13;
    mov.pred p1, -1;
    .reg .b32 d<{count}>;
    mad.wide.u32 rd6, tid, {row_bytes}, start;
    {loads}
    wgmma.fence.sync.aligned;
    {form} {{{accumulators}}}, rd1, rd2, p1, 1, 1{transposes};
    wgmma.commit_group.sync.aligned;
    wgmma.wait_group.sync.aligned 0;
    mad.wide.u32 rd7, tid, {row_bytes}, out;
    {stores}
"""


def _wgmma(form: str) -> Row:
    """Both operands k-major in shared memory without a swizzle, accumulators loaded before."""
    found = re.search(r"m64n(\d+)k(\d+)\.f32\.(\w+)\.(\w+)", form)
    assert found is not None
    n, k, a_type, b_type = int(found[1]), int(found[2]), found[3], found[4]
    a, b, start = _integers(n, 64, k), _integers(k, n, k), _integers(25, 64, n) * 17
    image = np.zeros(_SHARED_BYTES, np.uint8)
    descriptors = []
    for at, values, kind in ((0, a, a_type), (_B_START, b, b_type)):
        typed = np.ascontiguousarray(values.astype(_DTYPES[kind]))
        place = k_major(at, "none", len(values))
        place.write(image, typed.view(np.uint8), typed.itemsize)
        descriptors.append(np.uint64(place.descriptor + (at >> 4)))
    count = n // 2
    body = _WGMMA_BODY.format(
        size=_SHARED_BYTES,
        count=count,
        row_bytes=4 * count,
        form=form,
        accumulators=", ".join(f"d{i}" for i in range(count)),
        transposes=", 0, 0" if a_type in ("bf16", "f16") else "",
        loads=" ".join(f"ld.global.b32 d{i}, [rd6+{4 * i}];" for i in range(count)),
        stores=" ".join(f"st.global.b32 [rd7+{4 * i}], d{i};" for i in range(count)),
    )

    def fragments(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        return to_fragments(values.astype(np.float32).view(np.uint32)).view(np.float32)

    return Row(
        form,
        body,
        {
            "image": image,
            "start": fragments(start),
            "a_descriptor": descriptors[0],
            "b_descriptor": descriptors[1],
        },
        {"out": fragments(a @ b.T + start)},
        module=".extern .shared .align 1024 .b8 tile[];",
        also=(
            "wgmma.fence.sync.aligned",
            "wgmma.commit_group.sync.aligned",
            "wgmma.wait_group.sync.aligned",
        ),
        block=128,
        dynamic_smem_bytes=_SHARED_BYTES,
    )


def rows() -> list[Row]:
    """All rows of this table."""
    return [
        *map(_ldmatrix, published_forms("ldmatrix")),
        *map(_stmatrix, published_forms("stmatrix")),
        _mma(),
        *(_wgmma(form) for form in published_forms("wgmma") if "mma_async" in form),
    ]
