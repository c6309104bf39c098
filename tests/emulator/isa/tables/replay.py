"""Rows of the tables on a GPU: assembled by ptxas, launched through the driver."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from kernel_build.errors import BuildError
from kernel_build.toolkit import find_nvcc

from pykernels.emulator import TensorMapFields

from .row import Array, Map, Row, module_text


def assemble(rows: Sequence[Row], folder: Path) -> bytes:
    """The cubin of a module with the rows' kernels ``row0``, ``row1``...

    Raises:
        AssertionError: ptxas refuses the text; its message follows.
    """
    ptx, cubin = folder / "rows.ptx", folder / "rows.cubin"
    ptx.write_text(module_text(rows))
    ptxas = find_nvcc().with_name("ptxas")
    command = [ptxas, "-arch=sm_90a", "-O1", "-o", cubin, ptx]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:4000]
    return cubin.read_bytes()


def parameters(
    row: Row, addresses: dict[str, int], encode: Callable[[TensorMapFields, int], bytes]
) -> list[bytes]:
    """What each parameter of the row's kernel holds.

    Args:
        row: The row.
        addresses: Of its arrays on the device.
        encode: Makes the 128 bytes of a tensor map, given its fields and the tensor's address.
    """
    arguments = row.arguments()
    arrays = {name: value for name, value in arguments.items() if isinstance(value, np.ndarray)}
    result = []
    for name, value in arguments.items():
        if isinstance(value, np.ndarray):
            result.append(addresses[name].to_bytes(8, "little"))
        elif isinstance(value, Map):
            fields = value.encode(arrays).fields()
            result.append(encode(fields, addresses[value.tensor]))
        elif isinstance(value, bytes):
            result.append(value)
        else:
            size = 8 if isinstance(value, (np.int64, np.uint64)) else 4
            result.append(int(value).to_bytes(size, "little"))
    return result


def image(rows: Sequence[Row], folder: Path) -> bytes:
    """What the driver loads: the cubin, or the text for its own ptxas where there is no other."""
    try:
        find_nvcc()
    except BuildError:
        return module_text(rows).encode() + b"\0"
    return assemble(rows, folder)


class Replay:
    """A module of rows on the current GPU."""

    def __init__(self, module: bytes) -> None:
        import torch
        from cuda.bindings import driver

        torch.cuda.init()
        torch.zeros(1, device="cuda")  # makes torch's context current
        self._driver = driver
        self._module = _checked(driver.cuModuleLoadData(module))

    def run(self, row: Row, index: int) -> dict[str, Array]:
        """The row's arrays after a launch of kernel ``row<index>``."""
        import torch

        arrays = {k: v for k, v in row.arguments().items() if isinstance(v, np.ndarray)}
        copies = {
            name: torch.from_numpy(array.reshape(-1).view(np.uint8)).cuda()
            for name, array in arrays.items()
        }
        addresses = {name: copy.data_ptr() for name, copy in copies.items()}
        self._launch(row, index, parameters(row, addresses, self._encode))
        torch.cuda.synchronize()
        return {
            name: copies[name].cpu().numpy().view(array.dtype).reshape(array.shape)
            for name, array in arrays.items()
        }

    def _launch(self, row: Row, index: int, values: list[bytes]) -> None:
        driver = self._driver
        function = _checked(driver.cuModuleGetFunction(self._module, f"row{index}".encode()))
        buffers = [ctypes.create_string_buffer(value, len(value)) for value in values]
        pointers = (ctypes.c_void_p * len(buffers))(*map(ctypes.addressof, buffers))
        config = driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = row.grid, 1, 1
        config.blockDimX, config.blockDimY, config.blockDimZ = row.block, 1, 1
        config.sharedMemBytes = row.dynamic_smem_bytes
        config.hStream = driver.CUstream(0)
        if row.cluster > 1:
            cluster = driver.CUlaunchAttribute()
            cluster.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
            dims = cluster.value.clusterDim
            dims.x, dims.y, dims.z = row.cluster, 1, 1
            config.attrs = [cluster]
            config.numAttrs = 1
        _checked(driver.cuLaunchKernelEx(config, function, ctypes.addressof(pointers), 0))

    def _encode(self, fields: TensorMapFields, address: int) -> bytes:
        driver = self._driver
        swizzle = driver.CUtensorMapSwizzle
        kinds = {
            "none": swizzle.CU_TENSOR_MAP_SWIZZLE_NONE,
            "32B": swizzle.CU_TENSOR_MAP_SWIZZLE_32B,
            "64B": swizzle.CU_TENSOR_MAP_SWIZZLE_64B,
            "128B": swizzle.CU_TENSOR_MAP_SWIZZLE_128B,
        }
        kind = getattr(driver.CUtensorMapDataType, f"CU_TENSOR_MAP_DATA_TYPE_{fields.type.upper()}")
        encoded = _checked(
            driver.cuTensorMapEncodeTiled(
                kind,
                len(fields.dims),
                address,
                [driver.cuuint64_t(size) for size in fields.dims],
                [driver.cuuint64_t(stride) for stride in fields.strides],
                [driver.cuuint32_t(size) for size in fields.box],
                [driver.cuuint32_t(step) for step in fields.element_strides],
                driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
                kinds[fields.swizzle],
                driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_NONE,
                driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        )
        return ctypes.string_at(encoded.getPtr(), 128)


def _checked(result: tuple[Any, ...]) -> Any:
    error, *values = result
    assert int(error) == 0, f"the driver returned {error!r}"
    return values[0] if values else None
