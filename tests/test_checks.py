"""Wrong arguments: a ValueError with requirement, value and fix, before anything is written."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import pykernels
from pykernels.testing import gemm_operands
from tests.wrong_arguments import Wrong, misaligned, padded, put

FP8 = torch.float8_e4m3fn
M, N, K = 40, 136, 272


def gemm_arguments() -> dict[str, Any]:
    (a, sfa), (b, sfb) = gemm_operands(M, N, K)
    out = torch.full((M, N), 7.0, dtype=torch.bfloat16)
    return {"a": a, "sfa": sfa, "b": b, "sfb": sfb, "out": out, "out_dtype": torch.bfloat16}


def call_gemm(function: Callable[..., Any], arguments: dict[str, Any], *first: Any) -> Any:
    rest = dict(arguments)
    a, b = (rest.pop("a"), rest.pop("sfa")), (rest.pop("b"), rest.pop("sfb"))
    return function(*first, a, b, **rest)


WRONG_GEMM = [
    Wrong(
        "device of b", put(b=lambda v: v["b"].to("meta")), "one device, got a[0] on cpu and b[0]"
    ),
    Wrong("device of out", put(out=lambda v: v["out"].to("meta")), "out on meta"),
    Wrong("dtype of a", put(a=lambda v: v["a"].bfloat16()), "a[0] must be float8_e4m3fn, got bf"),
    Wrong("e5m2", put(b=lambda v: v["b"].to(torch.float8_e5m2)), "b[0] must be float8_e4m3fn"),
    Wrong("dtype of sfa", put(sfa=lambda v: v["sfa"].half()), "a[1] must be float32, got float16"),
    Wrong("dtype of sfb", put(sfb=lambda v: v["sfb"].double()), "b[1] must be float32"),
    Wrong("dtype of out", put(out=lambda v: v["out"].half()), "out must be bfloat16 or float32"),
    Wrong(
        "out_dtype", put(out=lambda v: None, out_dtype=lambda v: torch.half), "out_dtype must be"
    ),
    Wrong("out against out_dtype", put(out_dtype=lambda v: torch.float32), "out is torch.bfloat16"),
    Wrong("rank of a", put(a=lambda v: v["a"][None]), "a[0] must have 2 dimensions, got 3"),
    Wrong("rank of sfb", put(sfb=lambda v: v["sfb"][0]), "b[1] must have 2 dimensions, got 1"),
    Wrong("k of b", put(b=lambda v: v["b"][:, :256]), "same k, got [40, 272] and [136, 256]"),
    Wrong("n", put(b=lambda v: v["b"][:132]), "n (rows of b) must be a multiple of 8, got 132"),
    Wrong(
        "k",
        put(a=lambda v: v["a"][:, :264], b=lambda v: v["b"][:, :264]),
        "k (columns of a and b) must be a multiple of 16, got 264",
    ),
    Wrong(
        "m of sfa", put(sfa=lambda v: v["sfa"][:39]), "[m, ceil(k / 128)] = [40, 3], got [39, 3]"
    ),
    Wrong("k of sfa", put(sfa=lambda v: v["sfa"][:, :2]), "= [40, 3], got [40, 2]"),
    Wrong("transposed sfa", put(sfa=lambda v: v["sfa"].T), "= [40, 3], got [3, 40]"),
    Wrong("rows of sfb", put(sfb=lambda v: v["sfb"][:1]), "= [2, 3], got [1, 3]"),
    Wrong("shape of out", put(out=lambda v: v["out"][:39]), "out must be [m, n] = [40, 136]"),
    Wrong(
        "column-major a",
        put(a=lambda v: v["a"].T.contiguous().T),
        "a[0] must be row-major (stride 1 in its last dimension), got strides (1, 40)",
    ),
    Wrong("row stride of b", put(b=lambda v: padded(v["b"], 280)), "multiple of 16 bytes, got 280"),
    Wrong(
        "overlapping rows of a",
        put(a=lambda v: v["a"][:1].expand(M, K)),
        "rows of a[0] must not overlap: its row stride must be at least 272, got 0",
    ),
    Wrong("row stride of out", put(out=lambda v: padded(v["out"], 140)), "16 bytes, got 280"),
    Wrong("address of a", put(a=lambda v: misaligned(v["a"])), "(1 past one)"),
    Wrong("address of out", put(out=lambda v: misaligned(v["out"])), "(2 past one)"),
    Wrong("num_sms", put(num_sms=lambda v: 0), "num_sms must be at least 1"),
    Wrong("huge num_sms", put(num_sms=lambda v: 2**63), "num_sms must be at most 2147483647"),
    Wrong("num_sms no integer", put(num_sms=lambda v: 1.5), "num_sms must be an integer"),
    Wrong("num_sms a bool", put(num_sms=lambda v: True), "num_sms must be an integer, or None"),
    Wrong("batch_invariant None", put(batch_invariant=lambda v: None), "True or False, got None"),
    Wrong("batch_invariant 1", put(batch_invariant=lambda v: 1), "batch_invariant must be True or"),
    Wrong(
        "batch_invariant a tensor",
        put(batch_invariant=lambda v: torch.tensor(True)),
        "True or False, got tensor(True)",
    ),
    Wrong("out_dtype None", put(out_dtype=lambda v: None), "bfloat16 or float32, got None"),
    Wrong("out_dtype text", put(out_dtype=lambda v: "bfloat16"), "float32, got 'bfloat16'"),
    Wrong("sparse a", put(a=lambda v: v["sfa"].to_sparse()), "a[0] must be a dense tensor, got"),
    Wrong("sparse sfb", put(sfb=lambda v: v["sfb"].to_sparse()), "b[1] must be a dense"),
    Wrong(
        "gradient of sfa",
        put(sfa=lambda v: v["sfa"].clone().requires_grad_()),
        "a[1] requires grad; call it under torch.no_grad() or pass a[1].detach()",
    ),
    Wrong("gradient of out", put(out=lambda v: v["out"].clone().requires_grad_()), "out requires"),
    Wrong("1-d a", put(a=lambda v: v["a"][0]), "for example with .unsqueeze(0)"),
    Wrong("a's scales to transpose", put(sfa=lambda v: v["sfa"].T), "; pass a[1].T"),
    Wrong("column-major out", put(out=lambda v: v["out"].T.contiguous().T), "with torch.empty"),
    Wrong("out over a", put(a=lambda v: v["out"].view(FP8)), "out must not share memory with a[0]"),
    Wrong("a no tensor", put(a=lambda v: None), "a must be a pair (values, scales) of tensors"),
    Wrong("out no tensor", put(out=lambda v: 3), "out must be a tensor, got int"),
]


@pytest.mark.parametrize("wrong", WRONG_GEMM, ids=str)
def test_gemm_refuses(wrong: Wrong) -> None:
    arguments = gemm_arguments()
    arguments.update(wrong.change(arguments))
    with pytest.raises(ValueError, match=re.escape(wrong.message)) as error:
        call_gemm(pykernels.fp8_gemm_nt, arguments)
    out = arguments["out"]
    if isinstance(out, Tensor) and out.device.type == "cpu" and wrong.name != "dtype of out":
        assert not bool((out != 7).logical_and(out != 0).any())
    capability = call_gemm(pykernels.can_run, arguments, pykernels.fp8_gemm_nt)
    assert not capability
    assert capability.reason == str(error.value)


def test_results_may_alternate_with_inputs_in_one_buffer() -> None:
    """Packed rows, values and scales side by side: nothing is shared, so nothing is refused."""
    packed = torch.empty(M, 288, dtype=torch.uint8)
    q, scales = packed[:, :K].view(FP8), packed[:, K:284].view(torch.float32)
    x = torch.randn(M, K)
    pykernels.quantize_1x128(x, out=(q, scales))
    wanted = pykernels.quantize_1x128(x)
    assert torch.equal(q.view(torch.uint8), wanted[0].view(torch.uint8))
    assert torch.equal(scales, wanted[1])
    with pytest.raises(ValueError, match=r"out\[0\] must not share memory with out\[1\]"):
        pykernels.quantize_1x128(x, out=(q, packed[:, K - 4 : 280].view(torch.float32)))


def test_casts_in_place_are_refused() -> None:
    x = torch.randn(M, K)
    q = x.view(torch.uint8)[:, :K].view(FP8)
    with pytest.raises(ValueError, match=r"out\[0\] must not share memory with x"):
        pykernels.quantize_1x128(x, out=(q, torch.empty(M, 3)))


@pytest.mark.parametrize("arguments", [(), (1, 2, 3)])
def test_can_run_names_the_op_that_lacks_arguments(arguments: tuple[Any, ...]) -> None:
    capability = pykernels.can_run(pykernels.fp8_gemm_nt, *arguments)
    assert not capability
    assert capability.reason.startswith("fp8_gemm_nt() ")
    with pytest.raises(TypeError) as error:
        pykernels.fp8_gemm_nt(*arguments)
    assert capability.reason == str(error.value)


def test_can_run_takes_any_object_for_an_op() -> None:
    with pytest.raises(ValueError, match=r"op must be one of fp8_gemm_nt, .*, got list"):
        pykernels.can_run([])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"seed": 2**64}, f"seed must be at most {2**64 - 1}"),
        ({"seed": "a"}, "seed must be an integer, got 'a'"),
        ({"seed": True}, "seed must be an integer, got True"),
        ({"num_sms": 2**40}, "num_sms must be at most 2147483647"),
        ({"num_sms": 1.5}, "num_sms must be an integer, got 1.5"),
        ({"checks": [1]}, "checks must be"),
        ({"checks": None}, "checks must be"),
        ({"async_completion": None}, "async_completion must be"),
        ({"max_warp_instructions": 0}, "max_warp_instructions must be at least 1, got 0"),
    ],
)
def test_emulators_refuse_options(options: dict[str, Any], message: str) -> None:
    from pykernels.emulator import Emulator

    with pytest.raises(ValueError, match=re.escape(message)):
        Emulator(**options)
    with pytest.raises(ValueError, match=re.escape(message)), pykernels.emulate(**options):
        pass


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"m": 1, "n": 7, "k": 16}, "n (rows of b) must be a multiple of 8, got 7"),
        ({"m": 1, "n": 8, "k": 15}, "k (columns of a and b) must be a multiple of 16, got 15"),
        ({"m": 1.5, "n": 8, "k": 16}, "m must be an integer, got 1.5"),
        ({"m": 2**63, "n": 8, "k": 16}, "m must be at most 2147483647"),
        (
            {"m": 1, "n": 8, "k": 16, "num_sms": 2**31},
            "num_sms must be at most 2147483647, or None",
        ),
        ({"m": 1, "n": 8, "k": 16, "device": "gpu0"}, "device must be a CUDA device, a name such"),
    ],
)
def test_explain_config_refuses(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        pykernels.explain_config(pykernels.fp8_gemm_nt, **sizes)


def test_gemm_needs_pairs() -> None:
    (a, _), b = gemm_operands(M, N, K)
    with pytest.raises(ValueError, match="quantize_1x128 and quantize_128x128 return such pairs"):
        pykernels.fp8_gemm_nt(a, b)  # type: ignore[arg-type]


def test_gradients_are_refused_loudly() -> None:
    x = torch.ones(8, 128, requires_grad=True)
    with pytest.raises(ValueError, match=r"x requires grad; .*no_grad"):
        pykernels.quantize_1x128(x)
    a, b = gemm_operands(M, N, K)
    a[1].requires_grad_()
    with pytest.raises(ValueError, match=r"fp8_gemm_nt is not differentiable and a\[1\] requires"):
        pykernels.fp8_gemm_nt(a, b)
    with torch.no_grad():
        pykernels.fp8_gemm_nt(a, b)
        pykernels.quantize_1x128(x)


def quantize_arguments() -> dict[str, Any]:
    return {
        "x": torch.ones(M, K),
        "scale_fmt": "fp32",
        "q": torch.zeros(M, K).to(FP8),
        "scales": torch.full((M, 3), 7.0),
    }


WRONG_QUANTIZE = [
    Wrong("scale_fmt None", put(scale_fmt=lambda v: None), "must be 'fp32' or 'ue8m0', got None"),
    Wrong("sparse x", put(x=lambda v: v["x"].to_sparse()), "x must be a dense tensor"),
    Wrong(
        "gradient of scales",
        put(scales=lambda v: v["scales"].clone().requires_grad_()),
        "out[1] requires grad",
    ),
    Wrong("device of q", put(q=lambda v: v["q"].to("meta")), "x on cpu and out[0] on meta"),
    Wrong(
        "dtype of x", put(x=lambda v: v["x"].double()), "x must be bfloat16 or float16 or float32"
    ),
    Wrong(
        "dtype of q", put(q=lambda v: v["q"].to(torch.float8_e5m2)), "out[0] must be float8_e4m3fn"
    ),
    Wrong("dtype of scales", put(scales=lambda v: v["scales"].half()), "out[1] must be float32"),
    Wrong("rank of x", put(x=lambda v: v["x"][0]), "x must have 2 dimensions, got 1"),
    Wrong("shape of q", put(q=lambda v: v["q"][:, :256]), "out[0] must be [m, k] = [40, 272]"),
    Wrong("shape of scales", put(scales=lambda v: v["scales"].T), "[m, ceil(k / 128)] = [40, 3]"),
    Wrong("column-major x", put(x=lambda v: v["x"].T.contiguous().T), "x must be row-major"),
    Wrong("row stride of x", put(x=lambda v: padded(v["x"], 273)), "16 bytes, got 1092"),
    Wrong("row stride of q", put(q=lambda v: padded(v["q"], 273)), "16 bytes, got 273"),
    Wrong(
        "scales overlap", put(scales=lambda v: torch.ones(1, 3).expand(M, 3)), "must not overlap"
    ),
    Wrong("scale_fmt", put(scale_fmt=lambda v: "e8m0"), "'fp32' or 'ue8m0', got 'e8m0'"),
    Wrong("address of x", put(x=lambda v: misaligned(v["x"])), "(4 past one)"),
    Wrong("address of q", put(q=lambda v: misaligned(v["q"])), "(1 past one)"),
    Wrong("x no tensor", put(x=lambda v: [1.0]), "x must be a tensor, got list"),
    Wrong("out no pair", put(q=lambda v: None), "out must be a pair"),
]


@pytest.mark.parametrize("wrong", WRONG_QUANTIZE, ids=str)
def test_quantize_refuses(wrong: Wrong) -> None:
    arguments = quantize_arguments()
    arguments.update(wrong.change(arguments))
    options = {"scale_fmt": arguments["scale_fmt"], "out": (arguments["q"], arguments["scales"])}
    with pytest.raises(ValueError, match=re.escape(wrong.message)) as error:
        pykernels.quantize_1x128(arguments["x"], **options)
    capability = pykernels.can_run(pykernels.quantize_1x128, arguments["x"], **options)
    assert capability == (False, str(error.value))


def test_scales_of_weights_have_their_own_shape() -> None:
    out = (torch.zeros(M, K).to(FP8), torch.zeros(M, 3))
    with pytest.raises(ValueError, match=re.escape("[ceil(m / 128), ceil(k / 128)] = [1, 3]")):
        pykernels.quantize_128x128(torch.ones(M, K), out=out)


def test_what_can_run() -> None:
    a, b = gemm_operands(M, N, K)
    assert pykernels.can_run(pykernels.fp8_gemm_nt, a, b) == (True, "")
    assert pykernels.can_run(pykernels.quantize_128x128, torch.ones(3, 8)[:, :5])
    with pytest.raises(ValueError, match=r"op must be one of fp8_gemm_nt, .*, got relu"):
        pykernels.can_run(torch.relu, a)


def test_unused_strides_do_not_matter() -> None:
    """A row or column that stands alone has a stride that nothing uses."""
    a, b = gemm_operands(1, 8, 16)
    odd = torch.empty_strided((1, 16), (3, 1), dtype=torch.uint8).view(FP8)
    odd.copy_(a[0])
    expected = pykernels.fp8_gemm_nt(a, b)
    assert torch.equal(pykernels.fp8_gemm_nt((odd, a[1]), b), expected)
