"""The extension module, loaded when a kernel is first needed, with all kernels registered.

``import pykernels`` does not need it: CPU tensors outside ``emulate`` never come here.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import torch
from torch import Tensor

KERNELS_DIR = Path(__file__).resolve().parent / "kernels"
_KERNEL_FIELDS = (
    "name",
    "family",
    "config",
    "threads",
    "registers",
    "dynamic_shared_bytes",
    "param_bytes",
    "ptxas",
)
_ROW_ELEMENTS = 16  # of any element type these fill a multiple of 16 bytes
DTYPE_NAMES = {
    dtype: str(dtype).removeprefix("torch.")
    for dtype in (
        torch.float8_e4m3fn,
        torch.uint8,
        torch.bfloat16,
        torch.float16,
        torch.float32,
        torch.int32,
        torch.int64,
    )
}

# Address, rows, columns, row stride, column stride (in elements), dtype: functions of the extension
# that take a TensorView take this too, and sooner than a TensorView is made.
Matrix: TypeAlias = tuple[int, int, int, int, int, str]
Parts: TypeAlias = tuple[int, tuple[int, ...], tuple[int, ...], str]  # as well: any rank

_lock = threading.Lock()
_loaded: ModuleType | None = None


def native() -> Any:
    """``pykernels._C`` with all kernels of the package registered; the first call loads both.

    Raises:
        RuntimeError: the extension or the kernels are not built or cannot be read.
    """
    global _loaded
    if _loaded is None:
        with _lock:
            if _loaded is None:
                _loaded = _load()
    return _loaded


def loaded() -> Any | None:
    """What :func:`native` returns, if it has been called; no kernel has run before."""
    return _loaded


def _load() -> ModuleType:
    try:
        from pykernels import _C
    except ImportError as error:
        raise RuntimeError(
            f"the extension pykernels._C cannot be loaded ({error}); build it with "
            "`pip install --no-build-isolation --no-deps -e .` in the repository"
        ) from error
    for metadata in kernel_metadata():
        path = KERNELS_DIR / str(metadata["name"])
        _C.register_kernel(
            **{field: metadata[field] for field in _KERNEL_FIELDS},
            ptx_path=str(path.with_suffix(".ptx")),
            cubin_path=str(path.with_suffix(".cubin")),
        )
    return _C


def kernel_metadata() -> list[dict[str, Any]]:
    """The metadata files of the package's kernels, in the order of their names.

    Raises:
        RuntimeError: there are none.
    """
    paths = sorted(KERNELS_DIR.glob("*.json"))
    if not paths:
        raise RuntimeError(
            f"no kernels in {KERNELS_DIR}; build them with "
            "`pip install --no-build-isolation --no-deps -e .` in the repository"
        )
    return [json.loads(path.read_text()) for path in paths]


def tensor_view(tensor: Tensor) -> Matrix:
    """The matrix as the host path in C++ takes it.

    The stride of a dimension of size 1 says nothing; it becomes one that every kernel accepts.
    """
    rows, columns = tensor.shape
    row_stride, column_stride = tensor.stride()
    if rows == 1:
        row_stride = -(-columns // _ROW_ELEMENTS) * _ROW_ELEMENTS
    if columns == 1:
        column_stride = 1
    dtype = DTYPE_NAMES[tensor.dtype]
    return tensor.data_ptr(), rows, columns, row_stride, column_stride, dtype


def tensor_parts(tensor: Tensor) -> Parts:
    """A tensor of any rank as the host path in C++ takes it.

    As :func:`tensor_view` of its matrices; there the stride of a dimension of size 1 becomes what
    would follow the dimensions behind it.
    """
    return tensor.data_ptr(), tensor.shape, tensor.stride(), DTYPE_NAMES[tensor.dtype]


def strided_view(tensor: Tensor) -> Any:
    """What the host path in C++ makes of :func:`tensor_parts`."""
    return native().as_tensor_view(tensor_parts(tensor))
