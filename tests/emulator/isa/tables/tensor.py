"""Tensor copies and tensor maps edited by the kernel: expected tiles cut out by NumPy."""

from __future__ import annotations

import numpy as np

from .copies import BARRIER, WAIT
from .row import Array, Map, Row

_TILE = ".shared .align 1024 .b8 tile[4096]; mov.u32 r1, tile; "
_COMPLETE = "mbarrier::complete_tx::bytes"
_SHAPES = {2: (16, 64), 3: (6, 10, 32), 4: (3, 4, 5, 32), 5: (2, 3, 4, 5, 16)}
_BOXES = {2: (8, 32), 3: (2, 4, 16), 4: (2, 2, 3, 16), 5: (2, 1, 2, 3, 8)}
_STARTS = {2: (5, 48), 3: (5, 3, 16), 4: (-1, 1, 3, 8), 5: (0, 2, 1, 2, 8)}


def _tensor(rank: int) -> Array:
    return np.random.default_rng(rank).integers(1, 2**16, _SHAPES[rank]).astype(np.uint16)


def _cut(tensor: Array, rank: int) -> Array:
    """The box, zeros where it lies outside of the tensor."""
    box, start = _BOXES[rank], _STARTS[rank]
    out = np.zeros(box, tensor.dtype)
    inside = [
        [i for i in range(n) if 0 <= s + i < size]
        for n, s, size in zip(box, start, tensor.shape, strict=True)
    ]
    out[np.ix_(*inside)] = tensor[
        np.ix_(*[[s + i for i in kept] for kept, s in zip(inside, start, strict=True)])
    ]
    return out


def _coordinates(start: tuple[int, ...]) -> str:
    """In registers r30 and up, the contiguous dimension first, as compilers have them."""
    values = list(reversed(start))
    moves = " ".join(f"mov.u32 r{30 + i}, {value};" for i, value in enumerate(values))
    return moves + " "


def _list(rank: int) -> str:
    return "{" + ", ".join(f"r{30 + i}" for i in range(rank)) + "}"


def dump(size: int) -> str:
    """All threads of a warp write the tile's `size` bytes, a multiple of 4, to `out`."""
    return (
        "mov.u32 r40, lane; DUMP: "
        f"setp.ge.u32 p7, r40, {size // 4}; @p7 bra DUMPED; mad.lo.u32 r41, r40, 4, r1; "
        "ld.shared.b32 r42, [r41]; mad.wide.u32 rd40, r40, 4, out; st.global.b32 [rd40], r42; "
        "add.u32 r40, r40, 32; bra DUMP; DUMPED:"
    )


def _load_row(form: str, rank: int) -> Row:
    tensor = _tensor(rank)
    wanted = _cut(tensor, rank)
    hint = ", rd5" if "cache_hint" in form else ""
    multicast = ", h1" if "multicast" in form else ""
    inputs = {"tensor": tensor, "map": Map("tensor", _BOXES[rank])}
    policy = "mov.b64 rd5, 1152921504606846976; mov.b16 h1, 3; "
    issue = (
        f"mbarrier.arrive.expect_tx.shared::cta.b64 _, [r0], {wanted.nbytes}; "
        "{guard}" + f"{form} [r1], [map, {_list(rank)}], [r0]{multicast}{hint}; "
    )
    setup = f"{_TILE} {BARRIER} {_coordinates(_STARTS[rank])} {policy} "
    if not multicast:
        body = f"{setup} @!p9 bra WAIT; {issue.replace('{guard}', '')} {WAIT} {dump(wanted.nbytes)}"
        return Row(form, body, inputs, {"out": wanted})
    cluster = "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned; "
    guarded = issue.replace("{guard}", "mov.u32 r3, %cluster_ctarank; setp.eq.u32 p6, r3, 0; @p6 ")
    # Both CTAs expect the box, the first one asks for it; each writes its copy.
    out = "mov.u32 r3, %cluster_ctarank; mul.wide.u32 rd3, r3, {size}; add.u64 out, out, rd3; "
    body = (
        f"{setup} {cluster} @!p9 bra WAIT; {guarded} {WAIT} "
        f"{out.replace('{size}', str(wanted.nbytes))} {dump(wanted.nbytes)} {cluster}"
    )
    return Row(form, body, inputs, {"out": np.stack([wanted, wanted])}, grid=2, cluster=2)


_FILL = (
    "mov.u32 r40, lane; FILL: setp.ge.u32 p7, r40, {words}; @p7 bra FILLED; "
    "mad.lo.u32 r41, r40, 4, r1; mad.wide.u32 rd40, r40, 4, source; ld.global.b32 r42, [rd40]; "
    "st.shared.b32 [r41], r42; add.u32 r40, r40, 32; bra FILL; FILLED: "
    "fence.proxy.async.shared::cta; bar.sync 0; "
)
_COMMIT = "cp.async.bulk.commit_group; cp.async.bulk.wait_group 0; "


def _store_row(form: str, rank: int, *, adds: bool = False) -> Row:
    dtype = np.float32 if adds else np.uint16
    tensor = _tensor(rank).astype(dtype)
    box, start = _BOXES[rank], _STARTS[rank]
    source = np.random.default_rng(50).integers(1, 999, box).astype(dtype)
    after = tensor.copy()
    for index in np.ndindex(*box):
        place = tuple(s + i for s, i in zip(start, index, strict=True))
        if all(0 <= p < n for p, n in zip(place, tensor.shape, strict=True)):
            after[place] = after[place] + source[index] if adds else source[index]
    body = (
        f"{_TILE} {_FILL.replace('{words}', str(source.nbytes // 4))} {_coordinates(start)} "
        f"setp.ne.u32 p1, tid, 0; @p1 bra END; {form} [map, {_list(rank)}], [r1]; {_COMMIT} END:"
    )
    inputs = {"tensor": tensor, "map": Map("tensor", box), "source": source}
    return Row(form, body, inputs, {"tensor": after})


_REPLACE = "tensormap.replace.tile.{}.shared::cta.b1024.{}"


def _edited_map() -> Row:
    """A map of another tensor becomes one of ``tensor``, in shared memory, then in global memory.

    Of the tensor of 16 x 64 16-bit elements the map shows 12 x 56; the box is 8 x 32, its rows
    swizzled by 64 bytes.
    """
    tensor = _tensor(2)
    other = np.zeros((32, 32), np.uint32)
    fields = [
        ("global_address", "b64", "[r1], tensor"),
        ("rank", "b32", "[r1], 1"),
        ("global_dim", "b32", "[r1], 0, 56"),
        ("global_dim", "b32", "[r1], 1, 12"),
        ("global_stride", "b64", "[r1], 0, 128"),
        ("box_dim", "b32", "[r1], 0, 32"),
        ("box_dim", "b32", "[r1], 1, 8"),
        ("element_stride", "b32", "[r1], 0, 1"),
        ("element_stride", "b32", "[r1], 1, 1"),
        ("elemtype", "b32", "[r1], 1"),
        ("swizzle_mode", "b32", "[r1], 2"),
    ]
    edits = " ".join(f"@p9 {_REPLACE.format(name, kind)} {rest};" for name, kind, rest in fields)
    fence = "tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned"
    acquire = "fence.proxy.tensormap::generic.acquire.gpu"
    load = f"cp.async.bulk.tensor.2d.shared::cluster.global.{_COMPLETE}"
    body = (
        f"{_TILE} {BARRIER} mad.lo.u32 r2, lane, 4, r1; mad.wide.u32 rd1, lane, 4, map; "
        f"ld.u32 r3, [rd1]; st.shared.u32 [r2], r3; bar.warp.sync -1; {edits} bar.warp.sync -1; "
        f"{fence} [place], [r1], 128; add.u32 r1, r1, 1024; @!p9 bra WAIT; "
        f"{acquire} [place], 128; fence.proxy.async.shared::cta; "
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [r0], 512; prefetch.tensormap [place]; "
        f"mov.u32 r30, 32; mov.u32 r31, 6; {load} [r1], [place, {{r30, r31}}], [r0]; "
        f"{WAIT} {dump(512)}"
    )
    shown = np.zeros((8, 32), np.uint16)
    shown[:6, :24] = tensor[6:12, 32:56]
    chunks = np.arange(32)
    swizzled = np.empty((32, 8), np.uint16)
    # 16-byte chunk i of 64-byte rows lies at i ^ (i / 8 % 4).
    swizzled[chunks ^ (chunks >> 3 & 3)] = shown.reshape(32, 8)
    also = tuple(dict.fromkeys(_REPLACE.format(name, kind) for name, kind, _ in fields))
    return Row(
        fence,
        body,
        {
            "tensor": tensor,
            "other": other,
            "map": Map("other", (8, 8)),
            "place": np.zeros(128, np.uint8),
        },
        {"out": swizzled.reshape(8, 32)},
        also=(*also, acquire, load, "prefetch.tensormap"),
    )


def _copied_map() -> Row:
    """A map that plain stores put into global memory, released to the tensor-map proxy."""
    tensor = _tensor(2)
    release = "fence.proxy.tensormap::generic.release.gpu"
    load = f"cp.async.bulk.tensor.2d.shared::cluster.global.{_COMPLETE}"
    body = (
        f"{_TILE} {BARRIER} {_coordinates(_STARTS[2])} mad.wide.u32 rd1, lane, 4, map; "
        "ld.u32 r3, [rd1]; mad.wide.u32 rd2, lane, 4, place; st.global.u32 [rd2], r3; "
        f"{release}; bar.warp.sync -1; @!p9 bra WAIT; "
        "fence.proxy.tensormap::generic.acquire.gpu [place], 128; "
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [r0], 512; "
        f"{load} [r1], [place, {_list(2)}], [r0]; {WAIT} {dump(512)}"
    )
    inputs = {
        "tensor": tensor,
        "map": Map("tensor", _BOXES[2]),
        "place": np.zeros(128, np.uint8),
    }
    return Row(release, body, inputs, {"out": _cut(tensor, 2)})


def rows() -> list[Row]:
    """All rows of this table."""
    prefix = "cp.async.bulk.tensor.{}d."
    cluster = prefix + f"shared::cluster.global.{_COMPLETE}"
    result = [
        _load_row((prefix + f"shared::cta.global.{_COMPLETE}").format(2), 2),
        *(_load_row(cluster.format(rank), rank) for rank in (2, 3)),
        *(_load_row(cluster.format(rank) + ".multicast::cluster", rank) for rank in (2, 3)),
        *(_load_row(cluster.format(rank) + ".L2::cache_hint", rank) for rank in (2, 3, 4)),
        *(
            _load_row(cluster.format(rank) + ".multicast::cluster.L2::cache_hint", rank)
            for rank in (2, 3)
        ),
        *(
            _store_row((prefix + "global.shared::cta.bulk_group").format(rank), rank)
            for rank in (2, 3, 4, 5)
        ),
        _store_row(
            "cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.bulk_group", 2, adds=True
        ),
        _edited_map(),
        _copied_map(),
    ]
    return result
