"""The choice of a kernel: explain_config, the choice itself, and the GPUs that are known."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import pykernels
from pykernels.native import native, tensor_view
from pykernels.testing import gemm_operands
from tests.gemm_family import WEIGHTS, choose, config, explain, gpu
from tests.gemm_kernels import KERNELS, schedules

ROWS = (1, 7, 16, 64, 100, 128, 300, 1024, 4096, 8192)
GPUS = ("H20", "H100", "H200")


def key(candidate: Any) -> tuple[str, tuple[int, ...]]:
    return candidate.kernel, tuple(candidate.schedule)


def test_explain_config() -> None:
    candidates = pykernels.explain_config(pykernels.fp8_gemm_nt, m=4096, n=7168, k=2048)
    listed = [(c.kernel, tuple(c.schedule.values())) for c in candidates]
    assert len(listed) == len(set(listed))
    assert set(listed) == {
        (name, schedule) for name, fields in KERNELS.items() for schedule in schedules(fields)
    }
    costs = [candidate.cost["total_us"] for candidate in candidates]
    assert costs == sorted(costs)
    few = pykernels.explain_config(pykernels.fp8_gemm_nt, m=64, n=64, k=64, num_sms=1)
    assert few
    assert all(set(candidate.schedule.values()) == {1} for candidate in few)
    (only,) = pykernels.explain_config(pykernels.quantize_1x128, m=5, k=5)
    assert only.kernel == "quantize_1x128"


def test_explain_config_refuses() -> None:
    op = pykernels.fp8_gemm_nt
    for sizes in ({"m": 1, "n": 8}, {"m": 1, "n": 8, "k": 16, "batch": 2}):
        with pytest.raises(ValueError, match="sizes must be m, n, k, got m, n"):
            pykernels.explain_config(op, **sizes)
    with pytest.raises(ValueError, match="m must be at least 0, got -1"):
        pykernels.explain_config(op, m=-1, n=8, k=16)
    with pytest.raises(ValueError, match=r"op must be fp8_gemm_nt, .* got relu"):
        pykernels.explain_config(torch.relu, m=1)
    with pytest.raises(ValueError, match=r"batch_invariant must be True or False, got 1"):
        pykernels.explain_config(op, m=1, n=8, k=16, batch_invariant=1)  # type: ignore[arg-type]


SIZES: dict[Any, dict[str, Any]] = {
    pykernels.fp8_gemm_nt: {"m": 8, "n": 8, "k": 16},
    pykernels.quantize_1x128: {"m": 8, "k": 16},
    pykernels.quantize_128x128: {"m": 8, "k": 16},
    pykernels.silu_mul_quantize_1x128: {"m": 8, "i": 16},
}
OPS = tuple(SIZES)


def sizes_of(op: Any, **changed: Any) -> dict[str, Any]:
    return SIZES[op] | changed


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.__name__)
@pytest.mark.parametrize("device", ["cpu", "GTX 1080", "cuda:-1", "", ["H200"], 3.5, True, 0])
def test_devices_that_are_none(op: Any, device: Any) -> None:
    got = re.escape(f"got {device!r}")
    names = r"; known GPUs are H100, .*H20, GH200"
    with pytest.raises(
        ValueError, match=rf'a CUDA device, a name such as "H200", or None, {got}{names}'
    ):
        pykernels.explain_config(op, device=device, **sizes_of(op))


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.__name__)
@pytest.mark.parametrize("device", ["cuda", torch.device("cuda")], ids=str)
def test_the_current_gpu_where_there_is_none(
    op: Any, device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def current_device() -> int:
        raise AssertionError("Torch not compiled with CUDA enabled")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_device", current_device)
    with pytest.raises(RuntimeError, match=r'no GPU for device cuda; .* such as "H200", or None'):
        pykernels.explain_config(op, device=device, **sizes_of(op))


@pytest.mark.parametrize("op", OPS[1:], ids=lambda op: op.__name__)
def test_quantise_ops_take_a_device_and_no_schedule(op: Any) -> None:
    """The device is checked although one kernel runs on all of them."""
    sizes = sizes_of(op)
    for device in (None, "H20"):
        (only,) = pykernels.explain_config(op, device=device, **sizes)
        assert only.kernel == op.__name__
    with pytest.raises(ValueError, match=f"batch_invariant .* fp8_gemm_nt, not of {op.__name__}"):
        pykernels.explain_config(op, batch_invariant=True, **sizes)
    with pytest.raises(ValueError, match="batch_invariant must be True or False, got 'no'"):
        pykernels.explain_config(op, batch_invariant="no", **sizes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"num_sms .* fp8_gemm_nt, not of {op.__name__}"):
        pykernels.explain_config(op, num_sms=3, **sizes)
    names = ", ".join(sizes)
    with pytest.raises(ValueError, match=f"sizes must be {names}, got {names}, n"):
        pykernels.explain_config(op, **sizes, n=5)


def test_num_sms_as_the_op_takes_it() -> None:
    op, sizes = pykernels.fp8_gemm_nt, sizes_of(pykernels.fp8_gemm_nt)
    assert pykernels.explain_config(op, **sizes, num_sms=None) == pykernels.explain_config(
        op, **sizes
    )
    with pytest.raises(ValueError, match="num_sms must be at least 1, or None for all, got 0"):
        pykernels.explain_config(op, **sizes, num_sms=0)


@pytest.mark.parametrize("name", ["m", "n", "k", "num_sms"])
def test_sizes_are_integers_of_any_kind(name: str) -> None:
    op = pykernels.fp8_gemm_nt
    plain = pykernels.explain_config(op, **sizes_of(op, **{name: 16}))
    for kind in (np.int16, np.uint8, np.int64):
        assert pykernels.explain_config(op, **sizes_of(op, **{name: kind(16)})) == plain
    for wrong in (True, np.True_, 16.0, "16"):
        with pytest.raises(ValueError, match=f"{name} must be an integer, .*got "):
            pykernels.explain_config(op, **sizes_of(op, **{name: wrong}))


@pytest.mark.parametrize(
    ("op", "empty"),
    [(op, name) for op in OPS for name in sizes_of(op)],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_nothing_is_launched_for_empty_sizes(op: Any, empty: str) -> None:
    sizes = sizes_of(op, **{empty: 0})
    assert pykernels.explain_config(op, **sizes) == []
    with pytest.raises(ValueError, match="device must be"):
        pykernels.explain_config(op, **sizes, device="GTX")
    with pykernels.emulate() as report:
        if op is pykernels.fp8_gemm_nt:
            op(*gemm_operands(sizes["m"], sizes["n"], sizes["k"]))
        else:
            columns = 2 * sizes["i"] if "i" in sizes else sizes["k"]
            op(torch.ones(sizes["m"], columns))
    assert report.launches == []


@pytest.mark.parametrize("sizes", [(0, 8, 16), (8, 0, 16), (8, 8, 0), (0, 0, 0)], ids=str)
def test_empty_sizes_have_finite_costs(sizes: tuple[int, int, int]) -> None:
    for candidate in explain(sizes, gpu()):
        assert all(0 <= figure < 1e4 for figure in candidate.cost.values()), candidate.cost


@pytest.mark.parametrize("name", GPUS)
@pytest.mark.parametrize("batch_invariant", [False, True])
@pytest.mark.parametrize("num_sms", [None, 1, 20])
def test_choice_is_the_least_of_all(name: str, batch_invariant: bool, num_sms: int | None) -> None:
    """Against each kernel ranked on its own: nothing is left out by a bound."""
    on, options = gpu(name), {"batch_invariant": batch_invariant, "num_sms": num_sms}
    for m, (n, k) in itertools.product((1, 64, 300, 4096), WEIGHTS):
        every = [
            candidate
            for kernel, fields in KERNELS.items()
            for candidate in explain((m, n, k), on, configs={kernel: fields}, **options)
        ]
        least = min(candidate.cost["total_us"] for candidate in every)
        chosen = choose((m, n, k), on, **options)
        assert chosen.cost["total_us"] == least
        assert key(chosen) == key(explain((m, n, k), on, **options)[0])


def test_every_schedule_is_ranked() -> None:
    listed = [key(candidate) for candidate in explain((64, 4096, 7168), gpu())]
    assert len(listed) == len(set(listed))
    assert set(listed) == {
        (name, schedule) for name, fields in KERNELS.items() for schedule in schedules(fields)
    }
    invariant = explain((64, 4096, 7168), gpu(), batch_invariant=True)
    assert {key(candidate) for candidate in invariant} == {
        (name, schedule) for name, schedule in listed if schedule[2] == 1
    }


def test_op_takes_the_first_candidate() -> None:
    a, b = gemm_operands(40, 136, 272)
    for options in ({}, {"num_sms": 3}, {"batch_invariant": True}):
        best = pykernels.explain_config(pykernels.fp8_gemm_nt, m=40, n=136, k=272, **options)[0]
        for _ in range(2):  # the second choice is a remembered one
            with pykernels.emulate(checks=()) as report:
                pykernels.fp8_gemm_nt(a, b, **options)
            assert [name for name, _ in report.launches] == [best.kernel]


def test_gpus_choose_apart_by_their_constants() -> None:
    shapes = [(m, n, k) for m in ROWS for n, k in WEIGHTS]
    chosen = {name: [key(choose(shape, gpu(name))) for shape in shapes] for name in GPUS}
    for first, second in itertools.combinations(GPUS, 2):
        differ = sum(a != b for a, b in zip(chosen[first], chosen[second], strict=True))
        assert 0 < differ < len(shapes), (first, second)
    as_h200 = gpu("H100", **gpu("H200").constants)
    assert [key(choose(shape, as_h200)) for shape in shapes] == chosen["H200"]


def test_explain_config_of_a_named_gpu() -> None:
    sizes = {"m": 4096, "n": 7168, "k": 2048}
    times = {
        name: pykernels.explain_config(pykernels.fp8_gemm_nt, device=name, **sizes)[0].cost
        for name in (*GPUS, "NVIDIA H100 PCIe")
    }
    # 296 TFLOPS against 1979, and no faster memory in the way.
    assert times["H20"]["tensor_us"] > 5 * times["H200"]["tensor_us"]
    assert times["H100"]["hbm_us"] > 1.4 * times["H200"]["hbm_us"]
    assert times["NVIDIA H100 PCIe"]["total_us"] > times["H100"]["total_us"]


@pytest.mark.parametrize(
    ("given", "known"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("h100-nvl", "H100 NVL"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA H800", "H800"),
        ("NVIDIA H20", "H20"),
        ("emulator", "H200"),
        ("NVIDIA A100-SXM4-80GB", None),
        ("", None),
    ],
)
def test_gpus_by_name(given: str, known: str | None) -> None:
    found = native().find_gpu_model(given)
    assert (found and found.name) == known


def test_constants_of_gpus() -> None:
    for model in native().gpu_models():
        constants = model.constants
        assert all(value > 0 for value in constants.values()), model.name
        assert model.active_clusters[1] == model.num_sms
        for size in range(2, 9):  # clusters stay inside a GPC
            assert 0 < model.active_clusters[size] <= model.num_sms // size
        part = model.with_num_sms(2)
        assert part.num_sms == 2
        assert part.active_clusters[:4] == [0, 2, 1, 0]
    peak = {
        m.name: 2e-3 * m.num_sms * m.constants["macs_per_clock"] * m.constants["clock_ghz"]
        for m in native().gpu_models()
    }
    assert peak["H200"] == pytest.approx(1979)
    assert peak["H20"] == pytest.approx(296)
    # Twice 15 clusters of 4 fit where 15 of 8 do; all 132 SMs have a place in pairs.
    assert gpu("H100").active_clusters[8] == 15
    assert gpu("H100").active_clusters[2] == 66
    with pytest.raises(ValueError, match="a GPU has no constant named hbm"):
        gpu(hbm=1.0)
    with pytest.raises(ValueError, match="hbm_gbps must not be negative, got -1"):
        gpu(hbm_gbps=-1.0)


@pytest.fixture
def recording() -> Iterator[Any]:
    drivers: list[Any] = []

    def install(name: str, num_sms: int) -> Any:
        target = native().EmulatedDevice(checks=(), num_sms=num_sms)
        drivers.append(native().RecordingDriver(target, name=name, num_sms=num_sms))
        return native().CudaDevice(0, 0)

    yield install
    for driver in drivers:
        driver.close()


def launch(device: Any) -> None:
    a, b = gemm_operands(8, 8, 16)
    out = torch.empty(8, 8, dtype=torch.bfloat16)
    native().fp8_gemm_nt(device, *(tensor_view(tensor) for tensor in (*a, *b, out)))


def test_unknown_gpu_gets_the_nearest_constants_and_one_warning(recording: Any) -> None:
    device = recording("NVIDIA Something New", 80)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        launch(device)
        launch(device)
        model = native().device_gpu_model(device)
    assert len(caught) == 1
    assert caught[0].category is RuntimeWarning
    message = str(caught[0].message)
    assert re.search("NVIDIA Something New with 80 SMs; .*those of H20,", message)
    assert model.name == "H20"
    assert model.num_sms == model.active_clusters[1] == 80


def test_warning_as_an_error_leaves_the_launch_out(recording: Any) -> None:
    device = recording("NVIDIA Something Newer", 130)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match="Something Newer"):
            launch(device)
        launch(device)


def test_known_gpu_gets_its_constants_and_the_driver_counts_clusters(recording: Any) -> None:
    device = recording("NVIDIA H20", 78)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        launch(device)
        model = native().device_gpu_model(device)
    assert model.name == "H20"
    assert model.constants == gpu("H20").constants
    assert model.active_clusters[2] == 39  # the recording driver knows no GPCs


def test_no_kernel_fits() -> None:
    with pytest.raises(RuntimeError, match="no kernel of family fp8_gemm_nt for 1 SMs"):
        choose((64, 64, 64), gpu(), num_sms=1, configs=config(128, 128, cluster=2))


def test_references_come_with_the_package() -> None:
    """Docstrings name them; in a fresh process, since these tests import everything."""
    code = "import pykernels; print(pykernels.reference.fp8_gemm_nt.__module__)"
    printed = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert printed.stdout.strip() == "pykernels.reference.gemm"


@pytest.mark.parametrize(
    ("seqlen_q", "num_heads", "fp8", "kernel"),
    [
        (1, 8, 0, "mla_decode_bf16_n8"),
        (1, 16, 1, "mla_decode_fp8_n16"),
        (2, 16, 0, "mla_decode_bf16_n32"),
        (1, 33, 0, "mla_decode_bf16_m64c1"),
        (1, 128, 1, "mla_decode_fp8_m64c2"),
        (3, 64, 0, "mla_decode_bf16_m64c1"),
    ],
)
def test_the_kernel_of_a_decode(seqlen_q: int, num_heads: int, fp8: int, kernel: str) -> None:
    """By the rows of a request: few are transposed, an even number of tiles of 64 are in pairs."""
    sizes = {"seqlen_q": seqlen_q, "num_heads": num_heads, "fp8": fp8}
    (candidate,) = pykernels.explain_config(pykernels.mla_decode, **sizes)
    assert candidate.kernel == kernel
    assert candidate.config["fp8"] == fp8
    with pytest.raises(ValueError, match="seqlen_q, num_heads, fp8"):
        pykernels.explain_config(pykernels.mla_decode, num_heads=8)
    assert pykernels.explain_config(pykernels.mla_decode, seqlen_q=0, num_heads=8, fp8=0) == []
