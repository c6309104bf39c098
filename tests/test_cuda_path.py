"""The CUDA path without a GPU.

A recording driver receives what the ops launch, checks it as the real driver does, and runs it in
the emulator. CPU tensors stand in for CUDA tensors.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import pykernels
from pykernels import _C
from pykernels.native import native, tensor_view
from pykernels.testing import Pair, gemm_operands
from tests.cases import assert_same_bits
from tests.recording import Cuda

INVALID_VALUE = 1
OUT_OF_MEMORY = 2
SIZES = (130, 136, 272)  # several tiles, tails in m, n and k


@pytest.fixture(scope="module")
def operands() -> tuple[Pair, Pair]:
    return gemm_operands(*SIZES)


@pytest.fixture(scope="module")
def expected(operands: tuple[Pair, Pair]) -> Tensor:
    with pykernels.emulate(checks=()):
        return pykernels.fp8_gemm_nt(*operands)


def multiply(operands: tuple[Pair, Pair], **options: Any) -> Tensor:
    return pykernels.fp8_gemm_nt(*operands, **options)


def kernel_info(name: str) -> _C.KernelInfo:
    (info,) = (info for info in native().registered_kernels() if info.name == name)
    found: _C.KernelInfo = info
    return found


def test_same_bits_as_the_emulator(cuda: Cuda, operands: Any, expected: Tensor) -> None:
    assert_same_bits(multiply(operands), expected)
    assert len(cuda.driver.launches) == 1
    assert [report["findings"] for _, report in cuda.emulator.reports] == [[]]


def test_launch_attributes(cuda: Cuda, operands: Any) -> None:
    """What cuLaunchKernelEx gets is the launch that the host path describes."""
    for info in native().registered_kernels():
        if info.family != "fp8_gemm_nt":
            continue
        out = torch.empty(SIZES[0], SIZES[1], dtype=torch.float32)
        views = [tensor_view(tensor) for pair in operands for tensor in pair] + [tensor_view(out)]
        device = _C.CudaDevice(0, 0)
        described = native().make_fp8_gemm_nt_launch(device, *views, 16, info.name)
        device.run(described)
        launch = cuda.last.launch
        assert launch.kernel == info.name
        assert (launch.grid, launch.block) == (described.grid, (info.threads, 1, 1))
        assert launch.cluster == (info.config["cluster"], 1, 1)
        assert launch.grid[0] % info.config["cluster"] == 0
        assert launch.grid[0] <= 16
        assert launch.programmatic_dependent
        assert launch.dynamic_shared_bytes == info.dynamic_shared_bytes
        assert launch.arguments == described.arguments
        assert len(launch.arguments) == info.param_bytes
        allowed = cuda.driver.max_dynamic_shared_bytes(info.name, 0)
        assert allowed == max(info.dynamic_shared_bytes, 48 * 1024)


def test_tensor_maps_describe_the_operands(cuda: Cuda, operands: Any) -> None:
    """The first parameters of the GEMM are the maps of a, b and the output, made by the driver."""
    (a, _), (b, _) = operands
    out = multiply(operands)
    maps = [_C.decode_tensor_map(cuda.last.launch.arguments[i : i + 128]) for i in (0, 128, 256)]
    for tensor_map, tensor in zip(maps, (a, b, out), strict=True):
        assert tensor_map["address"] == tensor.data_ptr()
        assert tensor_map["dims"] == [tensor.size(1), tensor.size(0)]
        assert tensor_map["strides"] == [tensor.stride(0) * tensor.element_size()]
    assert cuda.driver.calls["cuTensorMapEncodeTiled"] == 3


def test_memory_outside_the_tensors_is_refused(cuda: Cuda, operands: Any) -> None:
    """Registered memory bounds the launch; the argument block names no address outside of it."""
    out = torch.zeros(SIZES[0], SIZES[1], dtype=torch.bfloat16)
    tensors = [*operands[0], *operands[1], out]
    for index, tensor in enumerate(tensors):
        cuda.driver.register_memory(
            tensor.data_ptr(), tensor.untyped_storage().nbytes(), f"tensor {index}"
        )
    multiply(operands, out=out)
    stranger = torch.zeros_like(out)
    with pytest.raises(pykernels.emulator.EmulationError):
        multiply(operands, out=stranger)


@pytest.mark.parametrize("scale_fmt", ["fp32", "ue8m0"])
@pytest.mark.parametrize("quantize", [pykernels.quantize_1x128, pykernels.quantize_128x128])
def test_quantize(cuda: Cuda, quantize: Callable[..., Pair], scale_fmt: str) -> None:
    x = torch.randn(33, 272, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(1))
    result = quantize(x, scale_fmt=scale_fmt)
    assert cuda.last.launch.kernel == quantize.__name__
    with pykernels.emulate(checks=()):
        wanted = _emulated(quantize, x, scale_fmt)
    for actual, tensor in zip(result, wanted, strict=True):
        assert_same_bits(actual, tensor)


def _emulated(quantize: Callable[..., Pair], x: Tensor, scale_fmt: str) -> Pair:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pykernels.device.cuda_stream", lambda tensor: None)
        return quantize(x, scale_fmt=scale_fmt)


def test_other_device_than_the_current_one(cuda: Cuda, operands: Any, expected: Tensor) -> None:
    cuda.driver.set_current_device(0)
    stream = cuda.driver.create_stream(1)
    with cuda.on(1, stream):
        assert_same_bits(multiply(operands), expected)
    assert (cuda.last.device_index, cuda.last.stream) == (1, stream)
    assert cuda.driver.current_device() == 0


def test_stream_is_the_current_one_of_the_tensors_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pykernels.device._current_stream", lambda index: 1000 + index)
    tensor: Any = SimpleNamespace(is_cuda=True, get_device=lambda: 1)
    assert pykernels.device.cuda_stream(tensor) == (1, 1001)
    assert pykernels.device.cuda_stream(torch.empty(1)) is None


def test_streams_are_found_with_and_without_the_raw_function(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", int, raising=False)
    assert pykernels.device._find_current_stream() is int
    monkeypatch.delattr(torch._C, "_cuda_getCurrentRawStream")
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda index: SimpleNamespace(cuda_stream=1000 + index)
    )
    assert pykernels.device._find_current_stream()(1) == 1001


def test_thread_without_a_context(cuda: Cuda, operands: Any, expected: Tensor) -> None:
    def call() -> tuple[Tensor, int]:
        return multiply(operands), cuda.driver.current_device()

    with ThreadPoolExecutor(1) as pool:
        result, current = pool.submit(call).result()
    assert_same_bits(result, expected)
    assert current == -1


def test_the_current_context_is_not_pushed_again(cuda: Cuda, operands: Any) -> None:
    cuda.driver.set_current_device(0)
    multiply(operands)
    assert "cuCtxPushCurrent" not in cuda.driver.calls


def test_cubins_are_loaded_once(cuda: Cuda, operands: Any, expected: Tensor) -> None:
    """Eight threads start together on two devices: one library, one function a device.

    Of two kernels: the one that is launched, and one that the driver counts clusters with.
    """
    start = threading.Barrier(8)

    def call(index: int) -> Tensor:
        start.wait()
        with cuda.on(index % 2):
            return multiply(operands)

    with ThreadPoolExecutor(8) as pool:
        for result in pool.map(call, range(8)):
            assert_same_bits(result, expected)
    assert len(cuda.driver.launches) == 8
    assert len({recorded.launch.kernel for recorded in cuda.driver.launches}) == 1
    calls = cuda.driver.calls
    assert calls["cuLibraryLoadData"] == 2
    assert calls["cuKernelGetFunction"] == 4
    assert calls["cuFuncSetAttribute"] == 4
    assert calls["cuDevicePrimaryCtxRetain"] == 2


def test_clusters_that_the_gpu_cannot_run_are_not_chosen(make_cuda: Callable[..., Cuda]) -> None:
    """The driver refuses to count clusters of more than two CTAs, or of any."""
    operands = gemm_operands(1, 2112, 7168)
    best = pykernels.explain_config(pykernels.fp8_gemm_nt, m=1, n=2112, k=7168)[0]
    assert math.prod(best.schedule.values()) > 2
    for max_cluster in (1, 2):
        cuda = make_cuda(max_cluster=max_cluster)
        multiply(operands)
        assert cuda.last.launch.cluster[0] <= max_cluster
        if max_cluster == 1:
            cuda.driver.close()
    device = native().CudaDevice(0, 0)
    out = torch.empty(1, 2112, dtype=torch.bfloat16)
    views = [tensor_view(tensor) for tensor in (*operands[0], *operands[1], out)]
    with pytest.raises(ValueError, match=r"cannot run kernel .* in clusters of 4 CTAs"):
        native().fp8_gemm_nt(device, *views, None, "fp8_gemm_nt_swap_m8n64", (1, 1, 4))


def test_first_call_under_capture(cuda: Cuda, operands: Any, expected: Tensor) -> None:
    """Loading the cubin is legal while a stream is captured; the launch waits for the replay."""
    stream = cuda.driver.create_stream(0)
    out = torch.zeros(SIZES[0], SIZES[1], dtype=torch.bfloat16)
    cuda.driver.begin_capture(stream)
    with cuda.on(0, stream):
        multiply(operands, out=out)
    cuda.driver.end_capture()
    assert cuda.last.captured
    assert not out.any()
    cuda.driver.replay()
    assert_same_bits(out, expected)


def test_stream_of_another_device_is_an_error(cuda: Cuda, operands: Any) -> None:
    stream = cuda.driver.create_stream(0)
    with cuda.on(1, stream), pytest.raises(RuntimeError, match=r"cuLaunchKernelEx.*INVALID_HANDLE"):
        multiply(operands)


def test_num_sms_bounds_the_grid(cuda: Cuda, operands: Any, expected: Tensor) -> None:
    assert_same_bits(multiply(operands, num_sms=2), expected)
    assert cuda.last.launch.grid[0] <= 2


@pytest.mark.parametrize("batch_invariant", [False, True])
def test_batch_invariance_reaches_the_choice(
    cuda: Cuda, operands: Any, monkeypatch: pytest.MonkeyPatch, batch_invariant: bool
) -> None:
    asked = []
    function = native().fp8_gemm_nt

    def spy(*arguments: Any) -> None:
        asked.append(arguments[-1])
        function(*arguments)

    monkeypatch.setattr(native(), "fp8_gemm_nt", spy)
    multiply(operands, batch_invariant=batch_invariant)
    out = torch.empty(SIZES[0], SIZES[1], dtype=torch.bfloat16)
    multiply(operands, batch_invariant=batch_invariant, out=out)
    assert asked == [batch_invariant] * 2


@pytest.mark.parametrize(
    ("options", "found", "needed"),
    [
        ({"compute_capability": (8, 0), "name": "NVIDIA A100-SXM4-80GB"}, "A100.* 8.0", "9.0"),
        ({"compute_capability": (10, 0), "name": "NVIDIA B200"}, r"B200.* 10\.0", "9.0"),
        ({"driver_version": 11040}, r"found is for CUDA 11\.4", r"a driver for CUDA 1\d\.0 \("),
        ({"num_devices": 0}, "reports 0 devices", "no CUDA device 0"),
    ],
    ids=["sm_80", "sm_100", "CUDA 11.4", "no GPU"],
)
def test_unsupported_machine(
    make_cuda: Callable[..., Cuda], operands: Any, options: dict[str, Any], found: str, needed: str
) -> None:
    cuda = make_cuda(**options)
    with pytest.raises(RuntimeError, match=found):
        multiply(operands)
    with pytest.raises(RuntimeError, match=needed):
        pykernels.quantize_1x128(torch.zeros(4, 128))
    capability = pykernels.can_run(pykernels.fp8_gemm_nt, *operands)
    assert not capability.ok
    assert re.search(found, capability.reason)
    assert cuda.driver.launches == []


def test_no_driver() -> None:
    """Without the recording driver, on a machine without libcuda.so.1, the error says so."""
    info = _C.driver_info()
    if info["error"] is None:  # there is a driver
        assert info["version"] is not None
        return
    assert "libcuda.so.1" in info["error"]
    with pytest.raises(
        RuntimeError, match=r"no NVIDIA driver was found .* \(driver 525 or newer\)"
    ):
        _C.CudaDevice(0, 0)


FAILING = (
    "cuDevicePrimaryCtxRetain",
    "cuCtxPushCurrent",
    "cuLibraryLoadData",
    "cuLibraryGetKernel",
    "cuKernelGetFunction",
    "cuFuncSetAttribute",
    "cuOccupancyMaxActiveClusters",
    "cuTensorMapEncodeTiled",
    "cuLaunchKernelEx",
)


@pytest.mark.parametrize("function", FAILING)
def test_driver_errors_name_the_function(
    cuda: Cuda, operands: Any, expected: Tensor, function: str
) -> None:
    """Nothing is written, the thread's context is restored, and the next call works."""
    cuda.driver.set_current_device(1)
    out = torch.zeros(SIZES[0], SIZES[1], dtype=torch.bfloat16)
    cuda.driver.fail(function, INVALID_VALUE)
    with pytest.raises(RuntimeError, match=rf"{function}.* failed: CUDA_ERROR_INVALID_VALUE \(1\)"):
        multiply(operands, out=out)
    assert cuda.driver.current_device() == 1
    assert not out.any()
    cuda.driver.fail(function, 0)
    multiply(operands, out=out)
    assert_same_bits(out, expected)


def test_unknown_error_codes_are_shown(cuda: Cuda, operands: Any) -> None:
    cuda.driver.fail("cuLaunchKernelEx", 4711)
    with pytest.raises(RuntimeError, match="4711"):
        multiply(operands)


def test_broken_cubin(cuda: Cuda, tmp_path: Any) -> None:
    path = tmp_path / "broken.cubin"
    path.write_bytes(b"not ELF" * 20)
    good = kernel_info("quantize_1x128")
    x, q, scales = torch.zeros(4, 128), torch.zeros(4, 128, dtype=torch.uint8), torch.zeros(4, 1)
    q = q.view(torch.float8_e4m3fn)
    views = [tensor_view(x), tensor_view(q), tensor_view(scales)]
    try:
        for cubin, message in ((path, "INVALID_IMAGE"), (tmp_path / "none", "cannot read .*none")):
            _register(good, str(cubin))
            with pytest.raises(RuntimeError, match=message):
                native().quantize(_C.CudaDevice(0, 0), *views, 1, False)
    finally:
        _register(good, good.cubin_path)


def _register(info: _C.KernelInfo, cubin_path: str, ptxas: str = "") -> None:
    native().register_kernel(
        name=info.name,
        family=info.family,
        config=info.config,
        threads=info.threads,
        registers=info.registers,
        dynamic_shared_bytes=info.dynamic_shared_bytes,
        param_bytes=info.param_bytes,
        ptx_path=info.ptx_path,
        cubin_path=cubin_path,
        ptxas=ptxas or f"{info.min_driver_version // 1000}.0",
    )


def test_cubins_of_ptxas_13_need_its_driver(make_cuda: Callable[..., Cuda]) -> None:
    """Those of ptxas 12 load on every driver from 525."""
    cuda = make_cuda(driver_version=12080)
    kernels = native().registered_kernels()
    x = torch.zeros(4, 128)
    try:
        for info in kernels:
            _register(info, info.cubin_path, ptxas="12.9")
        pykernels.quantize_1x128(x)
        cuda.driver.close()
        _register(kernels[0], kernels[0].cubin_path, ptxas="13.0")
        make_cuda(driver_version=12080)
        with pytest.raises(RuntimeError, match=r"needs .* CUDA 13\.0 \(driver 580 .* CUDA 12\.8"):
            pykernels.quantize_1x128(x)
    finally:
        for info in kernels:
            _register(info, info.cubin_path)


def test_one_recording_driver_at_a_time(cuda: Cuda) -> None:
    with pytest.raises(ValueError, match="one recording driver is installed already"):
        _C.RecordingDriver()
    cuda.driver.close()
    with _C.RecordingDriver(num_devices=3):
        assert len(_C.driver_info()["devices"]) == 3


def test_driver_info(cuda: Cuda) -> None:
    info = _C.driver_info()
    assert info["error"] is None
    assert info["version"] == 13000
    assert [device.compute_capability for device in info["devices"]] == [(9, 0), (9, 0)]
