"""The choice of a grouped kernel: explain_config, and what the calls take."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch

import pykernels
from pykernels import _C
from pykernels.native import native, strided_view
from tests.gemm_family import GROUPED, explain_groups, gpu
from tests.gemm_kernels import schedules
from tests.grouped_cases import EVERY_FORM, FORMS, Groups

OPS = (pykernels.grouped_fp8_gemm_nt, pykernels.grouped_fp8_gemm_nt_masked)
SIZES = {"num_groups": 8, "m": 64, "n": 4096, "k": 7168}
MOST_ROWS = 2**31 - 1 - 1024


def key(candidate: Any) -> tuple[str, tuple[int, ...]]:
    schedule = candidate.schedule
    return candidate.kernel, tuple(getattr(schedule, "values", lambda: schedule)())


def grouped_schedules(config: dict[str, int]) -> list[tuple[int, int, int]]:
    """Without a split of k, on which bits would depend."""
    return [schedule for schedule in schedules(config) if schedule[2] == 1]


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.__name__)
def test_explain_config(op: Any) -> None:
    candidates = pykernels.explain_config(op, device="H20", **SIZES)
    listed = [key(candidate) for candidate in candidates]
    assert len(listed) == len(set(listed))
    assert set(listed) == {
        (name, schedule)
        for name, fields in GROUPED.items()
        for schedule in grouped_schedules(fields)
    }
    costs = [candidate.cost["total_us"] for candidate in candidates]
    assert costs == sorted(costs)
    assert pykernels.explain_config(op, device="H20", batch_invariant=True, **SIZES) == candidates
    few = pykernels.explain_config(op, num_sms=1, **SIZES)
    assert {math.prod(candidate.schedule.values()) for candidate in few} == {1}
    h200 = pykernels.explain_config(op, device="H200", **SIZES)
    assert h200[0].cost["hbm_us"] < candidates[0].cost["hbm_us"]


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.__name__)
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_groups": None}, "sizes must be num_groups, m, n, k, got m, n, k"),
        ({"batch": 1}, "sizes must be num_groups, m, n, k, got num_groups, m, n, k, batch"),
        ({"n": 12}, "n (rows of b) must be a multiple of 8, got 12"),
        ({"k": 8}, "k (columns of a and b) must be a multiple of 16, got 8"),
        ({"num_groups": -1}, "num_groups must be at least 0, got -1"),
        ({"num_groups": 2.0}, "num_groups must be an integer, got 2.0"),
        ({"num_groups": 2**31}, "num_groups must be at most 2147483647"),
        ({"num_groups": 2**20, "m": 2**11}, f"num_groups * m must be at most {MOST_ROWS}, got"),
        ({"num_sms": 0}, "num_sms must be at least 1"),
        ({"device": "GTX"}, "device must be a CUDA device, a name such as"),
    ],
    ids=str,
)
def test_explain_config_refuses(op: Any, changed: dict[str, Any], message: str) -> None:
    sizes = {name: value for name, value in (SIZES | changed).items() if value is not None}
    with pytest.raises(ValueError, match=re.escape(message)):
        pykernels.explain_config(op, **sizes)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.__name__)
def test_sizes_of_any_kind(op: Any) -> None:
    plain = pykernels.explain_config(op, **SIZES)
    for kind in (np.int16, np.int64):
        sizes: Any = {name: kind(size) for name, size in SIZES.items()}
        assert pykernels.explain_config(op, **sizes) == plain
    largest = pykernels.explain_config(
        op, num_groups=2, m=MOST_ROWS // 2, n=2**31 - 8, k=2**31 - 16
    )
    assert all(math.isfinite(figure) and figure >= 0 for figure in largest[0].cost.values())


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.__name__)
@pytest.mark.parametrize("empty", SIZES)
def test_empty_sizes(op: Any, empty: str) -> None:
    """Nothing is listed where nothing is launched; for k = 0 a kernel writes zeros."""
    sizes = {"num_groups": 2, "m": 3, "n": 8, "k": 16} | {empty: 0}
    candidates = pykernels.explain_config(op, **sizes)
    num_groups, m = sizes["num_groups"], sizes["m"]
    masked = op is pykernels.grouped_fp8_gemm_nt_masked
    values = [m] * num_groups if masked else [m * i for i in range(num_groups + 1)]
    form = "masked_m" if masked else "group_offsets"
    rows = m if masked else m * num_groups
    groups = Groups(form, tuple(values), num_groups, rows, "empty", sizes["n"], sizes["k"])
    with pykernels.emulate() as report:
        groups.call(*groups.operands())
    assert [name for name, _ in report.launches] == [c.kernel for c in candidates[:1]]
    assert bool(candidates) == (empty == "k")
    for candidate in candidates:
        assert all(0 <= figure < 1e4 for figure in candidate.cost.values())


@pytest.mark.parametrize("name", ["H20", "H100", "H200"])
def test_few_rows_choose_swapped_kernels(name: str) -> None:
    """As many as a group has, however many groups; many rows choose the others."""
    for num_groups in (1, 8, 256):
        for m in (1, 8, 16):
            best = explain_groups(num_groups, (m, 4096, 7168), gpu(name))[0]
            assert best.config["swap_ab"], (num_groups, m)
            assert best.config["block_m"] <= 2 * max(m, 8)
    if name == "H20":  # whose tensor cores are as busy with either
        return
    for num_groups in (1, 8):
        best = explain_groups(num_groups, (4096, 4096, 7168), gpu(name))[0]
        assert not best.config["swap_ab"]
        assert best.config["block_m"] == 128


@pytest.mark.parametrize("m", [1, 64, 4096])
def test_launches_that_wait_have_no_clusters(m: int) -> None:
    every = explain_groups(8, (m, 4096, 7168), gpu())
    alone = explain_groups(8, (m, 4096, 7168), gpu(), no_clusters=True)
    assert [key(c) for c in alone] == [key(c) for c in every if math.prod(c.schedule) == 1]
    chosen = native().choose_fp8_gemm_nt(
        m, 4096, 7168, 2, gpu(), num_groups=8, configs=GROUPED, no_clusters=True
    )
    assert key(chosen) == key(alone[0])


# ---- what the calls take ----


def launch_of(groups: Groups, **options: Any) -> _C.Launch:
    """Of tensors without memory."""

    def view(place: int, dtype: torch.dtype, *shape: int) -> Any:
        fake = strided_view(torch.empty(shape, dtype=dtype, device="meta"))
        return _C.TensorView(place << 44, fake.sizes, fake.strides, fake.dtype)

    fp8, k_blocks = torch.float8_e4m3fn, -(-groups.k // 128)
    views = [
        view(1, fp8, *groups.rows, groups.k),
        view(2, torch.float32, *groups.rows, k_blocks),
        view(3, fp8, groups.num_groups, groups.n, groups.k),
        view(4, torch.float32, groups.num_groups, -(-groups.n // 128), k_blocks),
        view(5, torch.bfloat16, *groups.rows, groups.n),
        view(6, torch.int32, len(groups.values)),
    ]
    if options.pop("ready", False):
        blocks = -(-groups.m // 128) * (groups.num_groups if groups.is_masked else 1)
        options["ready"] = view(7, torch.int32, blocks)
    device = native().EmulatedDevice()
    made: _C.Launch = native().make_grouped_fp8_gemm_nt_launch(
        device, *views, groups.form, **options
    )
    return made


def capacity(form: str, m: int, num_groups: int = 8) -> Groups:
    """Room for m rows of each group; what belongs to which group the host does not know."""
    values = {"group_offsets": num_groups + 1, "m_indices": m * num_groups, "masked_m": num_groups}
    rows = m if form == "masked_m" else m * num_groups
    return Groups(form, (0,) * values[form], num_groups, rows, "capacity", n=4096, k=7168)


def first(m: int, num_groups: int = 8, **options: Any) -> tuple[str, int]:
    """The kernel and the cluster of the first candidate."""
    best = explain_groups(num_groups, (m, 4096, 7168), gpu(), **options)[0]
    return best.kernel, math.prod(best.schedule)


def taken(launch: _C.Launch) -> tuple[str, int]:
    return launch.kernel, launch.cluster[0]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("m", [1, 20, 64, 300, 4096])
def test_the_launch_is_the_first_candidate(form: str, m: int) -> None:
    """Of as many rows as there is room for, or as expected; twice, since choices are remembered."""
    groups = capacity(form, m)
    for _ in range(2):
        assert taken(launch_of(groups)) == first(m)
        assert taken(launch_of(groups, num_sms=20)) == first(m, num_sms=20)
        assert taken(
            launch_of(groups, ready=True) if form != "m_indices" else launch_of(groups)
        ) == (first(m, no_clusters=form != "m_indices"))
        for expected_m in (1, 16, 64):
            wanted = first(min(expected_m, groups.m))
            assert taken(launch_of(groups, expected_m=expected_m)) == wanted


def test_expected_rows_are_within_what_there_is() -> None:
    ragged, masked = capacity("group_offsets", 4096), capacity("masked_m", 4096)
    for groups in (ragged, masked):
        assert taken(launch_of(groups, expected_m=0)) == first(1)
        assert taken(launch_of(groups, expected_m=2**31 - 1)) == first(groups.m)
    assert first(1) != first(4096)
    uneven = Groups("group_offsets", (0,) * 9, 8, 8 * 16 + 1, "one row more", n=4096, k=7168)
    assert taken(launch_of(uneven)) == first(17)


@pytest.mark.parametrize("groups", EVERY_FORM, ids=str)
def test_calls_take_the_first_candidate(groups: Groups) -> None:
    """By the public functions, in the emulator."""
    a, b = groups.operands()
    share = -(-groups.m // (1 if groups.is_masked else groups.num_groups))
    for expected_m, options in ((None, {}), (1, {}), (20, {"num_sms": 3})):
        sizes = {"num_groups": 4, "m": expected_m or share, "n": 136, "k": 272}
        best = pykernels.explain_config(groups.op, **sizes, **options)[0]
        with pykernels.emulate(checks=()) as report:
            groups.call(a, b, expected_m=expected_m, **options)
        assert [name for name, _ in report.launches] == [best.kernel]


def test_kernels_of_the_other_family_are_refused() -> None:
    groups = capacity("group_offsets", 4)
    with pytest.raises(ValueError, match="kernel fp8_gemm_nt_m64n64c1 is none of family grouped"):
        launch_of(groups, kernel="fp8_gemm_nt_m64n64c1")
    with pytest.raises(ValueError, match="cannot run clusters of 1 x 1 CTAs with k split by 2"):
        launch_of(groups, kernel="grouped_fp8_gemm_nt_swap_m8n64", schedule=(1, 1, 2))
    with pytest.raises(ValueError, match="ready counters need a schedule without clusters"):
        launch_of(groups, kernel="grouped_fp8_gemm_nt_m128n128c2", schedule=(2, 1, 1), ready=True)
    pairs = {name: fields for name, fields in GROUPED.items() if fields["cluster"] == 2}
    with pytest.raises(RuntimeError, match="no kernel of family grouped_fp8_gemm_nt for 1 SMs"):
        native().choose_fp8_gemm_nt(4, 64, 64, 2, gpu(), num_sms=1, num_groups=2, configs=pairs)
