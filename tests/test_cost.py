"""The GEMM's cost model: bytes against the emulator's counters, times against arithmetic."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pykernels.emulator import EmulationReport
from pykernels.native import kernel_metadata, native, strided_view, tensor_view
from pykernels.testing import gemm_operands, grouped_gemm_operands
from tests.gemm_family import (
    BFLOAT16_BYTES,
    WEIGHTS,
    config,
    cost,
    explain,
    explain_groups,
    gpu,
)

REGISTERED = {
    kernel["name"]: kernel["config"]
    for kernel in kernel_metadata()
    if kernel["family"] == "fp8_gemm_nt"
}
H200 = gpu("H200").constants
CLOCK = 1e3 * H200["clock_ghz"]  # a microsecond
MODEST = (64, 4096, 7168)  # a memory-bound shape
LARGE = (4096, 4096, 7168)  # a compute-bound one
WIDE = config(128, 128)
PAIR = config(128, 128, cluster=2)
LONE = config(64, 128)
SWAP = config(16, 128, swap_ab=True)


def counted(shape: tuple[int, int, int], candidate: Any) -> Any:
    """What the emulator counts for a candidate."""
    m, n, k = shape
    (a, sfa), (b, sfb) = gemm_operands(m, n, k)
    device = native().EmulatedDevice(checks=())
    out = torch.empty(m, n, dtype=torch.bfloat16)
    views = [tensor_view(tensor) for tensor in (a, sfa, b, sfb, out)]
    native().fp8_gemm_nt(device, *views, None, candidate.kernel, tuple(candidate.schedule))
    return EmulationReport(device).counters


def two_candidates(ranked: list[Any], index: int) -> list[Any]:
    """The choice, and one of the others that share operands and k in another way."""
    kinds: dict[tuple[bool, ...], Any] = {}
    for candidate in ranked:
        kind = (bool(candidate.config["swap_ab"]), *(extent > 1 for extent in candidate.schedule))
        kinds.setdefault(kind, candidate)
    chosen, *others = kinds.values()
    return [chosen, others[index % len(others)]]


@pytest.mark.parametrize(
    ("index", "m", "weight"),
    list(zip(range(6), (1, 64, 16, 4, 33, 64), WEIGHTS, strict=True)),
    ids=str,
)
def test_bytes_are_those_that_the_emulator_counts(
    index: int, m: int, weight: tuple[int, int]
) -> None:
    """HBM: distinct sectors read and written. L2: all reads, a multicast once, and writes."""
    shape = (m, *weight)
    for candidate in two_candidates(explain(shape, gpu(), configs=REGISTERED), index):
        assert_counts(candidate.cost, counted(shape, candidate))


def assert_counts(cost: dict[str, float], counters: Any) -> None:
    footprint = counters.global_footprint_bytes_read + counters.global_footprint_bytes_written
    moved = counters.global_bytes_read + counters.global_bytes_written
    assert cost["hbm_bytes"] == pytest.approx(footprint, rel=0.02)
    assert cost["l2_bytes"] == pytest.approx(moved, rel=0.02)


def counted_groups(num_groups: int, shape: tuple[int, int, int], candidate: Any, form: str) -> Any:
    """What the emulator counts for so many groups of one size."""
    m, n, k = shape
    (a, sfa), (b, sfb) = grouped_gemm_operands(num_groups, num_groups * m, n, k)
    out = torch.empty(num_groups * m, n, dtype=torch.bfloat16)
    values = torch.arange(num_groups + 1, dtype=torch.int32) * m
    if form == "masked_m":
        values = torch.full((num_groups,), m, dtype=torch.int32)
        a, sfa, out = (tensor.view(num_groups, m, -1) for tensor in (a, sfa, out))
    device = native().EmulatedDevice(checks=())
    tensors = a, sfa, b, sfb, out, values
    views = [strided_view(tensor) for tensor in tensors]
    options = {"kernel": candidate.kernel, "schedule": tuple(candidate.schedule)}
    native().grouped_fp8_gemm_nt(device, *views, form, **options)
    return EmulationReport(device).counters


@pytest.mark.parametrize(
    ("index", "num_groups", "m", "weight", "form"),
    [
        (0, 4, 1, (2112, 1536), "group_offsets"),
        (1, 8, 4, (2112, 2048), "masked_m"),
        (2, 3, 100, (2112, 2048), "group_offsets"),
        (3, 32, 8, (512, 512), "masked_m"),
        (3, 2, 300, (1024, 1024), "group_offsets"),
    ],
    ids=str,
)
def test_bytes_of_groups_are_those_that_the_emulator_counts(
    index: int, num_groups: int, m: int, weight: tuple[int, int], form: str
) -> None:
    shape = (m, *weight)
    for candidate in two_candidates(explain_groups(num_groups, shape, gpu()), index):
        assert_counts(candidate.cost, counted_groups(num_groups, shape, candidate, form))


@pytest.mark.parametrize("name", ["H20", "H200"])
@pytest.mark.parametrize("m", [1, 64, 1000])
def test_more_groups_cost_more(name: str, m: int) -> None:
    """Each candidate and so the best of them; what moves grows with the groups."""
    ranked = [
        {(c.kernel, tuple(c.schedule)): c.cost for c in explain_groups(groups, shape, gpu(name))}
        for groups, shape in ((1, (m, 512, 1024)), (2, (m, 512, 1024)), (64, (m, 512, 1024)))
    ]
    for key, one in ranked[0].items():
        two, many = ranked[1][key], ranked[2][key]
        assert one["total_us"] < two["total_us"] < many["total_us"]
        assert many["num_tiles"] == pytest.approx(32 * two["num_tiles"], rel=0.03)
        for figure in ("hbm_bytes", "l2_bytes"):
            assert (two[figure], many[figure]) == pytest.approx((2 * one[figure], 64 * one[figure]))


def test_the_last_tile_of_several_groups_is_half_full() -> None:
    """The choice counts on it: what just fits the expected rows does not fit the others."""
    for num_groups, tiles in ((1, 2), (2, 2 * 2.5)):
        for candidate in explain_groups(num_groups, (64, 128, 1024), gpu()):
            if candidate.config["block_m"] == 32 and candidate.schedule[1] == 1:
                per_row = 128 // candidate.config["block_n"]
                assert candidate.cost["num_tiles"] == tiles * per_row


@pytest.mark.parametrize("num_groups", [1, 8, 256])
def test_more_rows_of_groups_cost_more(num_groups: int) -> None:
    costs = [
        explain_groups(num_groups, (m, 4096, 2048), gpu("H20"))[0].cost["total_us"]
        for m in (1, 8, 64, 128, 256, 1024, 8192)
    ]
    assert costs == sorted(costs)
    assert len(set(costs)) == len(costs)


def test_a_group_reads_again_what_l2_has_lost() -> None:
    """Operands of a group beyond L2; those of all groups together do not count."""
    shape = (8192, 7168, 16384)
    kernel = "grouped_fp8_gemm_nt_m128n128c1"

    def hbm_bytes(num_groups: int, shape: tuple[int, int, int], on: Any) -> float:
        ranked = explain_groups(num_groups, shape, on)
        figures: dict[str, float] = next(c.cost for c in ranked if c.kernel == kernel)
        return figures["hbm_bytes"]

    once = hbm_bytes(4, shape, gpu(l2_mbytes=1e4))
    assert hbm_bytes(4, shape, gpu(l2_mbytes=25)) > 1.2 * once
    assert hbm_bytes(4, shape, gpu()) == pytest.approx(4 * hbm_bytes(1, shape, gpu()))
    small = (300, 2048, 1024)
    assert hbm_bytes(64, small, gpu(l2_mbytes=25)) == pytest.approx(
        hbm_bytes(64, small, gpu(l2_mbytes=1e4))
    )


def test_parts_of_a_plain_candidate() -> None:
    """128x128, four waves of 1024 tiles and a rest on 132 SMs, by hand."""
    found = cost(LARGE, WIDE)
    assert found["num_tiles"] == 32 * 32
    assert found["num_waves"] == 8
    k_tiles = 8 * 56
    assert found["tensor_us"] == pytest.approx(
        k_tiles * 128 * 128 * 128 / (H200["macs_per_clock"] * 0.9) / CLOCK
    )
    assert found["issue_us"] == pytest.approx(k_tiles * 2 * (64 + 33) / CLOCK)
    assert found["load_us"] == pytest.approx(k_tiles * 256 * 128 / 64 / CLOCK)
    assert found["epilogue_us"] == pytest.approx(8 * (300 + 2 * 2 * 64) / CLOCK)
    assert found["launch_us"] == H200["launch_us"]
    assert found["fill_us"] == pytest.approx(H200["hbm_latency_us"] + H200["l2_latency_us"])
    assert found["reduce_us"] == 0
    assert found["hbm_us"] == pytest.approx(1e-3 * found["hbm_bytes"] / (4800 * 0.92))
    assert found["l2_us"] == pytest.approx(found["l2_bytes"] / 4600 / CLOCK)


def test_parts_of_a_split_candidate() -> None:
    """16 rows on 16x128 tiles, each shared by two neighbours along n, its k by three CTAs."""
    found = cost((16, 4096, 7168), SWAP, (1, 2, 3))
    assert found["num_tiles"] == 32 * 3
    assert found["num_waves"] == 1
    k_tiles = 19  # of 56 by three
    shared = 2 * 4 * (64 + 16) * 32 / 128  # two warpgroups read both operands for each WGMMA
    assert shared > 16 * 128 * 128 / (H200["macs_per_clock"] * 0.9)
    assert found["tensor_us"] == pytest.approx(k_tiles * shared / CLOCK)
    assert found["issue_us"] == pytest.approx(k_tiles * 2 * (8 + 31.5 + 2) / CLOCK)
    reduced = 4 * 16 * 128 * 2 / 3 / H200["dsmem_bytes_per_clock"] / CLOCK
    assert found["reduce_us"] == pytest.approx(H200["split_wait_us"] + reduced)
    assert found["launch_us"] == H200["launch_us"] + H200["cluster_start_us"]


def test_bytes_in_flight_limit_an_sm() -> None:
    """A stage each latency over the stages of the ring, between L2's latency and HBM's."""
    found = cost((1, 2112, 7168), LONE)
    stages = 8
    assert found["latency_us"] == pytest.approx(
        56
        / stages
        * (0.4 + found["hbm_bytes"] / found["l2_bytes"] * (H200["hbm_latency_us"] - 0.4))
    )


def test_latency_bound() -> None:
    found = cost((1, 2112, 7168), LONE, on=gpu(hbm_latency_us=20.0, l2_latency_us=20.0))
    assert found["latency_us"] == pytest.approx(56 / 8 * 20)
    assert work(found) == pytest.approx(found["latency_us"] + found["epilogue_us"], rel=1e-3)


def work(found: dict[str, float]) -> float:
    return found["total_us"] - found["launch_us"] - found["fill_us"]


def test_total_of_one_wave() -> None:
    """The fourth root of the sum of fourth powers: HBM, L2 and the busiest SM, then the start."""
    found = cost((1, 2112, 7168), LONE)
    busy = 56 * 128 * (64 + 128) / 64 / CLOCK + found["epilogue_us"]
    assert work(found) == pytest.approx(
        (found["hbm_us"] ** 4 + found["l2_us"] ** 4 + busy**4) ** 0.25
    )
    # If all SMs had such tiles: as many times the bytes in the same time, or a share of its work.
    share = found["num_tiles"] / 132
    spread = (found["hbm_us"] ** 4 + found["l2_us"] ** 4 + (share * busy) ** 4) ** 0.25
    assert found["waves_us"] == pytest.approx(work(found) - spread)


def test_waves() -> None:
    """One tile more than SMs costs a wave; it is the waves that cost, and they are told."""
    full = cost((128, 132 * 128, 2048), WIDE)
    more = cost((128, 133 * 128, 2048), WIDE)
    assert (full["num_waves"], more["num_waves"]) == (1, 2)
    assert full["waves_us"] == pytest.approx(0, abs=1e-9)
    assert more["waves_us"] > 1
    assert more["total_us"] > full["total_us"] + more["waves_us"] * 0.9


def test_lone_warpgroup_pays_for_its_gaps() -> None:
    """Its tensor cores rest while it promotes the last k tile of four: (64 + 100) / 4 clocks."""
    slow = gpu("H200", macs_per_clock=2000, hbm_gbps=1e9, l2_bytes_per_clock=1e9)
    found = cost(LARGE, LONE, on=slow)
    k_tiles = found["num_waves"] * 56
    gaps = k_tiles * (64 + 100) / 4 / CLOCK
    assert work(found) == pytest.approx(found["tensor_us"] + gaps + found["epilogue_us"], rel=1e-3)


@pytest.mark.parametrize(
    ("block_m", "block_n", "instructions"),
    [
        (64, 128, 27 + 64),
        (128, 128, 33 + 64),  # five stages, no multiple of a group
        (128, 96, 33 + 48 + 3 + 2),  # two blocks of scale factors, one unit between the outer ones
        (128, 112, 33 + 56 + 3 + 10),
        (128, 160, 33 + 80 + 3 + 6),
        (128, 192, 27 + 96 + 3),  # two loops
    ],
)
def test_issue_slots(block_m: int, block_n: int, instructions: int) -> None:
    found = cost(LARGE, config(block_m, block_n))
    clocks = found["issue_us"] * CLOCK / found["num_waves"] / 56
    assert clocks == pytest.approx(block_m / 64 * instructions)


def test_tensor_cores_wait_for_shared_memory() -> None:
    """However fast they are, both warpgroups read 64 rows and all columns for each WGMMA."""
    fast = gpu(macs_per_clock=1e9, sm_bytes_per_clock=1e9, hbm_gbps=1e9, l2_bytes_per_clock=1e9)
    found = cost(LARGE, config(128, 192), on=fast)
    clocks = found["num_waves"] * 56 * 2 * 4 * (64 + 192) * 32 / 128
    assert found["tensor_us"] == pytest.approx(clocks / CLOCK)
    assert work(found) == pytest.approx(found["tensor_us"] + found["epilogue_us"], rel=1e-3)


def test_operands_are_read_again_once_l2_is_too_small() -> None:
    shape = (8192, 7168, 16384)
    once = 8192 * 16384 + 7168 * 16384 + 4 * 128 * (8192 + 56) + 2 * 8192 * 7168
    assert cost(shape, WIDE, on=gpu(l2_mbytes=1e4))["hbm_bytes"] == once
    sizes = [cost(shape, WIDE, on=gpu(l2_mbytes=size))["hbm_bytes"] for size in (100, 50, 25, 0)]
    assert once < sizes[0] < sizes[1] < sizes[2] < sizes[3]
    # With no L2 at all each group of rows reads all of B, each step along n all of its rows of A.
    group, columns = 11, 132 / 11 + 1e-9
    a, b = 8192 * 16384, 7168 * 16384
    expected = once + (7168 / 128 / columns - 1) * a + (-(-64 // group) - 1) * b
    assert sizes[3] == pytest.approx(expected, rel=1e-6)
    # A alone is read again where B's rows stream past one group of rows.
    flat = (128, 128 * 1320, 4096)
    again = cost(flat, WIDE, on=gpu(l2_mbytes=0))["hbm_bytes"]
    assert again - cost(flat, WIDE, on=gpu(l2_mbytes=1e4))["hbm_bytes"] == pytest.approx(
        9 * 128 * 4096
    )


# A constant, a candidate that it bounds, and whether more of it makes the candidate faster.
DIRECTIONS = [
    ("hbm_gbps", MODEST, LONE, (1, 1, 1), True),
    ("hbm_share", MODEST, LONE, (1, 1, 1), True),
    ("l2_bytes_per_clock", LARGE, WIDE, (1, 1, 1), True),
    ("sm_bytes_per_clock", LARGE, config(64, 64), (1, 1, 1), True),
    ("macs_per_clock", LARGE, config(128, 192), (1, 1, 1), True),
    ("tensor_share", LARGE, config(128, 192), (1, 1, 1), True),
    ("clock_ghz", LARGE, WIDE, (1, 1, 1), True),
    ("l2_mbytes", (8192, 7168, 16384), WIDE, (1, 1, 1), True),
    ("l2_keep_share", (8192, 7168, 16384), WIDE, (1, 1, 1), True),
    ("issue_per_clock", LARGE, config(128, 64), (1, 1, 1), True),
    ("dsmem_bytes_per_clock", MODEST, SWAP, (1, 2, 4), True),
    ("hbm_latency_us", MODEST, LONE, (1, 1, 1), False),
    ("l2_latency_us", MODEST, LONE, (1, 1, 1), False),
    ("split_wait_us", MODEST, SWAP, (1, 2, 4), False),
    ("cluster_start_us", MODEST, SWAP, (1, 2, 1), False),
    ("epilogue_clocks", MODEST, WIDE, (1, 1, 1), False),
    ("launch_us", MODEST, WIDE, (1, 1, 1), False),
]


# No main loop of the family is bound by issue; with schedulers a fifth as fast this one is.
BASES = {"issue_per_clock": 0.2}


@pytest.mark.parametrize(("name", "shape", "kernel", "schedule", "faster"), DIRECTIONS)
def test_direction_of_each_constant(
    name: str, shape: Any, kernel: Any, schedule: Any, faster: bool
) -> None:
    times = [
        cost(shape, kernel, schedule, gpu(**{name: factor * BASES.get(name, H200[name])}))[
            "total_us"
        ]
        for factor in (0.8, 1, 1.25)
    ]
    assert times == sorted(times, reverse=faster)
    assert len(set(times)) == 3


def test_every_constant_has_a_direction() -> None:
    assert {name for name, *_ in DIRECTIONS} == set(H200)


def test_constants_that_a_candidate_does_not_use() -> None:
    """No split, no cluster: neither reduction nor cluster costs anything."""
    others = gpu(split_wait_us=50.0, cluster_start_us=50.0, dsmem_bytes_per_clock=0.1)
    assert cost(MODEST, WIDE, on=others) == cost(MODEST, WIDE)


def test_more_work_is_not_faster() -> None:
    for kernel, schedule in ((WIDE, (1, 1, 1)), (PAIR, (2, 1, 1)), (SWAP, (1, 1, 2))):
        for index in range(3):
            times = []
            for factor in (1, 2, 4, 8):
                sizes = [256, 2048, 2048]
                sizes[index] *= factor
                times.append(cost((sizes[0], sizes[1], sizes[2]), kernel, schedule)["total_us"])
            assert times == sorted(times)
            assert len(set(times)) == 4


def test_multicast_saves_l2() -> None:
    plain, pair = cost(LARGE, WIDE), cost(LARGE, PAIR, (2, 1, 1))
    b_bytes = 4096 * 7168
    assert plain["l2_bytes"] - pair["l2_bytes"] == pytest.approx(16 * b_bytes)
    assert pair["l2_us"] < plain["l2_us"]
    across = cost((64, *LARGE[1:]), PAIR, (1, 2, 1))
    alone = cost((64, *LARGE[1:]), WIDE)
    assert alone["l2_bytes"] - across["l2_bytes"] == pytest.approx(16 * 64 * 7168)


def test_split_k_pays_where_tiles_are_few() -> None:
    """33 tiles of 64 rows of B leave 99 SMs idle."""
    few = (1, 2112, 7168)
    assert explain(few, gpu())[0].schedule[2] > 1
    dear = gpu(split_wait_us=100.0)
    assert explain(few, dear)[0].schedule[2] == 1
    many = explain((1, 24576, 1536), gpu())[0]
    assert many.schedule[2] == 1


def test_output_type() -> None:
    by_type = [
        native().explain_fp8_gemm_nt(*LARGE, size, gpu(), configs=WIDE)[0].cost
        for size in (BFLOAT16_BYTES, 4)
    ]
    extra = 2 * LARGE[0] * LARGE[1]
    for name in ("hbm_bytes", "l2_bytes"):
        assert by_type[1][name] - by_type[0][name] == pytest.approx(extra)
    assert by_type[1]["total_us"] > by_type[0]["total_us"]
