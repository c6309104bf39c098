"""Fp8Linear against the op, the reference and the Linear that it replaces."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pykernels
from pykernels import reference
from pykernels.nn import Fp8Linear
from pykernels.testing import FP32_FLOOR, assert_rows_close
from tests.cases import assert_same_bits


def linear(bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(272, 136, bias=bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_forward(dtype: torch.dtype, bias: bool) -> None:
    plain = linear(bias)
    module = Fp8Linear.from_float(plain)
    x = torch.randn(3, 5, 272).to(dtype)
    with torch.no_grad():
        result = module(x)
    assert result.shape == (3, 5, 136)
    assert result.dtype == dtype
    activations = reference.quantize_1x128(x.view(15, 272))
    exact = reference.fp8_gemm_nt(activations, (module.weight, module.weight_scale_inv))
    if bias:
        exact += plain.bias.detach().double()
    floor = FP32_FLOOR if dtype == torch.float32 else 4e-3  # product and sum are rounded each
    assert_rows_close(result.view(15, 136), exact, floor=floor)


def test_close_to_the_linear_that_it_replaces() -> None:
    plain = linear()
    x = torch.randn(64, 272)
    with torch.no_grad():
        difference = Fp8Linear.from_float(plain)(x) - plain(x)
        assert float(difference.norm() / plain(x).norm()) < 0.05


def test_state_and_compile() -> None:
    module = Fp8Linear.from_float(linear())
    assert not list(module.parameters())
    copy = Fp8Linear(
        torch.zeros(136, 272).to(torch.float8_e4m3fn), torch.ones(2, 3), torch.ones(136)
    )
    copy.load_state_dict(module.state_dict())
    x = torch.randn(2, 7, 272)
    with torch.no_grad():
        expected = module(x)
        assert_same_bits(copy(x), expected)
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        assert_same_bits(compiled(x), expected)


def test_no_rows() -> None:
    with torch.no_grad():
        assert Fp8Linear.from_float(linear())(torch.empty(0, 4, 272)).shape == (0, 4, 136)


def test_on_the_emulator() -> None:
    module = Fp8Linear.from_float(linear())
    x = torch.randn(2, 3, 272)
    with torch.no_grad(), pykernels.emulate() as report:
        result = module(x)
    report.raise_if_findings()
    names = [name for name, _ in report.launches]
    assert names[0] == "quantize_1x128"
    assert names[1].startswith("fp8_gemm_nt_")
    with torch.no_grad():
        assert torch.allclose(result, module(x), rtol=0, atol=1e-3)
