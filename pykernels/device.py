"""Which device runs a call: the GPU of the tensors, the emulator, or torch on the CPU.

The device index and the stream of every call come from :func:`cuda_stream`; tests replace it to
drive the CUDA path with a recording driver on a machine with no GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pykernels.native import loaded, native

if TYPE_CHECKING:
    from pykernels import _C
    from pykernels.emulator import EmulationReport

# Set inside `emulate`: a context variable, so other threads and tasks are not affected.
_emulated_device: ContextVar[_C.EmulatedDevice | None] = ContextVar(
    "pykernels_emulated_device", default=None
)


def _find_current_stream() -> Callable[[int], int]:
    """What returns a device's current stream, without making a Stream object where torch can."""
    raw: Callable[[int], int] | None = getattr(torch._C, "_cuda_getCurrentRawStream", None)
    return raw or (lambda index: torch.cuda.current_stream(index).cuda_stream)


_current_stream = _find_current_stream()
_NO_GPU = -1  # the index of no device


def cuda_stream(tensor: Tensor) -> tuple[int, int] | None:
    """The (device index, stream handle) of a call on this tensor; None if it is no CUDA tensor.

    The stream is the current one of the tensor's own device, which need not be the current device.
    """
    if not tensor.is_cuda:
        return None
    index = tensor.get_device()
    return index, _current_stream(index)


def launch_device(tensor: Tensor) -> _C.Device | None:
    """The device that runs kernels on this tensor, or None where torch computes instead.

    Raises:
        RuntimeError: the tensor is on a GPU that cannot run the kernels, or the driver cannot.
    """
    target = cuda_stream(tensor)
    if target is not None:
        gpu: _C.Device = native().CudaDevice(*target)
        return gpu
    return _emulated_device.get()


def is_capturing(tensor: Tensor) -> bool:
    """Whether work on this tensor goes into a CUDA graph: its device's current stream records."""
    if not tensor.is_cuda:
        return False
    with torch.cuda.device(tensor.device):
        return torch.cuda.is_current_stream_capturing()


def require_device(tensor: Tensor) -> None:
    """Raises the error that a launch on this tensor would raise for its device, if any."""
    launch_device(tensor)


def planning_device(
    device: torch.device | str | None,
    fix: str = 'pass the name of the GPU whose constants count, such as "H200", or None',
) -> _C.Device:
    """A GPU; for None the current one, else the emulated one.

    Raises:
        ValueError: the device is neither None nor a CUDA device. The message names the known GPUs
            too, since the callers take their names.
        RuntimeError: there is no GPU, or it cannot run the kernels.
    """
    if device is None:
        if not torch.cuda.is_available():
            return _current_emulated_device()
        device = "cuda"
    index = _cuda_device(device).index
    if index is None:
        if not torch.cuda.is_available():
            raise RuntimeError(f"torch finds no GPU for device {device}; {fix}")
        index = torch.cuda.current_device()
    gpu: _C.Device = native().CudaDevice(index, 0)
    return gpu


def sizing_device(device: torch.device) -> _C.Device:
    """Whose SMs count for tensors on this device: a GPU, or for CPU tensors the emulated one.

    Raises:
        RuntimeError: there is no GPU, or it cannot run the kernels.
    """
    if device.type == "cpu":
        return _current_emulated_device()
    return planning_device(device, fix="pass device='cpu' for CPU tensors")


def _current_emulated_device() -> _C.Device:
    """That of the ``emulate`` block, outside of one a new one."""
    emulated: _C.Device = _emulated_device.get() or native().EmulatedDevice()
    return emulated


def _cuda_device(device: object) -> torch.device:
    """Of a name or a device; a bare index is refused, as torch builds differ in what they make."""
    if isinstance(device, (str, torch.device)):
        try:
            found = torch.device(device)
        except RuntimeError:  # no such device type, or no such index
            found = torch.device("meta")
        if found.type == "cuda":
            return found
    names = ", ".join(gpu.name for gpu in native().gpu_models())
    got = str(device) if isinstance(device, torch.device) else repr(device)
    raise ValueError(
        f'device must be a CUDA device, a name such as "H200", or None, got {got}; known GPUs are '
        f"{names}"
    )


def check_errors(device: torch.device | str | int | None = None) -> None:
    """Waits for the work launched on a GPU and raises an error that a kernel found there.

    Kernels check values that the host does not know, such as offsets and row counts in device
    memory. They leave out what a wrong one concerns, and the op has returned by then. In the
    emulator the op itself raises; so it does on a GPU with the environment variable
    ``PYKERNELS_DEBUG=1``, where every launch is then waited for, outside of a
    graph capture, that does not wait for other ranks itself.

    Args:
        device: a CUDA device or its index; None for all GPUs on which this process has used kernels
            of this package. There is nothing to wait for on other GPUs and on the CPU.

    Raises:
        ValueError: a kernel found a wrong value: which, where, and what is allowed. Raised once;
            with errors on several GPUs, one a call. Or ``device`` is none of the above.
        RuntimeError: the GPU cannot be waited for: a kernel failed, or a stream of this GPU is
            being captured into a CUDA graph.
    """
    index = None if device is None else _device_index(device)
    extension = loaded()
    if extension is not None:
        extension.check_errors(index)


def _device_index(device: object) -> int:
    """The index of a CUDA device, without one the current; _NO_GPU for the CPU."""
    if isinstance(device, int) and not isinstance(device, bool) and device >= 0:
        return device
    if isinstance(device, (str, torch.device)):
        try:
            found = torch.device(device)
        except RuntimeError:  # no such device type, or no such index
            found = torch.device("meta")
        if found.type == "cuda" and found.index is not None:
            return found.index
        if found.type == "cuda":
            return torch.cuda.current_device() if torch.cuda.is_available() else _NO_GPU
        if found.type == "cpu":
            return _NO_GPU
    got = str(device) if isinstance(device, torch.device) else repr(device)
    raise ValueError(f"device must be a CUDA device, its index, the CPU, or None, got {got}")


@contextmanager
def emulate(**options: Any) -> Iterator[EmulationReport]:
    """Runs the real kernels on CPU tensors, in the PTX emulator, inside the ``with`` block.

    Holds for this thread (or task) only. An inner ``emulate`` replaces an outer one until it ends.

    Args:
        options: those of :class:`pykernels.emulator.Emulator`, by name: ``num_sms``, ``seed``,
            ``async_completion``, ``checks``, ``max_warp_instructions`` and the others.

    Yields:
        A report that gathers all launches inside the block.

    Raises:
        ValueError: an option is not as documented there.
        TypeError: there is no such option.
        RuntimeError: the extension or the kernels are not built.
    """
    extension = native()
    from pykernels.emulator import EmulationReport
    from pykernels.emulator.options import checked_options

    for name in options:
        if name not in signature(checked_options).parameters:
            raise TypeError(f"emulate() got an unexpected keyword argument {name!r}")
    device = extension.EmulatedDevice(**checked_options(**options))
    token = _emulated_device.set(device)
    try:
        yield EmulationReport(device)
    finally:
        _emulated_device.reset(token)
