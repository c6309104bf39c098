"""Versions, targets and forms that ptxas refuses are refused at load, with their line."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from kernel_build.toolkit import find_nvcc

from pykernels.emulator import Module, PtxError


def module(statement: str = "", version: str = "8.0", target: str = "sm_90a") -> str:
    return (
        f".version {version}\n.target {target}\n.address_size 64\n"
        f".visible .entry kernel()\n{{\n.reg .pred p; .reg .b32 r<8>; .reg .b64 rd<8>;\n"
        f"{statement}\nret;\n}}\n"
    )


REFUSED = {
    "version of the future": (module(version="99.9"), 1, "there is no PTX 99.9"),
    "version that never was": (module(version="7.9"), 1, "there is no PTX 7.9"),
    "target without a number": (module(target="hopper"), 2, "there is no target 'hopper'"),
    "target that never was": (module(target="sm_91"), 2, "'sm_91' is a later target than sm_90a"),
    "number between two": (module(target="sm_85"), 2, "there is no target 'sm_85'"),
    "suffix that never was": (module(target="sm_90b"), 2, "there is no target 'sm_90b'"),
    "suffix of another": (module(target="sm_80a"), 2, "there is no target 'sm_80a'"),
    "later target": (module(target="sm_100a"), 2, "is a later target than sm_90a"),
    "version before the target": (
        module(version="7.8"),
        2,
        "PTX 7.8 does not know the target 'sm_90a'",
    ),
    "version before sm_90": (
        module(version="7.7", target="sm_90"),
        2,
        "PTX 7.7 does not know the target 'sm_90'",
    ),
    "WGMMA of sm_90": (
        module("wgmma.fence.sync.aligned;", target="sm_90"),
        7,
        "'wgmma' of this form needs .target sm_90a, the module has sm_90",
    ),
    "setmaxnreg of sm_90": (
        module("setmaxnreg.dec.sync.aligned.u32 24;", target="sm_90"),
        7,
        "'setmaxnreg' of this form needs .target sm_90a",
    ),
    "cluster barrier of sm_70": (
        module("barrier.cluster.arrive;", target="sm_70"),
        7,
        "'barrier' of this form needs .target sm_90 or higher, the module has sm_70",
    ),
    "cluster scope of sm_80": (
        module("fence.acq_rel.cluster;", target="sm_80"),
        7,
        "'fence' of this form needs .target sm_90 or higher",
    ),
    "bulk wait of sm_80": (
        module("cp.async.bulk.wait_group 0;", target="sm_80"),
        7,
        "'cp' of this form needs .target sm_90 or higher",
    ),
    "asynchronous copies of sm_75": (
        module("cp.async.wait_all;", target="sm_75"),
        7,
        "'cp' of this form needs .target sm_80 or higher",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    text, line, message = REFUSED[case]
    with pytest.raises(PtxError) as caught:
        Module.from_ptx(text)
    assert caught.value.line == line
    assert message in str(caught.value)


ACCEPTED = {
    "sm_90a": module("wgmma.fence.sync.aligned;"),
    "version to come": module(version="9.7"),
    "sm_90": module("barrier.cluster.arrive;", version="7.8", target="sm_90"),
    "sm_80": module("cp.async.wait_all;", version="7.0", target="sm_80"),
    "sm_52": module("bar.sync 0;", version="6.0", target="sm_52"),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted(case: str) -> None:
    assert list(Module.from_ptx(ACCEPTED[case]).kernels) == ["kernel"]


# Later than the toolkit's, and a suffix that ptxas 13.0 overlooks.
NOT_COMPARED = {"version to come", "suffix that never was"}


@pytest.mark.parametrize("case", sorted({*REFUSED, *ACCEPTED} - NOT_COMPARED))
def test_ptxas_agrees(case: str, tmp_path: Path) -> None:
    text = ACCEPTED[case] if case in ACCEPTED else REFUSED[case][0]
    path = tmp_path / "module.ptx"
    path.write_text(text)
    ptxas = Path(find_nvcc()).with_name("ptxas")
    command = [str(ptxas), "-arch=sm_90a", "-o", str(tmp_path / "cubin"), str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode == 0) == (case in ACCEPTED), result.stderr
