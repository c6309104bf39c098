"""Orders that the race check accepts, and close neighbours that it does not."""

from __future__ import annotations

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
