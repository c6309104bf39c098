"""Asynchronous copies without tensor maps: cp.async, bulk copies, st.async, cache policies."""

from __future__ import annotations

import numpy as np

from .row import Row

_TILE = ".shared .align 128 .b8 tile[1024]; mov.u32 r1, tile; "
BARRIER = (
    ".shared .align 8 .b64 barrier; mov.u32 r0, barrier; setp.eq.u32 p9, tid, 0; "
    "@p9 mbarrier.init.shared::cta.b64 [r0], 1; "
    "@p9 fence.mbarrier_init.release.cluster; bar.sync 0; "
)
WAIT = " WAIT: mbarrier.try_wait.parity.shared::cta.b64 p8, [r0], 0; @!p8 bra WAIT; "
# The lane's 16 bytes of the tile to `out`.
_OUT = (
    "mad.lo.u32 r2, tid, 16, r1; ld.shared.v4.b32 {r20, r21, r22, r23}, [r2]; "
    "mad.wide.u32 rd2, tid, 16, out; st.global.v4.b32 [rd2], {r20, r21, r22, r23};"
)
_LANE_IN = "mad.lo.u32 r2, tid, 16, r1; mad.wide.u32 rd1, tid, 16, source; "
FILL = (
    _LANE_IN + "ld.global.v4.b32 {r20, r21, r22, r23}, [rd1]; "
    "st.shared.v4.b32 [r2], {r20, r21, r22, r23}; fence.proxy.async.shared::cta; bar.sync 0; "
)


def source(size: int = 512) -> np.ndarray:
    return np.random.default_rng(17).integers(0, 256, size).astype(np.uint8)


def _lane_copies() -> list[Row]:
    data = source()
    expected = {"out": data}
    zeros = "mov.u32 r9, 0; st.shared.v4.b32 [r2], {r9, r9, r9, r9}; "
    groups = "cp.async.commit_group; cp.async.wait_group 0; "
    also = ("cp.async.commit_group", "cp.async.wait_group")
    rows = []
    for form in ("cp.async.ca.shared.global.L2::128B", "cp.async.ca.shared::cta.global.L2::128B"):
        first = data.reshape(32, 16).copy()
        first[:, 4:] = 0
        body = f"{_TILE} {_LANE_IN} {zeros} {form} [r2], [rd1], 4; {groups} {_OUT}"
        rows.append(Row(form, body, {"source": data}, {"out": first.ravel()}, also=also))
    form = "cp.async.cg.shared.global"
    body = f"{_TILE} {_LANE_IN} {form} [r2], [rd1], 16; {groups} {_OUT}"
    rows.append(Row(form, body, {"source": data}, expected, also=also))
    form, wait = "cp.async.cg.shared.global.L2::256B", "cp.async.wait_all"
    body = f"{_TILE} {_LANE_IN} {form} [r2], [rd1], 16; {wait}; {_OUT}"
    rows.append(Row(form, body, {"source": data}, expected, also=(wait,)))
    form = "cp.async.cg.shared.global.L2::cache_hint.L2::256B"
    policy = "createpolicy.fractional.L2::evict_last.b64"
    body = (
        f"{_TILE} {_LANE_IN} {policy} rd5, 1.0; and.b32 r5, tid, 15; "
        f"{form} [r2], [rd1], 16, r5, rd5; {groups} {_OUT}"
    )
    kept = np.arange(16) < (np.arange(32) % 16)[:, None]
    cut = np.where(kept, data.reshape(32, 16), 0).astype(np.uint8).ravel()
    rows.append(Row(form, body, {"source": data}, {"out": cut}, also=(*also, policy)))
    for form, count in (
        ("cp.async.mbarrier.arrive.noinc.shared::cta.b64", 32),
        ("cp.async.mbarrier.arrive.shared::cta.b64", 1),
    ):
        # Without .noinc the arrivals of the copies are added to the count; one thread adds its own.
        arrive = "" if count == 32 else "bar.sync 0; @p9 mbarrier.arrive.shared::cta.b64 _, [r0]; "
        barrier = BARRIER.replace("[r0], 1;", f"[r0], {count};")
        body = (
            f"{_TILE} {barrier} {_LANE_IN} cp.async.cg.shared.global [r2], [rd1], 16; "
            f"{form} [r0]; {arrive} {WAIT} {_OUT}"
        )
        rows.append(Row(form, body, {"source": data}, expected))
    return rows


def _bulk() -> list[Row]:
    data = source()
    policy = "createpolicy.fractional.L2::evict_first.b64 rd5, 1.0; "
    load = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
    rows = []
    for form, hint in ((load, ""), (f"{load}.L2::cache_hint", ", rd5")):
        body = (
            f"{_TILE} {BARRIER} mov.u32 r3, 512; {policy} @!p9 bra WAIT; "
            "mbarrier.arrive.expect_tx.shared::cta.b64 _, [r0], r3; "
            f"{form} [r1], [source], r3, [r0]{hint}; {WAIT} {_OUT}"
        )
        rows.append(Row(form, body, {"source": data}, {"out": data}))
    store = "cp.async.bulk.global.shared::cta.bulk_group"
    commit, wait = "cp.async.bulk.commit_group", "cp.async.bulk.wait_group"
    for form, hint in ((store, ""), (f"{store}.L2::cache_hint", ", rd5")):
        body = (
            f"{_TILE} {FILL} {policy} setp.ne.u32 p1, tid, 0; @p1 bra END; mov.u32 r3, 512; "
            f"{form} [out], [r1], r3{hint}; {commit}; {wait}.read 0; {wait} 0; END:"
        )
        also = (commit, f"{wait}.read", wait)
        rows.append(Row(form, body, {"source": data}, {"out": data}, also=also))
    return rows


def _remote_stores() -> list[Row]:
    """Each CTA of a cluster writes into the other's tile; the bytes complete its mbarrier."""
    form = "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.s64"
    data = source(1024)
    cluster = "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned; "
    body = (
        f"{_TILE} {BARRIER} @p9 mbarrier.arrive.expect_tx.shared::cta.b64 _, [r0], 512; {cluster}"
        "mov.u32 r3, %cluster_ctarank; xor.b32 r4, r3, 1; mad.lo.u32 r5, r3, 32, tid; "
        "mad.wide.u32 rd1, r5, 16, source; ld.global.v2.b64 {rd10, rd11}, [rd1]; "
        "mad.lo.u32 r6, tid, 16, r1; mapa.shared::cluster.u32 r7, r6, r4; "
        "mapa.shared::cluster.u32 r8, r0, r4; "
        f"{form} [r7], {{rd10, rd11}}, [r8]; {WAIT} ld.shared.v2.b64 {{rd12, rd13}}, [r6]; "
        "mad.wide.u32 rd2, r5, 16, out; st.global.v2.b64 [rd2], {rd12, rd13}; "
        f"{cluster}"
    )
    floats = "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32"
    four = (
        body.replace("ld.global.v2.b64 {rd10, rd11}", "ld.global.v4.f32 {f10, f11, f12, f13}")
        .replace(f"{form} [r7], {{rd10, rd11}}", f"{floats} [r7], {{f10, f11, f12, f13}}")
        .replace("st.global.v2.b64 [rd2], {rd12, rd13}", "st.global.v4.f32 [rd2], {f0, f1, f2, f3}")
        .replace("ld.shared.v2.b64 {rd12, rd13}", "ld.shared.v4.f32 {f0, f1, f2, f3}")
    )
    swapped = np.concatenate([data[512:], data[:512]])
    return [
        Row(name, text, {"source": data}, {"out": swapped}, grid=2, cluster=2)
        for name, text in ((form, body), (floats, four))
    ]


def _between_ctas() -> Row:
    """Each CTA of a cluster copies its tile's first half to the other's second one."""
    form = "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes"
    data = source(1024)
    cluster = "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned; "
    body = (
        f"{_TILE} {BARRIER} mov.u32 r3, %cluster_ctarank; mad.wide.u32 source, r3, 512, source; "
        f"{FILL} @p9 mbarrier.arrive.expect_tx.shared::cta.b64 _, [r0], 512; {cluster}"
        "xor.b32 r4, r3, 1; add.u32 r5, r1, 512; mapa.shared::cluster.u32 r6, r5, r4; "
        f"mapa.shared::cluster.u32 r7, r0, r4; @p9 {form} [r6], [r1], 512, [r7]; {WAIT} "
        "add.u32 r1, r1, 512; mad.wide.u32 out, r3, 512, out; "
        f"{_OUT} {cluster}"
    )
    swapped = np.concatenate([data[512:], data[:512]])
    return Row(form, body, {"source": data}, {"out": swapped}, grid=2, cluster=2)


def rows() -> list[Row]:
    """All rows of this table."""
    return [*_lane_copies(), *_bulk(), *_remote_stores(), _between_ctas()]
