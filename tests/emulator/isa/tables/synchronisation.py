"""Barriers, mbarriers, fences, launch control: programs whose result needs the order they give."""

from __future__ import annotations

import numpy as np

from .row import Row

_PLACE = ".shared .align 8 .b8 tile[512]; mov.u32 r1, tile; mad.lo.u32 r2, tid, 4, r1;"
_OUT = "mad.wide.u32 rd1, tid, 4, out; st.global.u32 [rd1], {};"


def _numbers(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.uint32)


def _other_warp(form: str, wait: str) -> Row:
    """64 threads: each reads what the same lane of the other warp wrote."""
    body = (
        f"{_PLACE} st.shared.u32 [r2], tid; {wait} xor.b32 r3, r2, 128; ld.shared.u32 r4, [r3];"
        + _OUT.format("r4")
    )
    return Row(form, body, {}, {"out": _numbers(64) ^ 32}, block=64)


def _named_barriers() -> list[Row]:
    """Warp 0 only arrives, warp 1 reads what it wrote."""
    body = (
        f"{_PLACE} mov.u32 r5, 3; mov.u32 r6, 64; setp.ge.u32 p1, tid, 32; @p1 bra READ; "
        "st.shared.u32 [r2], tid; bar.arrive r5, r6; bra.uni END; "
        "READ: bar.sync r5, r6; ld.shared.u32 r4, [r2+-128];" + _OUT.format("r4") + " END:"
    )
    wanted = np.where(_numbers(64) < 32, 0, _numbers(64) % 32).astype(np.uint32)
    return [
        Row("bar.arrive", body, {}, {"out": wanted}, also=("bar.sync",), block=64, note="arrive")
    ]


def _clusters() -> list[Row]:
    """Two CTAs of a cluster: each reads the other's shared memory through mapa."""
    rows = []
    for arrive, wait in (
        ("barrier.cluster.arrive.relaxed.aligned", "barrier.cluster.wait.aligned"),
        ("barrier.cluster.arrive.relaxed", "barrier.cluster.wait.acquire"),
        ("barrier.cluster.arrive", "barrier.cluster.wait"),
        ("barrier.cluster.arrive.release.aligned", "barrier.cluster.wait.acquire.aligned"),
    ):
        both = f"fence.acq_rel.cluster; {arrive}; {wait};"
        body = (
            f"{_PLACE} mov.u32 r3, %cluster_ctarank; mad.lo.u32 r4, r3, 100, tid; "
            f"st.shared.u32 [r2], r4; {both} xor.b32 r5, r3, 1; "
            "mapa.shared::cluster.u32 r6, r2, r5; ld.shared::cluster.u32 r7, [r6]; "
            f"{both} mad.lo.u32 r8, r3, 32, tid; mad.wide.u32 rd1, r8, 4, out; "
            "st.global.u32 [rd1], r7;"
        )
        wanted = np.concatenate([_numbers(32) + 100, _numbers(32)]).astype(np.uint32)
        also = (wait, "mapa.shared::cluster.u32")
        rows.append(Row(arrive, body, {}, {"out": wanted}, also=also, grid=2, cluster=2))
        generic = body.replace(
            "mapa.shared::cluster.u32 r6, r2, r5; ld.shared::cluster.u32 r7, [r6]; ",
            "cvt.u64.u32 rd5, r2; cvta.shared.u64 rd5, rd5; mapa.u64 rd6, rd5, r5; "
            "ld.u32 r7, [rd6]; ",
        )
    rows.append(Row("mapa.u64", generic, {}, {"out": wanted}, grid=2, cluster=2))
    return rows


_WAIT = "{label}: {form} p1, [r10], {parity}; @!p1 bra {label};"
_BARRIER = ".shared .align 8 .b64 barrier; mov.u32 r10, barrier; setp.eq.u32 p9, tid, 0; "


def _mbarriers() -> list[Row]:
    """All arrive, thread 0 expects bytes which no copy brings but complete_tx does; two phases."""
    body = (
        f"{_PLACE} {_BARRIER} @p9 mbarrier.init.shared::cta.b64 [r10], 64; "
        "fence.mbarrier_init.release.cluster; bar.sync 0; st.shared.u32 [r2], tid; "
        "@p9 mbarrier.expect_tx.shared::cta.b64 [r10], 16; "
        "@p9 mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [r10], 16; "
        "mbarrier.arrive.shared::cta.b64 _, [r10]; "
        + _WAIT.format(label="FIRST", form="mbarrier.try_wait.parity.shared::cta.b64", parity=0)
        + " xor.b32 r3, r2, 128; ld.shared.u32 r4, [r3]; bar.sync 0; "
        "mad.lo.u32 r5, r4, 3, 1; st.shared.u32 [r3], r5; @p9 bra EXPECT; "
        "mbarrier.arrive.shared::cta.b64 _, [r10]; bra ARRIVED; EXPECT: "
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [r10], 32; "
        "mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [r10], 32; ARRIVED: "
        + _WAIT.format(label="SECOND", form="mbarrier.try_wait.parity.shared::cta.b64", parity=1)
        + " ld.shared.u32 r6, [r2]; bar.sync 0; @p9 mbarrier.inval.shared::cta.b64 [r10];"
        + _OUT.format("r6")
    )
    forms = (
        "init", "expect_tx", "arrive", "arrive.expect_tx", "try_wait.parity", "inval",
    )  # fmt: skip
    also = tuple(f"mbarrier.{name}.shared::cta.b64" for name in forms[1:])
    also += ("fence.mbarrier_init.release.cluster",)
    expected = {"out": _numbers(64) * 3 + 1}
    spelled = body
    orders = {
        "mbarrier.arrive.expect_tx": ".release.cta",
        "mbarrier.arrive": ".release.cta",
        "mbarrier.try_wait.parity": ".acquire.cta",
    }
    for form, order in orders.items():
        spelled = spelled.replace(f"{form}.shared", f"{form}{order}.shared")
    ordered = [f"{form}{order}.shared::cta.b64" for form, order in orders.items()]
    explicit = Row(ordered[0], spelled, {}, expected, also=tuple(ordered[1:]), block=64)
    first = Row(f"mbarrier.{forms[0]}.shared::cta.b64", body, {}, expected, also=also, block=64)
    remote = (
        f"{_PLACE} {_BARRIER} @p9 mbarrier.init.shared::cta.b64 [r10], 32; "
        "fence.mbarrier_init.release.cluster; barrier.cluster.arrive.aligned; "
        "barrier.cluster.wait.aligned; mov.u32 r3, %cluster_ctarank; xor.b32 r4, r3, 1; "
        "mapa.shared::cluster.u32 r5, r2, r4; mad.lo.u32 r6, r3, 100, tid; "
        "st.shared::cluster.u32 [r5], r6; mapa.shared::cluster.u32 r7, r10, r4; "
        "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [r7]; "
        + _WAIT.format(
            label="WAIT",
            form="mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64",
            parity=0,
        )
        + " ld.shared.u32 r8, [r2]; mad.lo.u32 r9, r3, 32, tid; mad.wide.u32 rd1, r9, 4, out; "
        "st.global.u32 [rd1], r8; barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;"
    )
    # Releases at CTA scope, so only its count of arrivals is seen: no data goes with it.
    counted = (
        f"{_BARRIER} @p9 mbarrier.init.shared::cta.b64 [r10], 32; "
        "fence.mbarrier_init.release.cluster; barrier.cluster.arrive.aligned; "
        "barrier.cluster.wait.aligned; mov.u32 r3, %cluster_ctarank; xor.b32 r4, r3, 1; "
        "mapa.shared::cluster.u32 r7, r10, r4; mbarrier.arrive.shared::cluster.b64 _, [r7]; "
        + _WAIT.format(label="WAIT", form="mbarrier.try_wait.parity.shared::cta.b64", parity=0)
        + " mad.lo.u32 r9, r3, 32, tid; mad.wide.u32 rd1, r9, 4, out; "
        "st.global.u32 [rd1], r9; barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;"
    )
    wanted = np.concatenate([_numbers(32) + 100, _numbers(32)]).astype(np.uint32)
    named = "mbarrier.arrive.release.cta.shared::cluster.b64"
    spelled = counted.replace("mbarrier.arrive.shared::cluster.b64", named)
    return [
        first,
        explicit,
        Row(named, spelled, {}, {"out": _numbers(64)}, grid=2, cluster=2),
        Row(
            "mbarrier.arrive.release.cluster.shared::cluster.b64",
            remote,
            {},
            {"out": wanted},
            also=("mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64",),
            grid=2,
            cluster=2,
        ),
        Row(
            "mbarrier.arrive.shared::cluster.b64",
            counted,
            {},
            {"out": _numbers(64)},
            grid=2,
            cluster=2,
        ),
    ]


_FENCES = (
    "fence.acq_rel.cta", "fence.acq_rel.sys", "fence.acquire.cta", "fence.acquire.gpu",
    "fence.release.cta", "fence.release.gpu", "fence.sc.gpu", "membar.gl", "membar.sys",
    "fence.proxy.async.shared::cta", "fence.proxy.async.global",
)  # fmt: skip


def _fences() -> list[Row]:
    """A message from warp 0 to warp 1: data, fence, flag; flag, fence, data."""
    rows = []
    for form in _FENCES:
        pairs = {"fence.acquire": "fence.release", "fence.release": "fence.acquire"}
        other = next((form.replace(a, b) for a, b in pairs.items() if form.startswith(a)), form)
        if "proxy" in form:
            other = f"{form}; fence.acq_rel.cta"
        writer, reader = (form, other) if form.startswith("fence.release") else (other, form)
        body = (
            "setp.ge.u32 p1, tid, 32; @p1 bra READ; mad.wide.u32 rd2, tid, 4, data; "
            f"mad.lo.u32 r2, tid, 7, 1; st.global.u32 [rd2], r2; {writer}; bar.warp.sync -1; "
            "setp.ne.u32 p2, tid, 0; @p2 bra END; "
            "fence.acq_rel.gpu; st.relaxed.gpu.global.u32 [flag], 1; bra END; "
            "READ: ld.relaxed.gpu.global.u32 r3, [flag]; setp.eq.u32 p3, r3, 0; @p3 bra READ; "
            f"{reader}; fence.acq_rel.gpu; mad.wide.u32 rd2, tid, 4, data; "
            "ld.global.u32 r4, [rd2+-128];" + _OUT.format("r4") + " END:"
        )
        values = _numbers(32) * 7 + 1
        wanted = {
            "data": values,
            "flag": np.ones(1, np.uint32),
            "out": np.concatenate([np.zeros(32), values]).astype(np.uint32),
        }
        rows.append(Row(form, body, {}, wanted, block=64))
    return rows


def _launch_control() -> list[Row]:
    add = "add.u32 r1, tid, 1;" + _OUT.format("r1")
    registers = (
        "setmaxnreg.dec.sync.aligned.u32 40; bar.sync 0; setmaxnreg.inc.sync.aligned.u32 48; "
    )
    dependents = "griddepcontrol.launch_dependents"
    return [
        Row(
            "griddepcontrol.wait",
            f"griddepcontrol.wait; {dependents};{add}",
            {},
            {"out": _numbers(32) + 1},
            also=(dependents,),
        ),
        Row(
            "setmaxnreg.dec.sync.aligned.u32",
            registers + add,
            {},
            {"out": _numbers(128) + 1},
            also=("setmaxnreg.inc.sync.aligned.u32",),
            block=128,
        ),
    ]


def rows() -> list[Row]:
    """All rows of this table."""
    waits = {"bar.sync": "bar.sync 0;", "barrier.sync": "mov.u32 r7, 64; barrier.sync 2, r7;"}
    return [
        *(_other_warp(form, wait) for form, wait in waits.items()),
        *_named_barriers(),
        *_clusters(),
        *_mbarriers(),
        *_fences(),
        *_launch_control(),
    ]
