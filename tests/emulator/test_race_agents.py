"""Who counts as whom in the race check, and since when: pairs of programs, one wrong, one right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from pykernels.emulator import EmulationError, Emulator, Finding, Launch, Module, Report, TensorMap
from pykernels.emulator.arguments import Argument
from tests.emulator.ptx_program import ptx_entry, run_ptx

SCHEDULES = [(mode, seed) for mode in ("early", "late", "random") for seed in range(3)]
HEADER = ".version 8.7\n.target sm_90a\n.address_size 64\n"


@dataclass(frozen=True)
class Case:
    """A program that must give one kind of finding, or none.

    Attributes:
        id: What it is about.
        body: As of `run_ptx`; `out`, `source` and `count` are arrays of words.
        finds: What the finding's message holds; None for no finding.
        kind: The finding's.
    """

    id: str
    body: str
    finds: str | None = None
    kind: str = "race"
    grid: Sequence[int] = field(default=(1,))
    block: Sequence[int] = field(default=(32,))
    cluster: Sequence[int] = field(default=(1,))

    def run(self, mode: str, seed: int) -> Sequence[Finding]:
        args: dict[str, Argument] = {
            "source": np.arange(256, dtype=np.uint32),
            "out": np.zeros(64, np.uint32),
            "count": np.zeros(4, np.uint32),
        }
        emulator = Emulator(seed=seed, async_completion=mode, num_threads=1)
        try:
            report = run_ptx(
                self.body,
                args,
                grid=self.grid,
                block=self.block,
                cluster=self.cluster,
                emulator=emulator,
            )
        except EmulationError as error:
            report = error.report
        return report.findings

    def check(self) -> None:
        for mode, seed in SCHEDULES:
            findings = self.run(mode, seed)
            where = f"{mode} completion, seed {seed}: {[str(finding) for finding in findings]}"
            if self.finds is None:
                assert not findings, where
                continue
            said = [finding for finding in findings if finding.kind != "init"]
            assert said, where
            for finding in said:
                assert finding.kind == self.kind, where
                assert self.finds in finding.message, where


# ---- dynamic instances of one instruction ----

SCATTER = """
    .reg .b32 at, place, i;
    .shared .align 128 .b8 buffer[512];
    mov.u32 at, buffer;
    mov.u32 i, 0;
    LOOP:
    {address}
    st.shared.u32 [place], lane;
    {other}
    {sync}
    add.u32 i, i, 1;
    setp.lt.u32 p0, i, 3;
    @p0 bra LOOP;
    bar.warp.sync -1;
    ld.shared.u32 r1, [at + 8];
    st.global.u32 [out], r1;
"""
SHIFTED = "add.u32 place, lane, i; shl.b32 place, place, 2; add.u32 place, place, at;"
ROTATED = (
    "add.u32 place, lane, i; and.b32 place, place, 31; shl.b32 place, place, 2;"
    "add.u32 place, place, at;"
)
OWN = "shl.b32 place, lane, 2; add.u32 place, place, at;"
ONE_WORD = "add.u32 place, at, 8;"
ANOTHER = "st.shared.u32 [at + 384], i;"


def scatter(address: str, sync: str = "", other: str = "") -> str:
    return SCATTER.format(address=address, sync=sync, other=other)


INSTANCES = [
    Case("a store that runs again, shifted by a lane", scatter(SHIFTED), "write"),
    Case("a store that runs again, rotated", scatter(ROTATED), "write"),
    Case("two stores that run again", scatter(ROTATED, other=ANOTHER), "write"),
    Case("with bar.warp.sync between", scatter(ROTATED, "bar.warp.sync -1;", ANOTHER)),
    Case("each lane its own word", scatter(OWN)),
    Case("lanes of one instruction on one word", scatter(ONE_WORD, "bar.warp.sync -1;")),
]


# ---- what a multicast's signal says ----

MULTICAST = """
    .reg .b16 both; .reg .b32 slot, full, peer, place, rank; .reg .pred leads;
    .shared .align 128 .b8 slots[128]; .shared .align 8 .b64 fulls;
    mov.u32 slot, slots; mov.u32 full, fulls;
    mov.u32 rank, %cluster_ctarank; setp.eq.u32 leads, rank, 0;
    mbarrier.init.shared::cta.b64 [full], 1;
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [full], 128;
    barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
    mov.u16 both, 3;
    @leads cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster
        [slot], [source], 128, [full], both;
    WAIT:
    mbarrier.try_wait.parity.shared::cta.b64 p0, [full], 0;
    @!p0 bra WAIT;
    {sync}
    mapa.shared::cluster.u32 place, slot, {rank};
    @leads ld.shared::cluster.u32 r1, [place];
    @leads st.global.u32 [{written}], r1;
    barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
"""
CLUSTER_SYNC = "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;"


def multicast(rank: int, sync: str = "", written: str = "out") -> str:
    return MULTICAST.format(rank=rank, sync=sync, written=written)


PAIR: dict[str, Any] = {"grid": (2,), "block": (1,), "cluster": (2,)}
SIGNALS = [
    Case("a peer's copy behind one's own barrier", multicast(1), "read of shared memory", **PAIR),
    Case("one's own copy behind one's own barrier", multicast(0), **PAIR),
    Case("a peer's copy behind the peer's wait", multicast(1, CLUSTER_SYNC), **PAIR),
    Case("the source behind one's own barrier", multicast(0, "", "source"), **PAIR),
]


# ---- many ----


def many_copies(waited: int, read: int) -> str:
    """70 copies of one thread in flight; it waits for one and reads one."""
    count = 70
    wait = "W{0}: mbarrier.try_wait.parity.shared::cta.b64 p0, [full + {1}], 0;\n@!p0 bra W{0};\n"
    text = f"""
        .reg .b32 slot, full;
        .shared .align 128 .b8 slots[{128 * count}]; .shared .align 8 .b64 fulls[{count}];
        mov.u32 slot, slots; mov.u32 full, fulls;
    """
    for i in range(count):
        text += f"""
            mbarrier.init.shared::cta.b64 [full + {8 * i}], 1;
            mbarrier.arrive.expect_tx.shared::cta.b64 _, [full + {8 * i}], 16;
            cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes
                [slot + {128 * i}], [source], 16, [full + {8 * i}];
        """
    text += wait.format(waited, 8 * waited)
    text += f"ld.shared.u32 r1, [slot + {128 * read}]; st.global.u32 [out], r1;\n"
    return text + "".join(wait.format(i, 8 * i) for i in range(count) if i != waited)


def many_readers(count: int, waited: int) -> str:
    """Each CTA reads a word, which CTA 0 writes once `waited` others have told."""
    return f"""
        .reg .b32 cta; mov.u32 cta, %ctaid.x;
        ld.global.u32 r1, [source];
        setp.gt.u32 p0, cta, {waited};
        @p0 bra END;
        red.release.gpu.global.add.u32 [count], 1;
        setp.ne.u32 p1, cta, 0;
        @p1 bra END;
        SPIN:
        ld.acquire.gpu.global.u32 r2, [count];
        setp.le.u32 p2, r2, {waited};
        @p2 bra SPIN;
        st.global.u32 [source], 1;
        END:
    """


MANY = [
    Case("70 copies, another one read", many_copies(69, 0), "'slots'", block=(1,)),
    Case("70 copies, the one waited for read", many_copies(69, 69), block=(1,)),
    *(
        Case(
            f"the last of {n} readers", many_readers(n, n - 2), "the read by", grid=(n,), block=(1,)
        )
        for n in (33, 66, 132, 300)
    ),
    Case("all of 132 readers", many_readers(132, 131), grid=(132,), block=(1,)),
]


# ---- lanes that know less than the others ----

INIT = """
    .reg .b32 full; .shared .align 8 .b64 fulls; mov.u32 full, fulls;
    setp.eq.u32 p1, lane, 0;
    @p1 mbarrier.init.shared::cta.b64 [full], 1;
    {sync}
    @p1 mbarrier.arrive.shared::cta.b64 _, [full];
    WAIT:
    mbarrier.try_wait.parity.shared::cta.b64 p0, [full], 0;
    @!p0 bra WAIT;
"""
EXITED = """
    .reg .b32 at; .shared .align 128 .b8 buffer[128]; mov.u32 at, buffer;
    setp.ne.u32 p0, lane, 31;
    @p0 bra GO;
    {before}
    exit;
    GO:
    {after}
    ld.shared.u32 r1, [at];
    st.global.u32 [out], r1;
"""
STORE = "st.shared.u32 [at], 1;"
LANES = [
    Case("lanes that wait do not know the init", INIT.format(sync=""), "mbarrier.init"),
    Case("lanes that wait know it", INIT.format(sync="bar.warp.sync -1;")),
    Case(
        "bar.warp.sync after a lane has ended",
        EXITED.format(before=STORE, after="bar.warp.sync 0x7fffffff;"),
        "read of shared memory",
    ),
    Case(
        "bar.warp.sync before it ends",
        EXITED.format(before=STORE + "bar.warp.sync -1;", after="bar.warp.sync -1;"),
    ),
    Case(
        "bar.warp.sync before it ends, and after",
        EXITED.format(
            before=STORE + "bar.warp.sync -1;", after="bar.warp.sync -1; bar.warp.sync 0x7fffffff;"
        ),
    ),
]


# ---- peers that may not have started ----

REMOTE = """
    .reg .b32 at, peer, rank, full, remote;
    .shared .align 128 .b8 buffer[256]; .shared .align 8 .b64 fulls;
    mov.u32 at, buffer; mov.u32 full, fulls; mov.u32 rank, %cluster_ctarank; xor.b32 rank, rank, 1;
    mapa.shared::cluster.u32 peer, at, rank; mapa.shared::cluster.u32 remote, full, rank;
    {before}
    {access}
    barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
"""
RELAXED_SYNC = "barrier.cluster.arrive.relaxed.aligned; barrier.cluster.wait.aligned;"
ACCESSES = {
    "st": "st.shared::cluster.u32 [peer], rank;",
    "ld": "st.shared.u32 [at + 4], 0; ld.shared::cluster.u32 r1, [peer + 8];",
    "red": "red.relaxed.cluster.shared::cluster.add.u32 [peer], 1;",
}
SET_UP = "st.shared.u32 [at], 0; st.shared.u32 [at + 8], 0;"


def started(name: str, sync: str) -> str:
    return REMOTE.format(before=sync, access=ACCESSES[name])


NOT_STARTED = "may not have started"
PEERS = [
    Case("st before any cluster barrier", started("st", ""), NOT_STARTED, "sync", **PAIR),
    Case("st after a relaxed cluster barrier", started("st", RELAXED_SYNC), **PAIR),
    Case("st after a cluster barrier", started("st", CLUSTER_SYNC), **PAIR),
    Case("ld after a cluster barrier", started("ld", SET_UP + CLUSTER_SYNC), **PAIR),
    Case("red after a cluster barrier", started("red", SET_UP + CLUSTER_SYNC), **PAIR),
]


def test_a_peer_may_not_have_started_when_it_is_read() -> None:
    """The bytes are undefined besides, which the init check and the race check say."""
    for name in ("ld", "red"):
        for mode, seed in SCHEDULES:
            findings = Case(name, started(name, ""), "", **PAIR).run(mode, seed)
            assert any(f.kind == "sync" and NOT_STARTED in f.message for f in findings), findings


def test_a_flag_tells_of_the_start_too() -> None:
    """Whoever knows of anything that a thread of the peer has done knows that it runs."""
    body = """
        .reg .b32 at, peer, rank; .shared .align 128 .b8 buffer[128]; mov.u32 at, buffer;
        mov.u32 rank, %cluster_ctarank; setp.eq.u32 p0, rank, 1;
        mapa.shared::cluster.u32 peer, at, 1;
        @p0 red.release.gpu.global.add.u32 [count], 1;
        @p0 bra END;
        SPIN:
        ld.acquire.gpu.global.u32 r1, [count];
        setp.eq.u32 p1, r1, 0;
        @p1 bra SPIN;
        st.shared::cluster.u32 [peer], 1;
        END:
        barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
    """
    Case("flag", body, **PAIR).check()


def test_a_copy_into_a_peer_that_may_not_have_started() -> None:
    body = """
        .reg .b32 at, peer, rank, full, remote; .reg .pred leads;
        .shared .align 128 .b8 buffer[256]; .shared .align 8 .b64 fulls;
        mov.u32 at, buffer; mov.u32 full, fulls; mov.u32 rank, %cluster_ctarank;
        setp.eq.u32 leads, rank, 0;
        mapa.shared::cluster.u32 peer, at, 1; mapa.shared::cluster.u32 remote, full, 1;
        @leads bra LEADS;
        mbarrier.init.shared::cta.b64 [full], 1;
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [full], 4;
        fence.mbarrier_init.release.cluster;
        LEADS:
        {sync}
        @leads st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [peer], 7, [remote];
        @leads bra END;
        WAIT:
        mbarrier.try_wait.parity.shared::cta.b64 p0, [full], 0;
        @!p0 bra WAIT;
        END:
        barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
    """
    Case("started", body.format(sync=RELAXED_SYNC), **PAIR).check()
    for mode, seed in SCHEDULES:
        findings = Case("not started", body.format(sync=""), "", **PAIR).run(mode, seed)
        assert findings, f"{mode}, seed {seed}"


# ---- agents are not their issuers ----

TWO_COPIES = """
    .reg .b32 at; .shared .align 128 .b8 buffer[128]; mov.u32 at, buffer;
    cp.async.ca.shared.global [at], [source], 4;
    {between}
    cp.async.ca.shared.global [at], [source + 4], 4;
    cp.async.wait_all;
    ld.shared.u32 r1, [at]; st.global.u32 [out], r1;
"""
DISCARD = """
    .reg .b32 cta; .reg .b64 place; mov.u32 cta, %ctaid.x; mul.wide.u32 place, cta, 128;
    add.u64 place, place, source;
    setp.eq.u32 p0, cta, 0;
    @p0 discard.global.L2 [place], 128;
    @!p0 ld.global.u32 r1, [place + {offset}];
    @!p0 st.global.u32 [out], r1;
"""
CONVERGED = """
    .reg .b32 at, full, word; .reg .pred leads, first;
    .shared .align 128 .b8 buffer[128]; .shared .align 8 .b64 fulls;
    mov.u32 at, buffer; mov.u32 full, fulls;
    setp.eq.u32 leads, tid, 0; setp.lt.u32 first, tid, 32;
    @leads mbarrier.init.shared::cta.b64 [full], 1;
    shl.b32 word, lane, 2; add.u32 word, word, at;
    @first st.shared.u32 [word], lane;
    bar.sync 0;
    @leads mbarrier.arrive.shared::cta.b64 _, [full];
    @!first bra MEET;
    ld.shared.u32 r1, [word];
    @!leads bra MEET;
    WAIT:
    mbarrier.try_wait.parity.shared::cta.b64 p0, [full], 0;
    @!p0 bra WAIT;
    MEET:
    {meet}
    @leads st.shared.u32 [at + 64], 5;
    @first st.global.u32 [out], r1;
"""
AGENTS = [
    Case("two cp.async to one place", TWO_COPIES.format(between=""), "write", block=(1,)),
    Case(
        "two cp.async with a wait between",
        TWO_COPIES.format(between="cp.async.wait_all;"),
        block=(1,),
    ),
    Case("discard of what another reads", DISCARD.format(offset=-128), "'source", grid=(2,),
         block=(1,)),
    Case("discard of other lines", DISCARD.format(offset=0), grid=(2,), block=(1,)),
    Case("lanes of different knowledge meet at wgmma.fence",
         CONVERGED.format(meet="wgmma.fence.sync.aligned;"), block=(128,)),
    Case("they do not meet", CONVERGED.format(meet=""), "is not ordered after the read",
         block=(128,)),
]  # fmt: skip


# ---- phases ----

PHASES = """
    .reg .b32 at, full, go; .reg .b64 state; .reg .pred leads;
    .shared .align 128 .b8 buffer[128]; .shared .align 8 .b64 fulls; .shared .align 8 .b64 gos;
    mov.u32 at, buffer; mov.u32 full, fulls; mov.u32 go, gos;
    setp.eq.u32 leads, tid, 0;
    @leads mbarrier.init.shared::cta.b64 [full], 2;
    @leads mbarrier.init.shared::cta.b64 [go], 1;
    @leads st.shared.u32 [at + 4], 0;
    bar.sync 0;
    setp.eq.u32 p1, tid, 32;
    @p1 bra WAITER;
    @!leads bra END;
    mbarrier.arrive.shared::cta.b64 _, [full];
    {behind}
    mbarrier.arrive.shared::cta.b64 _, [full], 2;
    st.relaxed.cta.shared.u32 [at + 4], 1;
    bra END;
    WAITER:
    mbarrier.arrive.shared::cta.b64 state, [full];
    POLL:
    ld.relaxed.cta.shared.u32 r1, [at + 4];
    setp.ne.u32 p2, r1, 1;
    @p2 bra POLL;
    WAIT:
    mbarrier.try_wait.shared::cta.b64 p0, [full], state;
    @!p0 bra WAIT;
    ld.shared.u32 r2, [at];
    st.global.u32 [out], r2;
    END:
"""
FIRST_PHASE = """
    FIRST:
    mbarrier.try_wait.parity.shared::cta.b64 p3, [full], 0;
    @!p3 bra FIRST;
"""
WAITS = [
    Case("a wait for an earlier phase", PHASES.format(behind=FIRST_PHASE + STORE),
         "read of shared memory", block=(64,)),
    Case("a wait for the phase", PHASES.format(behind=FIRST_PHASE).replace(
        "mbarrier.arrive.shared::cta.b64 _, [full];",
        STORE + "mbarrier.arrive.shared::cta.b64 _, [full];"), block=(64,)),
]  # fmt: skip

CASES = [*INSTANCES, *SIGNALS, *MANY, *LANES, *PEERS, *AGENTS, *WAITS]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_case(case: Case) -> None:
    case.check()


# ---- tensor maps that a kernel writes ----

MAP_BYTES = 128
COPY_MAP = """
    .reg .b64 from, to;
    setp.lt.u32 p0, tid, 16;
    mad.wide.u32 from, tid, 8, map; mad.wide.u32 to, tid, 8, place;
    @p0 ld.u64 rd1, [from];
    @p0 st.global.u64 [to], rd1;
"""
LOAD_TILE = """
    .reg .b32 tile, full, zero;
    .shared .align 128 .b8 tiles[256]; .shared .align 8 .b64 fulls;
    setp.ne.u32 p0, tid, {issuer};
    @p0 bra DONE;
    mov.u32 tile, tiles; mov.u32 full, fulls; mov.u32 zero, 0;
    mbarrier.init.shared::cta.b64 [full], 1;
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [full], 256;
    {acquire}
    cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes
        [tile], [place, {{zero, zero}}], [full];
    WAIT:
    mbarrier.try_wait.parity.shared::cta.b64 p1, [full], 0;
    @!p1 bra WAIT;
    ld.shared.u32 r1, [tile];
    st.global.u32 [out], r1;
    DONE:
"""
RELEASE = "fence.proxy.tensormap::generic.release.{};"
ACQUIRE = "fence.proxy.tensormap::generic.acquire.{} [place], 128;"


def map_arguments() -> dict[str, Argument]:
    tensor = np.arange(64, dtype=np.uint32).reshape(8, 8)
    words = np.zeros(32, np.uint64)
    first = (-words.ctypes.data % MAP_BYTES) // 8
    return {
        "map": TensorMap.encode_tiled(tensor, box=(8, 8)),
        "place": words[first : first + MAP_BYTES // 8],
        "out": np.zeros(32, np.uint32),
        "tensor": tensor,
    }


def load_through_written_map(
    release: str, between: str, acquire: str, *, issuer: int = 0, seed: int = 0
) -> Report:
    body = COPY_MAP + release + between + LOAD_TILE.format(acquire=acquire, issuer=issuer)
    return run_ptx(body, map_arguments(), block=(64,), emulator=Emulator(seed=seed))


MAP_FENCES = {
    "both": (RELEASE.format("gpu"), "bar.sync 0;", ACQUIRE.format("gpu"), 0),
    "of the CTA": (RELEASE.format("cta"), "bar.sync 0;", ACQUIRE.format("cta"), 0),
    "another thread's acquire, then a barrier": (
        RELEASE.format("gpu"), "bar.sync 0; @!p0 bra PAST;" + ACQUIRE.format("gpu")
        + "PAST: bar.sync 0;", "", 32,
    ),
    "a release by one who knows of the writes": (
        "", "bar.sync 0;" + RELEASE.format("gpu"), ACQUIRE.format("gpu"), 32,
    ),
}  # fmt: skip
MAP_FAULTS = {
    "no release": ("", "bar.sync 0;", ACQUIRE.format("gpu"), 0),
    "no acquire": (RELEASE.format("gpu"), "bar.sync 0;", "", 0),
    "acquire of another address": (
        RELEASE.format("gpu"), "bar.sync 0;", ACQUIRE.format("gpu").replace("place", "out"), 0,
    ),
    "acquire before the barrier": (
        RELEASE.format("gpu") + "setp.eq.u32 p2, tid, 0; @p2 " + ACQUIRE.format("gpu"),
        "bar.sync 0;", "", 0,
    ),
    "another thread's acquire": (
        RELEASE.format("gpu"), "bar.sync 0; @!p0 bra PAST;" + ACQUIRE.format("gpu") + "PAST:",
        "", 32,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MAP_FENCES)
def test_tensor_map_fences(name: str) -> None:
    for seed in range(3):
        release, between, acquire, issuer = MAP_FENCES[name]
        report = load_through_written_map(release, between, acquire, issuer=issuer, seed=seed)
        report.raise_if_findings()


@pytest.mark.parametrize("name", MAP_FAULTS)
def test_tensor_map_fences_missing(name: str) -> None:
    for seed in range(3):
        release, between, acquire, issuer = MAP_FAULTS[name]
        report = load_through_written_map(release, between, acquire, issuer=issuer, seed=seed)
        (finding,) = report.findings
        assert finding.kind == "race"
        assert "fence.proxy.tensormap" in finding.message
        assert "'place" in finding.message


@pytest.mark.parametrize("acquire", ["", ACQUIRE.format("gpu")])
def test_a_tensor_map_of_the_launch_before(acquire: str) -> None:
    """The end of a launch releases what it wrote; its maps are to be acquired all the same."""
    values = map_arguments()
    first = {name: values[name] for name in ("map", "place")}
    second = {name: values[name] for name in ("place", "out")}
    wait = "griddepcontrol.wait;"
    text = (
        HEADER
        + ptx_entry("griddepcontrol.launch_dependents;" + COPY_MAP, first, name="writes")
        + ptx_entry(wait + LOAD_TILE.format(acquire=acquire, issuer=0), second, name="loads")
    )
    module = Module.from_ptx(text)
    emulator = Emulator()
    tensor = values["tensor"]
    assert isinstance(tensor, np.ndarray)
    emulator.register(tensor)
    report = emulator.launch_concurrent(
        [
            Launch(module["writes"], (1,), (32,), list(first.values())),
            Launch(
                module["loads"], (1,), (32,), list(second.values()), programmatic_dependent=True
            ),
        ]
    )
    if acquire:
        report.raise_if_findings()
        return
    (finding,) = report.findings
    assert "fence.proxy.tensormap" in finding.message
