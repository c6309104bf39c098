"""Orders that the race check accepts, and close neighbours that it does not."""

from __future__ import annotations

import time

import numpy as np
import pytest

from pykernels.emulator import EmulationError, Emulator, Launch, Module, Report
from tests.emulator.ptx_program import ptx_program, run_ptx

SEEDS = range(4)


def run_ctas(bodies: list[str], *, seed: int) -> Report:
    """One CTA of one thread for each body that run together; `data` is shared."""
    data = np.zeros(8, np.uint32)
    text = "mov.u32 r60, %ctaid.x;\n"
    for i in range(len(bodies)):
        text += f"setp.eq.u32 p{i}, r60, {i};\n@p{i} bra BODY{i};\n"
    for i, body in enumerate(bodies):
        text += f"BODY{i}:\n{body}\nbra DONE;\n"
    text += "DONE:\n"
    emulator = Emulator(seed=seed)
    return run_ptx(text, {"data": data}, grid=(len(bodies),), block=(1,), emulator=emulator)


def spin(label: str, load: str, place: str, value: int) -> str:
    return f"""
    {label}:
        {load} r1, [{place}];
        setp.ne.u32 p9, r1, {value};
        @p9 bra {label};
    """


# Words of `data`: 0 the payload, 1 the flag, 2 and 3 what tells the third CTA and the reader on.
WRITER = "st.global.u32 [data], 42; st.release.gpu.global.u32 [data + 4], 1;"
READER = """
    {first}
    st.relaxed.gpu.global.u32 [data + 8], 1;
    {second}
    {acquire}
    ld.global.u32 r2, [data];
"""
OVERWRITER = """
    {wait}
    st.relaxed.gpu.global.u32 [data + 4], 2;
    st.relaxed.gpu.global.u32 [data + 12], 1;
"""


def seen_before(acquire: str, seed: int) -> Report:
    """The reader sees the flag relaxed, another CTA sets it anew, then the reader acquires."""
    relaxed = "ld.relaxed.gpu.global.u32"
    reader = READER.format(
        first=spin("FLAG", relaxed, "data + 4", 1),
        second=spin("GO", relaxed, "data + 12", 1),
        acquire=acquire,
    )
    third = OVERWRITER.format(wait=spin("TOLD", relaxed, "data + 8", 1))
    return run_ctas([WRITER, reader, third], seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "acquire", ["ld.acquire.gpu.global.u32 r3, [data + 4];", "fence.acq_rel.gpu;"]
)
def test_an_acquire_holds_for_what_was_read_before(acquire: str, seed: int) -> None:
    """A strong read followed by an acquire of the same place, or by a fence, is an acquire."""
    seen_before(acquire, seed).raise_if_findings()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("acquire", ["ld.acquire.gpu.global.u32 r3, [data + 16];", ""])
def test_an_acquire_elsewhere_does_not(acquire: str, seed: int) -> None:
    (finding,) = seen_before(acquire, seed).findings
    assert finding.kind == "race"
    assert finding.first is not None
    assert finding.first.ptx == "ld.global.u32 r2, [data]"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_store_by_another_ends_what_was_released(seed: int) -> None:
    relaxed = "ld.relaxed.gpu.global.u32"
    third = OVERWRITER.format(wait=spin("SEEN", relaxed, "data + 4", 1))
    reader = (
        spin("GO", relaxed, "data + 12", 1)
        + """
        ld.acquire.gpu.global.u32 r3, [data + 4];
        ld.global.u32 r2, [data];
    """
    )
    (finding,) = run_ctas([WRITER, reader, third], seed=seed).findings
    assert finding.kind == "race"


# ---- several GPUs ----


def test_a_deadlock_names_launches_and_ranks() -> None:
    text = ptx_program("bar.sync 0, 64;", {})
    kernel = Module.from_ptx(text)["kernel"]
    launches = [Launch(kernel, (1,), (32,), [], rank=rank) for rank in (0, 3)]
    with pytest.raises(EmulationError) as caught:
        Emulator().launch_concurrent(launches)
    finding = caught.value.report.findings[-1]
    assert "CTA (0, 0, 0) of launch 0 on rank 0 warp 0 waits for" in finding.message
    assert "CTA (0, 0, 0) of launch 1 on rank 3 warp 0 waits for" in finding.message
    assert [(site.grid, site.rank) for site in finding.sites] == [(0, 0), (1, 3)]
    assert "(launch 1 on rank 3, CTA (0, 0, 0)" in str(finding.sites[1])


# ---- observation order ----


def two_ctas(first: str, second: str, seed: int) -> Report:
    return run_ctas([first, second], seed=seed)


RELAXED = "ld.relaxed.gpu.global.u32"
SETTER = """
    st.global.u32 [data], 42;
    fence.acq_rel.gpu;
    st.relaxed.gpu.global.u32 [data + 4], 1;
"""


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("load", [RELAXED, "ld.acquire.gpu.global.u32"])
def test_who_has_read_a_flag_may_reset_it(load: str, seed: int) -> None:
    """A strong write that a strong read has seen comes before what follows the read."""
    fence = "fence.acq_rel.gpu;" if load == RELAXED else ""
    reader = f"{spin('FLAG', load, 'data + 4', 1)} {fence} st.global.u32 [data + 4], 0;"
    two_ctas(SETTER, reader, seed).raise_if_findings()


@pytest.mark.parametrize("seed", SEEDS)
def test_who_has_not_read_a_flag_may_not(seed: int) -> None:
    """Another flag tells that the first is set, but nothing orders the two."""
    setter = """
        st.relaxed.gpu.global.u32 [data + 4], 1;
        st.relaxed.gpu.global.u32 [data + 8], 1;
    """
    reader = f"{spin('FLAG', RELAXED, 'data + 8', 1)} st.global.u32 [data + 4], 0;"
    (finding,) = two_ctas(setter, reader, seed).findings
    assert finding.kind == "race"


# ---- atomics ----


def after_an_atomic(atomic: str, seed: int) -> Report:
    """The writer's atomic on word 1 stands before word 2 is set; the reader acquires word 1."""
    writer = f"st.global.u32 [data], 42; {atomic} st.relaxed.gpu.global.u32 [data + 8], 1;"
    reader = f"""
        {spin("GO", RELAXED, "data + 8", 1)}
        ld.acquire.gpu.global.u32 r3, [data + 4];
        ld.global.u32 r2, [data];
    """
    return two_ctas(writer, reader, seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_compare_and_swap_that_writes_releases(seed: int) -> None:
    after_an_atomic(
        "atom.acq_rel.gpu.global.cas.b32 r1, [data + 4], 0, 6;", seed
    ).raise_if_findings()


@pytest.mark.parametrize("seed", SEEDS)
def test_one_that_fails_does_not(seed: int) -> None:
    cas = "atom.acq_rel.gpu.global.cas.b32 r1, [data + 4], 5, 6;"
    (finding,) = after_an_atomic(cas, seed).findings
    assert finding.kind == "race"


@pytest.mark.parametrize("seed", SEEDS)
def test_one_that_fails_acquires(seed: int) -> None:
    writer = "st.global.u32 [data], 42; st.release.gpu.global.u32 [data + 4], 1;"
    reader = """
    TRY:
        atom.acquire.gpu.global.cas.b32 r1, [data + 4], 5, 6;
        setp.ne.u32 p9, r1, 1;
        @p9 bra TRY;
        ld.global.u32 r2, [data];
    """
    two_ctas(writer, reader, seed).raise_if_findings()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("operation", "num_findings"), [("atom", 0), ("red", 1)])
def test_a_reduction_and_a_fence_acquire_nothing(
    operation: str, num_findings: int, seed: int
) -> None:
    """PTX ISA, acquire patterns: the read of `red` forms none."""
    result = "r3, " if operation == "atom" else ""
    writer = f"{SETTER} st.relaxed.gpu.global.u32 [data + 8], 1;"
    # A third CTA passes word on without a fence, so that only the atomic may acquire.
    teller = f"""
        {spin("TOLD", RELAXED, "data + 8", 1)}
        st.relaxed.gpu.global.u32 [data + 12], 1;
    """
    reader = f"""
        {spin("GO", RELAXED, "data + 12", 1)}
        {operation}.relaxed.gpu.global.add.u32 {result}[data + 4], 1;
        fence.acq_rel.gpu;
        ld.global.u32 r2, [data];
    """
    assert len(run_ctas([writer, reader, teller], seed=seed).findings) == num_findings


# ---- sizes ----


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("store", "load"),
    [
        ("st.relaxed.gpu.global.u64 [data + 8], 1;", "ld.relaxed.gpu.global.u32 r2, [data + 12];"),
        ("st.relaxed.gpu.global.u64 [data + 8], 1;", "ld.relaxed.gpu.global.u32 r2, [data + 8];"),
        ("st.relaxed.gpu.global.u16 [data + 8], 1;", "ld.relaxed.gpu.global.u32 r2, [data + 8];"),
    ],
)
def test_strong_accesses_of_two_sizes_race(store: str, load: str, seed: int) -> None:
    (finding,) = two_ctas(store, load, seed).findings
    assert "they are strong, but not of one size" in finding.message


@pytest.mark.parametrize("seed", SEEDS)
def test_vectors_count_as_their_scalars(seed: int) -> None:
    writer = """
        st.global.u32 [data], 42;
        mov.u32 r1, 1;
        fence.acq_rel.gpu;
        st.relaxed.gpu.global.v2.u32 [data + 8], {r1, r1};
    """
    reader = f"""
        {spin("FLAG", RELAXED, "data + 12", 1)}
        fence.acq_rel.gpu;
        ld.global.u32 r2, [data];
    """
    two_ctas(writer, reader, seed).raise_if_findings()


@pytest.mark.parametrize("seed", SEEDS)
def test_an_acquire_of_another_size_takes_nothing(seed: int) -> None:
    writer = "st.global.u32 [data], 42; mov.u64 rd1, 1; st.release.gpu.global.u64 [data + 8], rd1;"
    reader = f"{spin('FLAG', 'ld.acquire.gpu.global.u32', 'data + 8', 1)} ld.global.u32 r2, [data];"
    findings = two_ctas(writer, reader, seed).findings
    assert any(f.first is not None and "r2" in f.first.ptx for f in findings)


# ---- many threads on one location ----

GRID_BARRIERS = """
    .reg .b32 round, ctas, wanted;
    mov.u32 ctas, %nctaid.x;
    mov.u32 round, 0;
    mov.u32 wanted, 0;
ROUND:
    bar.sync 0;
    setp.ne.u32 p0, tid, 0;
    @p0 bra MEET;
    add.u32 wanted, wanted, ctas;
    red.release.gpu.global.add.u32 [counter], 1;
POLL:
    ld.acquire.gpu.global.u32 r1, [counter];
    setp.lt.u32 p1, r1, wanted;
    @p1 bra POLL;
MEET:
    bar.sync 0;
    add.u32 round, round, 1;
    setp.lt.u32 p2, round, 3;
    @p2 bra ROUND;
"""


@pytest.mark.parametrize(
    ("body", "grid", "block"),
    [
        (GRID_BARRIERS, 66, 128),
        ("atom.acq_rel.gpu.global.add.u32 r1, [counter], 1;", 16, 256),
        ("fence.sc.gpu; atom.relaxed.gpu.global.add.u32 r1, [counter], 1;", 16, 256),
    ],
    ids=["grid barrier", "acq_rel", "fence.sc"],
)
def test_many_threads_may_synchronise_at_one_place(body: str, grid: int, block: int) -> None:
    """The time that a thread needs does not grow with those that have released there before."""
    begin = time.process_time()
    run_ptx(body, {"counter": np.zeros(1, np.uint32)}, grid=(grid,), block=(block,))
    assert time.process_time() - begin < 20


# ---- launches ----


def test_a_launch_does_not_pass_for_one_before_it() -> None:
    """Launch 66 has waited for launch 65, and for no other."""
    data = np.zeros(4, np.uint32)
    waits = "griddepcontrol.wait;"
    store = "st.global.u32 [data], 1;"
    kernels = [
        Module.from_ptx(ptx_program(body, {"data": data}))["kernel"]
        for body in (waits, store, f"{waits} {store}")
    ]
    launches = [Launch(kernels[i == 1], (1,), (1,), [data]) for i in range(66)] + [
        Launch(kernels[2], (1,), (1,), [data], programmatic_dependent=True)
    ]
    report = Emulator().launch_concurrent(launches)
    assert [finding.kind for finding in report.findings] == ["race"]


def test_a_launch_waits_for_none_of_another_rank() -> None:
    """Rank 0's third launch is behind its own two, whatever of rank 1 lies between in the list."""
    data = np.zeros(4, np.uint32)
    waits = "griddepcontrol.wait;"
    store = f"{waits} st.global.u32 [data], 1;"
    nothing, stores = (
        Module.from_ptx(ptx_program(body, {"data": data}))["kernel"] for body in (waits, store)
    )
    order = [(nothing, 0), (stores, 1), (nothing, 0), (nothing, 1), (stores, 0)]
    launches = [
        Launch(kernel, (1,), (1,), [data], programmatic_dependent=i > 1, rank=rank)
        for i, (kernel, rank) in enumerate(order)
    ]
    report = Emulator().launch_concurrent(launches)
    assert [finding.kind for finding in report.findings] == ["race"]
    same_rank = [
        Launch(each.kernel, (1,), (1,), [data], programmatic_dependent=i > 0)
        for i, each in enumerate(launches)
    ]
    assert not Emulator().launch_concurrent(same_rank).findings
