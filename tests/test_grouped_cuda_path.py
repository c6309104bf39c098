"""The grouped GEMMs on the CUDA path without a GPU: what the driver gets, graphs, errors."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import pykernels
from pykernels import _C
from pykernels.native import native, strided_view, tensor_parts
from pykernels.testing import TENSOR_CORE_FLOOR, Pair
from tests.cases import assert_same_bits, ceil_div
from tests.grouped_cases import EVERY_FORM, FORMS, UNTOUCHED, Groups
from tests.recording import Cuda

DTYPES = [torch.bfloat16, torch.float32]
BY_FORM = dict(zip(FORMS, EVERY_FORM, strict=True))
RAGGED, INDICES, MASKED = EVERY_FORM
# A launch as wrong offsets leave it: group 1 ends before it starts.
WRONG = Groups("group_offsets", (3, 10, 9, 63, 64), 4, 70, "wrong")


def emulated(groups: Groups, operands: tuple[Pair, Pair], **options: Any) -> Tensor:
    """The same call in the emulator."""
    with pytest.MonkeyPatch.context() as patch, pykernels.emulate(checks=()):
        patch.setattr("pykernels.device.cuda_stream", lambda tensor: None)
        return groups.call(*operands, out=groups.output(), **options)


def whole(message: str, groups: Groups, index: int = 0) -> str:
    """The message of an error on a GPU, as a pattern."""
    what = "this row was" if groups.form == "m_indices" else "the rows of this group were"
    text = f"{message}; {what} left untouched (CUDA device {index})"
    return f"^{re.escape(text)}$"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("groups", EVERY_FORM, ids=str)
def test_results(cuda: Cuda, groups: Groups, dtype: torch.dtype) -> None:
    """The argument block that the driver gets runs in the emulator."""
    operands = groups.operands()
    out = groups.output(dtype)
    assert groups.call(*operands, out=out) is out
    groups.assert_right(out, *operands, floor=TENSOR_CORE_FLOOR)
    allocated = groups.call(*operands, out_dtype=dtype)
    belongs = groups.group_of_row >= 0
    assert_same_bits(allocated[belongs], out[belongs])
    assert len(cuda.driver.launches) == 2
    assert [report["findings"] for _, report in cuda.emulator.reports] == [[], []]


@pytest.mark.parametrize("groups", EVERY_FORM, ids=str)
def test_launch_attributes(cuda: Cuda, groups: Groups) -> None:
    """What cuLaunchKernelEx gets is the launch that the host path describes, of every kernel."""
    (a, sfa), (b, sfb) = groups.operands()
    tensors = a, sfa, b, sfb, groups.output(torch.float32), groups.tensor
    views = [strided_view(tensor) for tensor in tensors]
    kernels = [info for info in native().registered_kernels() if "grouped" in info.family]
    assert len(kernels) == 14
    for info in kernels:
        device = _C.CudaDevice(0, 0)
        described = native().make_grouped_fp8_gemm_nt_launch(
            device, *views, groups.form, num_sms=5, kernel=info.name
        )
        device.run(described)
        launch = cuda.last.launch
        assert launch.kernel == info.name
        assert (launch.grid, launch.block) == (described.grid, (info.threads, 1, 1))
        cluster = launch.cluster[0]
        assert launch.cluster == (info.config["cluster"], 1, 1)
        assert launch.grid[0] % cluster == 0
        assert launch.grid[0] <= 5
        assert launch.programmatic_dependent
        assert launch.dynamic_shared_bytes == info.dynamic_shared_bytes
        assert launch.arguments == described.arguments
        assert len(launch.arguments) == info.param_bytes


@pytest.mark.parametrize("form", ["group_offsets", "masked_m"])
def test_a_launch_that_waits_for_rows_is_no_dependent(cuda: Cuda, form: str) -> None:
    """It runs beside the one that fills them, on another stream, and in no clusters."""
    groups = BY_FORM[form]
    operands = groups.operands()
    counters = torch.full((4, 1) if groups.is_masked else (1,), 128, dtype=torch.int32)
    zeros = torch.zeros_like(counters)
    for expected_m in (1, 64, groups.m):
        for options, dependent in (
            ({"done": zeros}, True),
            ({"ready": counters}, False),
            ({"ready": counters, "done": zeros}, False),
        ):
            out = groups.output()
            groups.call(*operands, out=out, expected_m=expected_m, **options)
            assert cuda.last.launch.programmatic_dependent == dependent
            if not dependent:
                assert cuda.last.launch.cluster == (1, 1, 1)
            groups.assert_right(out, *operands, floor=TENSOR_CORE_FLOOR)


def most_tiles(groups: Groups, config: dict[str, int]) -> int:
    """Tiles that the groups can have: one of each that is not full."""
    rows, tile = groups.m, config["block_m"]
    along_n = ceil_div(groups.n, config["block_n"])
    if groups.is_masked:
        return groups.num_groups * ceil_div(rows, tile) * along_n
    pieces = rows if groups.form == "m_indices" else min(rows, groups.num_groups)
    return (rows + pieces * (tile - 1)) // tile * along_n


@pytest.mark.parametrize("form", FORMS)
def test_grids(cuda: Cuda, form: str) -> None:
    """As many CTAs as there can be tiles, no more than num_sms or the GPU's SMs."""
    values = {"group_offsets": (0, 1, 3), "m_indices": (0, 1, 1), "masked_m": (1, 2)}[form]
    infos = {info.name: info for info in native().registered_kernels()}
    for n, num_sms in ((8, None), (136, None), (4096, 7), (136, 1), (16384, None), (16384, 10**6)):
        groups = Groups(form, values, 2, 3, "few rows", n=n, k=16)
        out = groups.output()
        groups.call(*groups.operands(), out=out, num_sms=num_sms)
        launch = cuda.last.launch
        tiles = most_tiles(groups, infos[launch.kernel].config)
        bound = min(num_sms or 132, 132, tiles)
        cluster = launch.cluster[0]
        assert launch.grid[0] <= bound + cluster - 1
        assert launch.grid[0] >= bound - cluster + 1 or cluster > 1
        assert num_sms is None or launch.grid[0] <= num_sms
        groups.assert_right(out, *groups.operands(), floor=TENSOR_CORE_FLOOR)


REPLAYS = {
    "group_offsets": [(0, 70, 70, 70, 70), (0, 0, 0, 0, 0), (0, 1, 2, 3, 70), (60, 61, 61, 68, 69)],
    "m_indices": [(3,) * 70, (-1,) * 70, (*[0, 1, 2, 3, -1] * 14,)],
    "masked_m": [(20, 20, 20, 20), (0, 0, 0, 0), (0, 1, 0, 20)],
}


@pytest.mark.parametrize("form", FORMS)
def test_graphs_read_the_groups_anew(cuda: Cuda, form: str) -> None:
    """Captured once, replayed with other groups: the host reads no value."""
    groups = BY_FORM[form]
    operands = groups.operands()
    values, out = groups.tensor, groups.output()
    stream = cuda.driver.create_stream(0)
    cuda.driver.begin_capture(stream)
    with cuda.on(0, stream):
        values.fill_(-77)  # whoever reads it now, finds it wrong
        groups.call(*operands, out=out, **{form: values})
    cuda.driver.end_capture()
    assert cuda.last.captured
    assert bool((out == UNTOUCHED).all())
    for changed in [groups.values, *REPLAYS[form], groups.values]:
        replayed = Groups(form, changed, groups.num_groups, groups.m, "replayed")
        values.copy_(replayed.tensor)
        out.fill_(UNTOUCHED)
        cuda.driver.replay()
        replayed.assert_right(out, *operands, floor=TENSOR_CORE_FLOOR)
        assert_same_bits(out, emulated(replayed, operands))
    pykernels.check_errors()


def test_errors_of_a_replayed_graph(cuda: Cuda) -> None:
    operands = RAGGED.operands()
    values, out = RAGGED.tensor, RAGGED.output()
    stream = cuda.driver.create_stream(0)
    cuda.driver.begin_capture(stream)
    with cuda.on(0, stream):
        RAGGED.call(*operands, out=out, group_offsets=values)
    cuda.driver.end_capture()
    values.copy_(WRONG.tensor)
    cuda.driver.replay()
    with pytest.raises(ValueError, match=whole(ERRORS[0][1], WRONG)):
        pykernels.check_errors()
    values.copy_(RAGGED.tensor)
    cuda.driver.replay()
    pykernels.check_errors()


# Wrong values, and what check_errors says of them.
ERRORS = [
    (WRONG, "group_offsets of group 1 end at 9, must be at least 10: offsets may not decrease"),
    (
        Groups("group_offsets", (3, 10, 10, 63, 71), 4, 70, "too long"),
        "group_offsets of group 3 end at 71, must be at most 70: offsets may not pass the last row",
    ),
    (
        Groups("group_offsets", (-5, 10, 10, 63, 64), 4, 70, "negative"),
        "group_offsets of group 0 must be at least 0, got -5",
    ),
    (
        Groups("m_indices", (*[0] * 69, 4), 4, 70, "too high"),
        "m_indices of row 69 must be from -1 to 3, got 4",
    ),
    (
        Groups("m_indices", (-2, *[0] * 69), 4, 70, "below -1"),
        "m_indices of row 0 must be from -1 to 3, got -2",
    ),
    (
        Groups("masked_m", (20, 0, 21, 3), 4, 20, "too many"),
        "masked_m of group 2 must be from 0 to 20, got 21",
    ),
    (
        Groups("masked_m", (*[1] * 69, -9), 70, 2, "beyond a warp", n=8, k=16),
        "masked_m of group 69 must be from 0 to 2, got -9",
    ),
]


@pytest.mark.parametrize(("groups", "message"), ERRORS, ids=[str(groups) for groups, _ in ERRORS])
@pytest.mark.parametrize("index", [0, 1])
def test_wrong_values_are_raised_once_by_check_errors(
    cuda: Cuda, groups: Groups, message: str, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by the call, nor for the other GPU; all other rows are right."""
    monkeypatch.delenv("PYKERNELS_DEBUG", raising=False)
    operands = groups.operands()
    out = groups.output()
    with cuda.on(index, cuda.driver.create_stream(index)):
        groups.call(*operands, out=out)
    assert (cuda.last.device_index, cuda.last.stream != 0) == (index, True)
    assert "cuStreamSynchronize" not in cuda.driver.calls
    pykernels.check_errors(1 - index)
    with pytest.raises(ValueError, match=whole(message, groups, index)):
        pykernels.check_errors()
    pykernels.check_errors()
    right = correct(groups)
    right.assert_right(out, *operands, floor=TENSOR_CORE_FLOOR)


def correct(groups: Groups) -> Groups:
    """The same without what is wrong, which is left out."""
    values = list(groups.values)
    if groups.form == "m_indices":
        values = [value if -1 <= value < groups.num_groups else -1 for value in values]
        return Groups(groups.form, tuple(values), groups.num_groups, groups.m, "right")
    if groups.is_masked:
        values = [value if 0 <= value <= groups.m else 0 for value in values]
        return Groups(
            groups.form, tuple(values), groups.num_groups, groups.m, "right", groups.n, groups.k
        )
    indices = [-1] * groups.m
    for group in range(groups.num_groups):
        begin, end = values[group], values[group + 1]
        most = max(value for value in values[: group + 1] if value <= groups.m)
        if 0 <= begin <= end <= groups.m and begin == most:  # no row of an earlier group
            indices[begin:end] = [group] * (end - begin)
    return Groups("m_indices", tuple(indices), groups.num_groups, groups.m, "right")


@pytest.mark.parametrize(("groups", "message"), ERRORS, ids=[str(groups) for groups, _ in ERRORS])
def test_with_debug_the_call_raises(
    cuda: Cuda, groups: Groups, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYKERNELS_DEBUG", "1")
    with cuda.on(0), pytest.raises(ValueError, match=whole(message, groups)):
        groups.call(*groups.operands(), out=groups.output())
    pykernels.check_errors()
    with cuda.on(0):
        RAGGED.call(*RAGGED.operands(), out=RAGGED.output())


@pytest.mark.parametrize("scope", ["gpu", "system"])
def test_rows_that_never_come(cuda: Cuda, scope: str) -> None:
    """The time-out is recorded; nothing waits any longer, and what is not ready stays unwritten."""
    groups = Groups("group_offsets", (0, 100, 200), 2, 200, "two counters", n=8, k=16)
    operands = groups.operands()
    ready = torch.tensor([128, 71], dtype=torch.int32)
    out = groups.output()
    options = {"ready_timeout": 2e-5, "counter_scope": scope}
    groups.call(*operands, out=out, ready=ready, **options)
    message = "the rows of ready counter 1 never came: 71 of 72 after the timeout"
    with pytest.raises(ValueError, match=message):
        pykernels.check_errors()
    assert bool((out[128:] == UNTOUCHED).all())
    ready[1] = 72
    groups.call(*operands, out=out, ready=ready, **options)
    pykernels.check_errors()
    groups.assert_right(out, *operands, floor=TENSOR_CORE_FLOOR)


def test_counters_and_options_reach_the_launch(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order that the extension takes them."""
    asked: list[Any] = []
    function = native().grouped_fp8_gemm_nt

    def spy(*arguments: Any) -> None:
        asked.append(arguments[7:])
        function(*arguments)

    monkeypatch.setattr(native(), "grouped_fp8_gemm_nt", spy)
    operands = MASKED.operands()
    ready, done = torch.full((4, 1), 20, dtype=torch.int32), torch.zeros(4, 1, dtype=torch.int32)
    MASKED.call(*operands)
    MASKED.call(
        *operands,
        num_sms=3,
        expected_m=5,
        ready=ready,
        done=done,
        counter_scope="system",
        ready_timeout=0.25,
    )
    assert asked[0] == ("masked_m", None, None, None, None, False, 10_000_000_000)
    source, num_sms, expected_m, ready_view, done_view, system, timeout = asked[1]
    assert (source, num_sms, expected_m, system, timeout) == ("masked_m", 3, 5, True, 250_000_000)
    for view, tensor in ((ready_view, ready), (done_view, done)):
        assert view == tensor_parts(tensor.view(-1))
    assert torch.equal(done, torch.tensor(MASKED.values, dtype=torch.int32)[:, None] * 17)


@pytest.mark.parametrize("groups", EVERY_FORM, ids=str)
def test_memory_outside_the_tensors_is_refused(cuda: Cuda, groups: Groups) -> None:
    """Registered memory bounds the launch: the maps lie ahead of the tensors, the boxes do not."""
    a, b = groups.operands()
    out, values = groups.output(), groups.tensor
    for index, tensor in enumerate((*a, *b, out, values)):
        cuda.driver.register_memory(
            tensor.data_ptr(), tensor.untyped_storage().nbytes(), f"tensor {index}"
        )
    groups.call(a, b, out=out, **{groups.form: values})
    groups.assert_right(out, a, b, floor=TENSOR_CORE_FLOOR)
    stranger = torch.zeros_like(out)
    with pytest.raises(pykernels.emulator.EmulationError):
        groups.call(a, b, out=stranger, **{groups.form: values})


def test_streams_and_devices(cuda: Cuda) -> None:
    operands = RAGGED.operands()
    expected = emulated(RAGGED, operands)
    cuda.driver.set_current_device(0)
    for index in (1, 0):
        stream = cuda.driver.create_stream(index)
        out = RAGGED.output()
        with cuda.on(index, stream):
            RAGGED.call(*operands, out=out)
        assert_same_bits(out, expected)
        assert (cuda.last.device_index, cuda.last.stream) == (index, stream)
        assert cuda.driver.current_device() == 0
    with cuda.on(1, stream), pytest.raises(RuntimeError, match=r"cuLaunchKernelEx.*INVALID_HANDLE"):
        RAGGED.call(*operands)


def test_first_call_under_capture(cuda: Cuda) -> None:
    """Kernels are loaded and the record of errors is made while a stream is captured."""
    stream = cuda.driver.create_stream(0)
    out = RAGGED.output()
    cuda.driver.begin_capture(stream)
    with cuda.on(0, stream):
        RAGGED.call(*RAGGED.operands(), out=out)
    cuda.driver.end_capture()
    assert bool((out == UNTOUCHED).all())


def test_clusters_that_the_gpu_cannot_run_are_not_chosen(make_cuda: Callable[..., Cuda]) -> None:
    sizes = {"num_groups": 2, "m": 8192, "n": 4096, "k": 16}
    best = pykernels.explain_config(pykernels.grouped_fp8_gemm_nt, **sizes)
    clusters = [math.prod(candidate.schedule.values()) for candidate in best]
    assert max(clusters) > 1
    make_cuda(max_cluster=1)
    device = _C.CudaDevice(0, 0)
    groups = Groups("group_offsets", (0, 8192, 16384), 2, 16384, "large", n=4096, k=16)
    a, b = torch.zeros(16384, 16).to(torch.float8_e4m3fn), torch.zeros(2, 4096, 16)
    b = b.to(torch.float8_e4m3fn)
    tensors = a, torch.ones(16384, 1), b, torch.ones(2, 32, 1), groups.output(), groups.tensor
    views = [strided_view(tensor) for tensor in tensors]
    launch = native().make_grouped_fp8_gemm_nt_launch(device, *views, "group_offsets")
    assert launch.cluster == (1, 1, 1)


@pytest.mark.parametrize(
    "function", ["cuTensorMapEncodeTiled", "cuMemHostAlloc", "cuLaunchKernelEx"]
)
def test_driver_errors_name_the_function(cuda: Cuda, function: str) -> None:
    """Nothing is written, and the next call works."""
    operands = RAGGED.operands()
    out = RAGGED.output()
    cuda.driver.fail(function, 1)
    with pytest.raises(RuntimeError, match=rf"{function}.* failed: CUDA_ERROR_INVALID_VALUE \(1\)"):
        RAGGED.call(*operands, out=out)
    assert bool((out == UNTOUCHED).all())
    cuda.driver.fail(function, 0)
    RAGGED.call(*operands, out=out)
    RAGGED.assert_right(out, *operands, floor=TENSOR_CORE_FLOOR)


def test_unsupported_machine(make_cuda: Callable[..., Cuda]) -> None:
    make_cuda(compute_capability=(8, 0), name="NVIDIA A100-SXM4-80GB")
    for groups in EVERY_FORM:
        a, b = groups.operands()
        with pytest.raises(RuntimeError, match=r"A100.* 8\.0") as error:
            groups.call(a, b)
        capability = pykernels.can_run(groups.op, a, b, **{groups.form: groups.tensor})
        assert capability == (False, str(error.value))
