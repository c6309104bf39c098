"""Errors that kernels leave in their device's record: who raises them, when, and in which words.

The kernel of these tests stands in the place of quantize_1x128 and takes its launch: what the
launch has as ``x`` is the record. On the CUDA path the recording driver runs it in the emulator.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch

import pykernels
from pykernels import _C
from pykernels.emulator import EmulationError
from pykernels.native import native

INVALID_VALUE = 1
CAPTURE_IMPLICIT = 906
NAME = "quantize_1x128"
GROUP_OFFSET, MASKED_M, GROUP_INDEX, READY_TIMEOUT, SLOT = 1, 2, 3, 4, 9

Error: TypeAlias = tuple[int, int, int, int]  # kind, index, value, limit
MakeLaunch: TypeAlias = Callable[..., _C.Launch]

WRONG_OFFSET = (GROUP_OFFSET, 3, 700, 800)
WRONG_OFFSET_MESSAGE = (
    "group_offsets of group 3 end at 700, must be at least 800: offsets may not decrease; "
    "the rows of this group were left untouched"
)
MESSAGES = {
    WRONG_OFFSET: WRONG_OFFSET_MESSAGE,
    (GROUP_OFFSET, 0, 4097, 4096): (
        "group_offsets of group 0 end at 4097, must be at most 4096: offsets may not pass the last "
        "row; the rows of this group were left untouched"
    ),
    (GROUP_OFFSET, 0, -1, 0): (
        "group_offsets of group 0 must be at least 0, got -1; the rows of this group were left "
        "untouched"
    ),
    (MASKED_M, 5, 300, 128): (
        "masked_m of group 5 must be from 0 to 128, got 300; the rows of this group were left "
        "untouched"
    ),
    (MASKED_M, 0, -1, 128): (
        "masked_m of group 0 must be from 0 to 128, got -1; the rows of this group were left "
        "untouched"
    ),
    (GROUP_INDEX, 7, 9, 4): (
        "m_indices of row 7 must be from -1 to 3, got 9; this row was left untouched"
    ),
    (READY_TIMEOUT, 4, 17, 128): (
        "the rows of ready counter 4 never came: 17 of 128 after the timeout; its tiles and all "
        "later ones of that SM were left untouched; let the kernel that fills them run beside this "
        "one (num_sms, another stream), or raise ready_timeout"
    ),
    (SLOT, 6, 64, 64): (
        "slot_mapping of token 6 must be from -1 to 63, got 64; this token was left out"
    ),
    (SLOT, 0, 2**31 - 1, 64): (
        "slot_mapping of token 0 must be from -1 to 63, got 2147483647 or more; this token was "
        "left out"
    ),
    (SLOT, 0, -(2**31), 64): (
        "slot_mapping of token 0 must be from -1 to 63, got -2147483648 or less; this token was "
        "left out"
    ),
    (77, 2**32 - 1, -3, 4): "a kernel left an error of unknown kind 77 (4294967295, -3, 4)",
}

# Loops; thread 0 stores the four words to the address in the first parameter.
PTX = """.version 8.7
.target sm_90a
.address_size 64
.visible .entry quantize_1x128(.param .align 8 .b8 params[{param_bytes}])
{{
  .reg .pred p;
  .reg .b32 r<6>;
  .reg .b64 record;
  griddepcontrol.wait;
  mov.u32 r5, {num_loops};
LOOP:
  sub.u32 r5, r5, 1;
  setp.gt.s32 p, r5, 0;
  @p bra LOOP;
  mov.u32 r0, %tid.x;
  setp.ne.u32 p, r0, 0;
  @p bra DONE;
  ld.param.u64 record, [params];
  mov.b32 r1, {error[0]};
  mov.b32 r2, {error[1]};
  mov.b32 r3, {error[2]};
  mov.b32 r4, {error[3]};
  {store}
  {then}
DONE:
  ret;
}}
"""


@pytest.fixture
def make_launch(tmp_path: Path) -> Iterator[MakeLaunch]:
    """What makes a launch of a kernel that finds an error, or none, and then does more."""
    (original,) = (info for info in native().registered_kernels() if info.name == NAME)
    q = torch.empty(1, 4, dtype=torch.float8_e4m3fn)
    scales = torch.empty(1, 1)
    count = 0

    def make(
        record: int, error: Error | None = WRONG_OFFSET, then: str = "", num_loops: int = 1
    ) -> _C.Launch:
        nonlocal count
        count += 1
        path = tmp_path / f"kernel{count}.ptx"
        path.write_text(
            PTX.format(
                param_bytes=original.param_bytes,
                num_loops=num_loops,
                error=error or (0, 0, 0, 0),
                store="" if error is None else "st.global.v4.u32 [record], {r1, r2, r3, r4};",
                then=then,
            )
        )
        _register(original, str(path))
        return native().make_quantize_launch(
            _C.TensorView(record, (1, 4), (4, 1), "float32"),
            _C.TensorView(q.data_ptr(), (1, 4), (16, 1), "float8_e4m3fn"),
            _C.TensorView(scales.data_ptr(), (1, 1), (1, 1), "float32"),
            1,
            False,
        )

    yield make
    _register(original, original.ptx_path)


def _register(info: _C.KernelInfo, ptx_path: str) -> None:
    native().register_kernel(
        name=info.name,
        family=info.family,
        config=info.config,
        threads=info.threads,
        registers=info.registers,
        dynamic_shared_bytes=info.dynamic_shared_bytes,
        param_bytes=info.param_bytes,
        ptx_path=ptx_path,
        cubin_path=info.cubin_path,
        ptxas=f"{info.min_driver_version // 1000}.0",
    )


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[_C.RecordingDriver]:
    monkeypatch.delenv("PYKERNELS_DEBUG", raising=False)
    with _C.RecordingDriver(native().EmulatedDevice(), num_devices=2) as driver:
        yield driver


def on_gpu(message: str, index: int = 0) -> str:
    """The whole message, as a pattern."""
    return f"^{re.escape(f'{message} (CUDA device {index})')}$"


# ---- the emulator ----


@pytest.mark.parametrize("error", MESSAGES, ids=str)
def test_the_emulator_raises_at_once(make_launch: MakeLaunch, error: Error) -> None:
    device = native().EmulatedDevice()
    launch = make_launch(device.error_record(), error)
    with pytest.raises(ValueError, match=f"^{re.escape(MESSAGES[error])}$"):
        device.run(launch)
    assert device.take_error() is None
    device.run(make_launch(device.error_record(), None))
    assert [report["findings"] for _, report in device.reports] == [[], []]


def test_a_launch_that_cannot_go_on_says_more(make_launch: MakeLaunch) -> None:
    device = native().EmulatedDevice()
    with pytest.raises(EmulationError, match="trap"):
        device.run(make_launch(device.error_record(), then="trap;"))
    assert device.take_error() is None
    device.run(make_launch(device.error_record(), None))


def test_emulated_devices_have_their_own_records(make_launch: MakeLaunch) -> None:
    device, other = native().EmulatedDevice(), native().EmulatedDevice()
    device.run(make_launch(other.error_record()))
    assert other.take_error() == WRONG_OFFSET_MESSAGE
    assert other.take_error() is None


# ---- the CUDA path ----


def test_on_a_gpu_check_errors_raises(driver: _C.RecordingDriver, make_launch: MakeLaunch) -> None:
    device = _C.CudaDevice(0, 0)
    device.run(make_launch(device.error_record()))
    with pytest.raises(ValueError, match=on_gpu(WRONG_OFFSET_MESSAGE)):
        pykernels.check_errors()
    pykernels.check_errors()
    device.run(make_launch(device.error_record(), None))
    pykernels.check_errors()
    assert driver.calls["cuCtxSynchronize"] == 3
    assert "cuStreamSynchronize" not in driver.calls


def test_a_device_gives_its_error_once(driver: _C.RecordingDriver, make_launch: MakeLaunch) -> None:
    device = _C.CudaDevice(0, driver.create_stream(0))
    assert device.take_error() is None  # there is no record yet
    device.run(make_launch(device.error_record()))
    assert _C.CudaDevice(0, 0).take_error() == WRONG_OFFSET_MESSAGE
    assert device.take_error() is None


def test_check_errors_waits(driver: _C.RecordingDriver, make_launch: MakeLaunch) -> None:
    device = _C.CudaDevice(0, 0)
    launch = make_launch(device.error_record(), num_loops=1_000_000)
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(device.run, launch)
        while not driver.launches:
            time.sleep(0.001)
        time.sleep(0.05)  # from the record of the launch to its start
        with pytest.raises(ValueError, match="group_offsets"):
            pykernels.check_errors()
        run.result()


@pytest.mark.parametrize("device", [1, "cuda:1", torch.device("cuda", 1)], ids=str)
def test_gpus_have_their_own_records(
    driver: _C.RecordingDriver, make_launch: MakeLaunch, device: Any
) -> None:
    gpus = [_C.CudaDevice(index, 0) for index in range(2)]
    gpus[1].run(make_launch(gpus[1].error_record(), (MASKED_M, 5, 300, 128)))
    gpus[0].error_record()
    pykernels.check_errors(0)
    with pytest.raises(ValueError, match=on_gpu(MESSAGES[MASKED_M, 5, 300, 128], 1)):
        pykernels.check_errors(device)
    pykernels.check_errors()


def test_one_error_a_call(driver: _C.RecordingDriver, make_launch: MakeLaunch) -> None:
    for index in range(2):
        device = _C.CudaDevice(index, 0)
        device.run(make_launch(device.error_record()))
    for index in range(2):
        with pytest.raises(ValueError, match=on_gpu(WRONG_OFFSET_MESSAGE, index)):
            pykernels.check_errors()
    pykernels.check_errors()


def test_one_record_a_gpu_for_all_threads(driver: _C.RecordingDriver) -> None:
    start = threading.Barrier(8)

    def call(index: int) -> int:
        start.wait()
        return _C.CudaDevice(index % 2, 0).error_record()

    with ThreadPoolExecutor(8) as pool:
        records = list(pool.map(call, range(8)))
    assert records == records[:2] * 4
    assert records[0] != records[1]
    assert all(record % 16 == 0 for record in records)
    assert driver.calls["cuMemHostAlloc"] == 2


def test_the_record_is_memory_of_the_launch(
    driver: _C.RecordingDriver, make_launch: MakeLaunch
) -> None:
    """Registered memory bounds the launch, the record is within these bounds."""
    device = _C.CudaDevice(0, 0)
    other = torch.zeros(4, dtype=torch.int32)
    driver.register_memory(torch.zeros(1).data_ptr(), 4, "registered")
    device.run(make_launch(device.error_record()))
    with pytest.raises(ValueError, match="group_offsets"):
        pykernels.check_errors()
    with pytest.raises(EmulationError):
        device.run(make_launch(other.data_ptr()))


def test_ops_without_a_record_do_not_pay(
    driver: _C.RecordingDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pykernels.device.cuda_stream", lambda tensor: (0, 0))
    pykernels.quantize_1x128(torch.zeros(4, 128))
    assert len(driver.launches) == 1
    for function in ("cuMemHostAlloc", "cuStreamIsCapturing", "cuStreamSynchronize"):
        assert function not in driver.calls


# ---- captures ----


def test_first_record_under_capture(driver: _C.RecordingDriver, make_launch: MakeLaunch) -> None:
    """Made by the capturing thread and by another; kernels write it when the graph runs."""
    stream = driver.create_stream(0)
    driver.begin_capture(stream)
    device = _C.CudaDevice(0, stream)
    device.run(make_launch(device.error_record()))
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: _C.CudaDevice(1, 0).error_record()).result()
    driver.end_capture()
    pykernels.check_errors()
    for _ in range(2):
        driver.replay()
        with pytest.raises(ValueError, match=on_gpu(WRONG_OFFSET_MESSAGE)):
            pykernels.check_errors()
    pykernels.check_errors()


def test_a_gpu_that_is_captured_cannot_be_waited_for(
    driver: _C.RecordingDriver, make_launch: MakeLaunch
) -> None:
    for index in range(2):
        device = _C.CudaDevice(index, 0)
        device.run(make_launch(device.error_record()))
    driver.begin_capture(driver.create_stream(0))
    with pytest.raises(RuntimeError, match=r"cuCtxSynchronize of device 0 failed: .*900"):
        pykernels.check_errors(0)
    with pytest.raises(ValueError, match=on_gpu(WRONG_OFFSET_MESSAGE, 1)):
        pykernels.check_errors(1)
    driver.end_capture()
    with pytest.raises(ValueError, match=on_gpu(WRONG_OFFSET_MESSAGE)):
        pykernels.check_errors(0)


# ---- PYKERNELS_DEBUG ----


@pytest.fixture
def debug(monkeypatch: pytest.MonkeyPatch, driver: _C.RecordingDriver) -> None:
    monkeypatch.setenv("PYKERNELS_DEBUG", "1")


@pytest.mark.usefixtures("debug")
def test_with_debug_the_launch_raises(
    driver: _C.RecordingDriver, make_launch: MakeLaunch, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = _C.CudaDevice(0, driver.create_stream(0))
    device.run(make_launch(device.error_record(), None))
    with pytest.raises(ValueError, match=on_gpu(WRONG_OFFSET_MESSAGE)):
        device.run(make_launch(device.error_record()))
    assert driver.calls["cuStreamSynchronize"] == 2
    pykernels.check_errors()
    for value in ("0", ""):
        monkeypatch.setenv("PYKERNELS_DEBUG", value)
        device.run(make_launch(device.error_record()))
        with pytest.raises(ValueError, match="group_offsets"):
            pykernels.check_errors()


@pytest.mark.usefixtures("debug")
def test_with_debug_a_captured_stream_is_not_waited_for(
    driver: _C.RecordingDriver, make_launch: MakeLaunch
) -> None:
    """Another stream is, also while a capture forbids that to threads that do not ask."""
    stream = driver.create_stream(0)
    device = _C.CudaDevice(0, stream)
    driver.begin_capture(stream)
    device.run(make_launch(device.error_record()))
    assert "cuStreamSynchronize" not in driver.calls
    other = _C.CudaDevice(0, driver.create_stream(0))
    with pytest.raises(ValueError, match="group_offsets"):
        other.run(make_launch(other.error_record()))
    driver.end_capture()
    driver.replay()
    with pytest.raises(ValueError, match="group_offsets"):
        pykernels.check_errors()


@pytest.mark.usefixtures("debug")
def test_with_debug_a_default_stream_that_waits_for_a_capture(
    driver: _C.RecordingDriver, make_launch: MakeLaunch
) -> None:
    device = _C.CudaDevice(0, 0)
    driver.fail("cuStreamIsCapturing", CAPTURE_IMPLICIT)
    device.run(make_launch(device.error_record()))
    assert "cuStreamSynchronize" not in driver.calls
    assert device.take_error() == WRONG_OFFSET_MESSAGE


# ---- driver errors ----


@pytest.mark.parametrize(
    "function", ["cuMemHostAlloc", "cuMemHostGetDevicePointer", "cuThreadExchangeStreamCaptureMode"]
)
def test_failing_to_make_the_record(
    driver: _C.RecordingDriver, make_launch: MakeLaunch, function: str
) -> None:
    driver.set_current_device(1)
    device = _C.CudaDevice(0, 0)
    driver.fail(function, INVALID_VALUE)
    with pytest.raises(RuntimeError, match=rf"{function}.* failed: CUDA_ERROR_INVALID_VALUE \(1\)"):
        device.error_record()
    assert driver.current_device() == 1
    driver.fail(function, 0)
    device.run(make_launch(device.error_record()))
    assert device.take_error() == WRONG_OFFSET_MESSAGE
    assert driver.calls["cuMemHostAlloc"] == (2 if function == "cuMemHostAlloc" else 1)


def test_failing_to_wait(driver: _C.RecordingDriver, make_launch: MakeLaunch) -> None:
    """The error stays where it is for the next call."""
    driver.set_current_device(1)
    device = _C.CudaDevice(0, 0)
    device.run(make_launch(device.error_record()))
    driver.fail("cuCtxSynchronize", INVALID_VALUE)
    with pytest.raises(RuntimeError, match=r"cuCtxSynchronize of device 0 failed: CUDA_ERROR"):
        pykernels.check_errors()
    assert driver.current_device() == 1
    driver.fail("cuCtxSynchronize", 0)
    with pytest.raises(ValueError, match="group_offsets"):
        pykernels.check_errors()


@pytest.mark.usefixtures("debug")
@pytest.mark.parametrize("function", ["cuStreamIsCapturing", "cuStreamSynchronize"])
def test_failing_to_wait_with_debug(
    driver: _C.RecordingDriver, make_launch: MakeLaunch, function: str
) -> None:
    device = _C.CudaDevice(0, 0)
    driver.fail(function, INVALID_VALUE)
    with pytest.raises(RuntimeError, match=rf"{function}.* on device 0 failed: CUDA_ERROR"):
        device.run(make_launch(device.error_record()))
    driver.fail(function, 0)
    assert device.take_error() == WRONG_OFFSET_MESSAGE


# ---- nothing to check, and what cannot be checked ----


@pytest.mark.parametrize("device", [None, 0, 7, "cuda:0", "cpu", torch.device("cpu")], ids=str)
def test_nothing_to_wait_for(driver: _C.RecordingDriver, device: Any) -> None:
    """No context was made, and none is."""
    pykernels.check_errors(device)
    assert "cuCtxSynchronize" not in driver.calls
    assert "cuDevicePrimaryCtxRetain" not in driver.calls


@pytest.mark.parametrize("device", [None, 0, "cuda", "cpu"])
def test_no_driver_is_needed(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    native()
    pykernels.check_errors(device)
    monkeypatch.setattr("pykernels.native._loaded", None)
    monkeypatch.setattr("pykernels.native._load", lambda: pytest.fail("loads the extension"))
    pykernels.check_errors(device)


def test_cuda_without_an_index_is_the_current_device(
    driver: _C.RecordingDriver, make_launch: MakeLaunch, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = _C.CudaDevice(1, 0)
    device.run(make_launch(device.error_record()))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    with pytest.raises(ValueError, match=on_gpu(WRONG_OFFSET_MESSAGE, 1)):
        pykernels.check_errors("cuda")


@pytest.mark.parametrize(
    "device", ["tpu", "cuda:-1", "meta", torch.device("meta"), -1, True, 1.5], ids=str
)
def test_devices_that_are_none(device: Any) -> None:
    message = r"device must be a CUDA device, its index, the CPU, or None, got .*"
    with pytest.raises(ValueError, match=message + re.escape(str(device))):
        pykernels.check_errors(device)
