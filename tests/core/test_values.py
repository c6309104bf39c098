"""The host path's values: tensor views, launches, the registry of kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pykernels import _C
from pykernels.native import native, tensor_view

KERNEL = {
    "name": "a_test_kernel",
    "family": "a_test_family",
    "config": {"block_m": 64},
    "threads": 128,
    "registers": 32,
    "dynamic_shared_bytes": 1024,
    "param_bytes": 64,
    "ptx_path": "/nonexistent/a.ptx",
    "cubin_path": "/nonexistent/a.cubin",
}


def test_tensor_view_shows_what_it_was_made_of() -> None:
    view = _C.TensorView(4096, (2, 3), (8, 1), "bfloat16")
    assert (view.address, view.sizes, view.strides, view.dtype) == (
        4096,
        (2, 3),
        (8, 1),
        "bfloat16",
    )
    assert repr(view) == "TensorView(bfloat16[2, 3] with strides [8, 1])"


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), max_size=5),
    st.sampled_from([torch.uint8, torch.bfloat16, torch.float32, torch.int64]),
)
def test_spanned_bytes(dims: list[tuple[int, int]], dtype: torch.dtype) -> None:
    """The distance from the first byte to behind the last one that any index reaches."""
    sizes, strides = [size for size, _ in dims], [stride for _, stride in dims]
    name = str(dtype).removeprefix("torch.")
    storage = torch.arange(1 + sum(4 * stride for stride in strides))
    reached = torch.as_strided(storage, sizes, strides)
    elements = int(reached.max()) + 1 if reached.numel() else 0
    assert _C.TensorView(16, sizes, strides, name).spanned_bytes == elements * dtype.itemsize


@pytest.mark.parametrize(
    ("sizes", "strides", "dtype", "message"),
    [
        ((1,) * 6, (1,) * 6, "uint8", "at most 5 dimensions, got 6"),
        ((2, 3), (1,), "uint8", "2 dimensions must have as many strides, got 1"),
        ((2,), (-1,), "uint8", "must not be negative, got size 2 and stride -1 in dimension 0"),
        ((-2,), (1,), "uint8", "must not be negative, got size -2"),
        ((2,), (1,), "complex64", "dtype must be one of float8_e4m3fn, .*, got complex64"),
    ],
)
def test_tensor_view_refuses(sizes: Any, strides: Any, dtype: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _C.TensorView(0, sizes, strides, dtype)


def test_launch_in_words() -> None:
    x, q = torch.zeros(4, 128), torch.zeros(4, 128, dtype=torch.uint8).view(torch.float8_e4m3fn)
    views = [tensor_view(tensor) for tensor in (x, q, torch.zeros(4, 1))]
    launch = native().make_quantize_launch(*views, 1, False)
    assert launch.memory[0][:2] == (x.data_ptr(), 2048)
    words = repr(launch)
    assert words.startswith("Launch(quantize_1x128, grid=(")
    assert f"argument_bytes={len(launch.arguments)}" in words
    assert f"{launch.memory[0][2]}: 2048" in words


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("name", "", "must have a name"),
        ("threads", 0, "multiple of 32 from 32 to 1024, got 0"),
        ("threads", 100, "got 100"),
        ("threads", 1056, "got 1056"),
        ("ptxas", "11.8", "ptxas must be a version from 12.0, got 11.8"),
        ("ptxas", "new", "got new"),
    ],
)
def test_registry_refuses(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _C.register_kernel(**(KERNEL | {field: value}))
    assert "a_test_kernel" not in {info.name for info in _C.registered_kernels()}


def test_unknown_kernel_names_the_known_ones() -> None:
    device = native().EmulatedDevice()
    with pytest.raises(
        RuntimeError, match=r"no kernel named nothing .*known kernels: .*quantize_1x128"
    ):
        device.max_active_clusters("nothing", (1, 1, 1))


@pytest.mark.parametrize(("ptxas", "driver"), [("12.9", 12000), ("13.0", 13000)])
def test_a_cubin_needs_a_driver_of_its_major_version(ptxas: str, driver: int) -> None:
    kernels = {info.name: info for info in native().registered_kernels()}
    info = kernels["quantize_128x128"]
    fields = {field: getattr(info, field) for field in KERNEL}
    try:
        _C.register_kernel(**fields, ptxas=ptxas)
        (changed,) = (i for i in _C.registered_kernels() if i.name == info.name)
        assert changed.min_driver_version == driver
        assert changed.config == info.config
    finally:
        _C.register_kernel(**fields, ptxas=f"{info.min_driver_version // 1000}.0")
