"""The ops on the CUDA path, with the recording driver in the driver's place.

:func:`pykernels.device.cuda_stream` is replaced, so that CPU tensors stand for CUDA ones: the same
checks, choice of kernel, argument block and driver calls as on a GPU, forwarded to the emulator.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import pykernels
from pykernels import device
from pykernels.native import native
from tests.cases import Pair, assert_same_bits, gemm_operands


@pytest.fixture
def operands() -> tuple[Pair, Pair]:
    return gemm_operands(70, 136, 272)


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two GPUs whose launches the emulator runs; calls go to a stream of the second."""
    emulated = native().EmulatedDevice()
    driver = native().RecordingDriver(emulated, num_devices=2)
    stream = driver.create_stream(1)
    monkeypatch.setattr(device, "cuda_stream", lambda tensor: (1, stream))
    yield SimpleNamespace(driver=driver, stream=stream, emulated=emulated)
    del driver


def test_ops_launch_on_the_device_and_stream_of_the_tensors(
    target: Any, operands: tuple[Pair, Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    target.driver.set_current_device(0)
    x = torch.randn(70, 272)
    results = [
        *pykernels.quantize_1x128(x),
        *pykernels.quantize_128x128(x, scale_fmt="ue8m0"),
        pykernels.fp8_gemm_nt(*operands),
    ]
    launches = target.driver.launches
    assert [(launch.device_index, launch.stream) for launch in launches] == [(1, target.stream)] * 3
    assert target.driver.current_device() == 0
    names = [launch.launch.kernel for launch in launches]
    assert names[:2] == ["quantize_1x128", "quantize_128x128"]
    assert names[2].startswith("fp8_gemm_nt_")
    assert all(report["findings"] == [] for _, report in target.emulated.reports)

    monkeypatch.setattr(device, "cuda_stream", lambda tensor: None)
    with pykernels.emulate():
        expected = [
            *pykernels.quantize_1x128(x),
            *pykernels.quantize_128x128(x, scale_fmt="ue8m0"),
            pykernels.fp8_gemm_nt(*operands),
        ]
    for result, wanted in zip(results, expected, strict=True):
        assert_same_bits(result, wanted)


def test_cubins_are_loaded_once(target: Any, operands: tuple[Pair, Pair]) -> None:
    for _ in range(3):
        pykernels.fp8_gemm_nt(*operands, num_sms=4)
    assert len(target.driver.launches) == 3
    assert target.driver.calls["cuLibraryLoadData"] == 1


def test_other_threads(target: Any, operands: tuple[Pair, Pair]) -> None:
    results: list[torch.Tensor] = []
    threads = [
        threading.Thread(target=lambda: results.append(pykernels.fp8_gemm_nt(*operands)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == len(target.driver.launches) == 3
    for result in results[1:]:
        assert_same_bits(result, results[0])


def test_capture_and_replay(target: Any, operands: tuple[Pair, Pair]) -> None:
    """Launches in a capture run at replay, into the same memory."""
    out = torch.zeros(70, 136)
    expected = pykernels.fp8_gemm_nt(*operands, out_dtype=torch.float32)
    target.driver.begin_capture(target.stream)
    pykernels.fp8_gemm_nt(*operands, out=out)
    target.driver.end_capture()
    assert bool((out == 0).all())
    target.driver.replay()
    assert_same_bits(out, expected)


def test_cuda_stream_is_that_of_the_tensors_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuda:1 while cuda:0 is current: torch is asked for the stream of device 1."""
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda index: SimpleNamespace(cuda_stream=1000 + index)
    )
    tensor: Any = SimpleNamespace(is_cuda=True, get_device=lambda: 1)
    assert device.cuda_stream(tensor) == (1, 1001)
    assert device.cuda_stream(torch.empty(1)) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compute_capability": (8, 0), "name": "NVIDIA A100"}, "NVIDIA A100"),
        ({"compute_capability": (10, 0), "name": "NVIDIA B200"}, "NVIDIA B200"),
        ({"num_devices": 0}, "0"),
        ({"driver_version": 11040}, "11.4"),
        ({"driver_version": 12040}, "12.4"),
    ],
    ids=["sm_80", "sm_100", "no GPU", "CUDA 11.4", "CUDA 12.4"],
)
def test_unsupported_gpu_or_driver_is_named(
    options: dict[str, Any],
    message: str,
    operands: tuple[Pair, Pair],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = native().RecordingDriver(None, **options)
    monkeypatch.setattr(device, "cuda_stream", lambda tensor: (0, 0))
    with pytest.raises(RuntimeError, match=message):
        pykernels.fp8_gemm_nt(*operands)
    assert driver.launches == []


def test_can_run_names_an_unsupported_gpu(
    operands: tuple[Pair, Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = native().RecordingDriver(None, compute_capability=(8, 0), name="NVIDIA A100")
    monkeypatch.setattr(device, "cuda_stream", lambda tensor: (0, 0))
    capability = pykernels.can_run(pykernels.fp8_gemm_nt, *operands)
    assert not capability.ok
    assert "NVIDIA A100" in capability.reason
    del driver
