"""The ops in torch: opcheck, fake tensors, meta tensors, torch.compile, schemas, import."""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import pykernels
from pykernels import reference
from pykernels.testing import FP32_FLOOR, assert_rows_close, gemm_operands
from tests.cases import assert_same_bits
from tests.op_checks import CHECKS, Recorder, one_thread

FP8 = torch.float8_e4m3fn
ALL_CHECKS = ("test_schema", *CHECKS)


def gemm_arguments() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (a, sfa), (b, sfb) = gemm_operands(65, 136, 272)
    return a, sfa, b, sfb


def quantize_outputs(m: int, k: int, block_rows: int) -> dict[str, Tensor]:
    return {
        "q": torch.zeros(m, k).to(FP8),
        "scales": torch.zeros(-(-m // block_rows), -(-k // 128)),
    }


@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float32])
def test_gemm_opcheck(out_dtype: torch.dtype) -> None:
    ops = torch.ops.pykernels.fp8_gemm_nt
    arguments = gemm_arguments()
    torch.library.opcheck(ops.default, (*arguments, out_dtype, None, True), test_utils=CHECKS)
    out = torch.zeros(65, 136, dtype=out_dtype)
    torch.library.opcheck(ops.out, (*arguments, 4, False), {"out": out}, test_utils=CHECKS)


def test_calls_with_and_without_what_has_a_default() -> None:
    """All of them are what an op was called with once, so they stay."""
    ops, arguments = torch.ops.pykernels.fp8_gemm_nt, gemm_arguments()
    expected = ops(*arguments)
    assert expected.dtype == torch.bfloat16
    for options in ((torch.bfloat16,), (torch.bfloat16, None), (torch.bfloat16, 4, False)):
        assert_same_bits(ops(*arguments, *options), expected)
    assert ops(*arguments, torch.float32, None).dtype == torch.float32
    for options in ((), (None,), (None, False), (4, False)):
        out = torch.zeros(65, 136, dtype=torch.bfloat16)
        ops.out(*arguments, *options, out=out)
        assert_same_bits(out, expected)
    invariant = ops(*arguments, torch.float32, None, True)
    out = torch.zeros(65, 136)
    ops.out(*arguments, None, True, out=out)
    assert_same_bits(out, invariant)


def test_the_public_function_passes_every_option() -> None:
    """Of both overloads, on the way through the op: a mode sees the calls."""
    (a, sfa), (b, sfb) = gemm_operands(8, 8, 16)
    out = torch.zeros(8, 8)
    options: dict[str, list[Any]] = {
        "out_dtype": [torch.bfloat16, torch.float32],
        "num_sms": [None, 3],
        "batch_invariant": [False, True],
    }
    for values in itertools.product(*options.values()):
        chosen: dict[str, Any] = dict(zip(options, values, strict=True))
        for output in (None, out):
            with Recorder() as recorder:
                pykernels.fp8_gemm_nt((a, sfa), (b, sfb), out=output, **chosen)
            (call,) = recorder.calls
            expected = chosen | {"out": out} if output is not None else chosen
            if output is not None:
                del expected["out_dtype"]
            assert call == expected


@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float32])
def test_rows_do_not_depend_on_m_in_torch(out_dtype: torch.dtype) -> None:
    """The rows of small calls are those of a large one, also from the middle of it."""
    options: Any = {"out_dtype": out_dtype, "batch_invariant": True}
    (q, sfa), b = gemm_operands(512, 264, 400)
    expected = pykernels.fp8_gemm_nt((q, sfa), b, **options)
    for rows in (slice(0, 1), slice(0, 7), slice(3, 10), slice(0, 64), slice(0, 200)):
        result = pykernels.fp8_gemm_nt((q[rows], sfa[rows]), b, **options)
        assert_same_bits(result, expected[rows])
    assert_rows_close(expected, reference.fp8_gemm_nt((q, sfa), b), floor=FP32_FLOOR)


@pytest.mark.parametrize(("name", "block_rows"), [("quantize_1x128", 1), ("quantize_128x128", 128)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_quantize_opcheck(name: str, block_rows: int, dtype: torch.dtype) -> None:
    ops = getattr(torch.ops.pykernels, name)
    x = torch.randn(65, 272).to(dtype)
    torch.library.opcheck(ops.default, (x, "ue8m0"), test_utils=ALL_CHECKS)
    outputs = quantize_outputs(65, 272, block_rows)
    torch.library.opcheck(ops.out, (x, "fp32"), outputs, test_utils=CHECKS)


def test_schemas() -> None:
    """Additive only: what these say, later versions accept."""
    ops = torch.ops.pykernels
    assert str(ops.fp8_gemm_nt.default._schema) == (
        "pykernels::fp8_gemm_nt(Tensor a, Tensor sfa, Tensor b, Tensor sfb, "
        "ScalarType out_dtype=15, int? num_sms=None, bool batch_invariant=False) -> Tensor"
    )
    assert str(ops.fp8_gemm_nt.out._schema) == (
        "pykernels::fp8_gemm_nt.out(Tensor a, Tensor sfa, Tensor b, Tensor sfb, "
        "int? num_sms=None, bool batch_invariant=False, *, Tensor(a!) out) -> ()"
    )
    for name in ("quantize_1x128", "quantize_128x128"):
        overloads = getattr(ops, name)
        assert str(overloads.default._schema) == (
            f"pykernels::{name}(Tensor x, str scale_fmt) -> (Tensor, Tensor)"
        )
        assert str(overloads.out._schema) == (
            f"pykernels::{name}.out(Tensor x, str scale_fmt, *, Tensor(a!) q, Tensor(b!) scales)"
            " -> ()"
        )


def layer(x: Tensor, weight: Tensor, weight_scales: Tensor) -> Tensor:
    activations = pykernels.quantize_1x128(x)
    return pykernels.fp8_gemm_nt(activations, (weight, weight_scales)) + 1


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile(dynamic: bool, backend: str) -> None:
    weight = pykernels.quantize_128x128(torch.randn(136, 272))
    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend=backend)
    for m in (3, 65):
        x = torch.randn(m, 272)
        assert_same_bits(compiled(x, *weight), layer(x, *weight))


def test_compile_with_out() -> None:
    a, b = gemm_operands(33, 136, 272)

    def double(out: Tensor) -> Tensor:
        return pykernels.fp8_gemm_nt(a, b, out=out) * 2

    out = torch.zeros(33, 136)
    result = torch.compile(double, fullgraph=True, backend="aot_eager")(out)
    expected = pykernels.fp8_gemm_nt(a, b, out_dtype=torch.float32)
    assert_same_bits(out, expected)
    assert_same_bits(result, expected * 2)


@one_thread
def test_inductor() -> None:
    weight = pykernels.quantize_128x128(torch.randn(16, 144))
    x = torch.randn(3, 144)
    result = torch.compile(layer, fullgraph=True, backend="inductor")(x, *weight)
    assert_same_bits(result, layer(x, *weight))


def run_on(device: str) -> list[Tensor]:
    x = torch.empty_strided((65, 272), (280, 1), device=device, dtype=torch.bfloat16)
    weight = torch.empty(136, 272, device=device)
    activations = pykernels.quantize_1x128(x)
    weights = pykernels.quantize_128x128(weight)
    out = torch.empty(65, 136, device=device)
    pykernels.fp8_gemm_nt(activations, weights, out=out)
    product = pykernels.fp8_gemm_nt(activations, weights)
    odd = pykernels.quantize_1x128(torch.empty(7, 8, device=device)[:, :5])
    return [*activations, *weights, out, product, *odd]


def describe(tensors: list[Tensor]) -> list[Any]:
    return [(tensor.shape, tensor.dtype, tensor.stride()) for tensor in tensors]


def test_fake_and_meta_tensors_have_the_shapes_of_real_ones() -> None:
    real = describe(run_on("cpu"))
    assert describe(run_on("meta")) == real
    with FakeTensorMode():
        assert describe(run_on("cpu")) == real


def test_fake_tensors_are_checked_too() -> None:
    with FakeTensorMode(), pytest.raises(ValueError, match="must be a multiple of 8, got 132"):
        layer(torch.empty(3, 272), torch.empty(132, 272).to(FP8), torch.empty(2, 3))


def test_import_is_light() -> None:
    """Under half a second beyond torch, and no extension, table or model library loaded."""
    code = (
        "import torch, time, sys; start = time.perf_counter(); import pykernels; "
        "seconds = time.perf_counter() - start; "
        "heavy = {'pykernels._C', 'rich', 'safetensors', 'tokenizers'}; "
        "print(seconds, sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    seconds, loaded = result.stdout.split(maxsplit=1)
    assert float(seconds) < 0.5
    assert loaded.strip() == "[]"
