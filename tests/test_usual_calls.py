"""What the host path accepts at once, the checks accept too; and the usual calls are among it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from torch import Tensor

import pykernels
from pykernels import checks
from pykernels.native import Matrix, tensor_view
from pykernels.testing import gemm_operands
from pykernels.usual_calls import is_usual_gemm_call, usual_gemm_operands, usual_gemm_output

FP8, BF16, FP32 = torch.float8_e4m3fn, torch.bfloat16, torch.float32
BUFFER = torch.zeros(1 << 20, dtype=torch.uint8)
TENSORS = ("a", "sfa", "b", "sfb", "out")

# What can be odd about one tensor: a change to its parts, made from those of a usual one.
ODD_PARTS: dict[str, list[Callable[[dict[str, Any]], Any]]] = {
    "rows": [lambda part: part["rows"] + 1, lambda part: 0, lambda part: 1],
    "columns": [
        lambda part: part["columns"] + 16,
        lambda part: part["columns"] + 1,
        lambda part: 0,
    ],
    "dtype": [
        lambda part: torch.float8_e5m2,
        lambda part: torch.float16,
        lambda part: FP32,
        lambda part: BF16,
        lambda part: FP8,
    ],
    "pitch": [
        lambda part: part["columns"],
        lambda part: part["columns"] + 1,
        lambda part: part["pitch"] + 8,
        lambda part: part["pitch"] + 16,
        lambda part: max(part["pitch"] - 16, 0),
        lambda part: 1,
    ],
    "step": [lambda part: 0, lambda part: 2, lambda part: part["rows"]],
    "start": [
        *(lambda part, by=by: part["start"] + by for by in (1, 4, 8, 16, 264, 1000, 4096)),
        *(lambda part, by=by: part["start"] - by for by in (256, 1000)),
        # into the tensors before it, and the second row of scales
        *(lambda part, by=by: part["start"] - (by << 17) for by in (1, 2, 3, 4)),
        lambda part: part["start"] - (3 << 17) + 32,
    ],
    "form": [
        lambda part: Tensor.t,
        lambda part: lambda tensor: tensor[None],
        lambda part: Tensor.flatten,
        lambda part: lambda tensor: tensor.to("meta"),
    ],
}
ODD_NUMBERS = {"n": [12, 4], "k": [136, 8], "num_sms": [1, 132, 0, -1, 2**31, 2**63]}

Oddity = tuple[str, str, int]  # tensor (or "" for a number), part, which of its odd values
ODDITIES: list[Oddity] = [
    (name, part, i) for name in TENSORS for part, odd in ODD_PARTS.items() for i in range(len(odd))
] + [("", number, i) for number, odd in ODD_NUMBERS.items() for i in range(len(odd))]
SIZES = [(m, n, k) for m in (1, 2, 130) for n in (8, 136) for k in (16, 256, 272)]


def make_call(
    sizes: tuple[int, int, int], out_dtype: torch.dtype, oddities: Sequence[Oddity]
) -> dict[str, Any]:
    """A usual call, but for the oddities."""
    numbers = dict(zip(("m", "n", "k"), sizes, strict=True)) | {"num_sms": None}
    for tensor, number, i in oddities:
        if not tensor:
            numbers[number] = ODD_NUMBERS[number][i]
    m, n, k, num_sms = numbers.values()
    k_blocks = -(-k // 128)
    shapes = {
        "a": (m, k, FP8),
        "sfa": (m, k_blocks, FP32),
        "b": (n, k, FP8),
        "sfb": (-(-n // 128), k_blocks, FP32),
        "out": (m, n, out_dtype),
    }
    call: dict[str, Any] = {}
    for index, (name, (rows, columns, dtype)) in enumerate(shapes.items()):
        part = {"rows": rows, "columns": columns, "dtype": dtype}
        part |= {"pitch": -(-columns // 16) * 16, "step": 1, "form": lambda tensor: tensor}
        part["start"] = (index + 2) << 17
        changes = {
            field: ODD_PARTS[field][i](part) for owner, field, i in oddities if owner == name
        }
        call[name] = make_tensor(**(part | changes))
    return call | {"num_sms": num_sms}


def make_tensor(
    rows: int,
    columns: int,
    dtype: torch.dtype,
    pitch: int,
    step: int,
    start: int,
    form: Callable[[Tensor], Tensor],
) -> Tensor:
    """A view of the buffer, which starts at a multiple of 16 bytes."""
    tail = BUFFER[start - start % dtype.itemsize :]
    whole = tail[: tail.numel() - tail.numel() % 8].view(dtype)
    return form(whole.as_strided((rows, columns), (pitch, step)))


def stated(view: Matrix) -> tuple[Any, ...]:
    """What a view says: the stride of a dimension of size 1 says nothing."""
    address, rows, columns, pitch, step, dtype = view
    return address, rows, columns, pitch if rows > 1 else 0, step if columns > 1 else 0, dtype


def accepted(call: dict[str, Any]) -> tuple[bool, bool]:
    """Whether operands and output are accepted at once; if so, the checks must agree."""
    a, sfa, b, sfb, out, num_sms = call.values()
    operands = usual_gemm_operands(a, sfa, b, sfb, num_sms)
    if operands is None:
        return False, False
    checks.check_fp8_gemm_nt(a, sfa, b, sfb, None, BF16, num_sms)
    for view, tensor in zip(operands, (a, sfa, b, sfb), strict=True):
        assert stated(view) == stated(tensor_view(tensor))
    output = usual_gemm_output(out, a, operands)
    if output is None:
        return True, False
    checks.check_fp8_gemm_nt(a, sfa, b, sfb, out, out.dtype, num_sms)
    assert stated(output) == stated(tensor_view(out))
    return True, True


@pytest.mark.parametrize("out_dtype", [BF16, FP32])
def test_usual_operands_are_accepted(out_dtype: torch.dtype) -> None:
    for sizes in SIZES:
        assert accepted(make_call(sizes, out_dtype, [])) == (True, True)


@pytest.mark.parametrize("oddity", ODDITIES, ids=str)
def test_one_oddity(oddity: Oddity) -> None:
    for sizes in SIZES:
        for out_dtype in (BF16, FP32):
            accepted(make_call(sizes, out_dtype, [oddity]))


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(SIZES),
    st.sampled_from([BF16, FP32]),
    st.lists(st.sampled_from(ODDITIES), min_size=2, max_size=3),
)
def test_several_oddities(
    sizes: tuple[int, int, int], out_dtype: torch.dtype, oddities: list[Oddity]
) -> None:
    event(f"accepted {accepted(make_call(sizes, out_dtype, oddities))}")


def nested() -> Tensor:
    """Its layout is the strided one."""
    return torch.nested.nested_tensor([torch.zeros(2)], layout=torch.strided)


ODD_TENSORS: list[Callable[[], Any]] = [
    lambda: torch.zeros(2, 2).to_sparse(),
    nested,
    lambda: torch.zeros(2, 2, requires_grad=True),
    lambda: 3,
]
ODD_PAIRS: list[Callable[[list[Any]], Any]] = [
    list,
    iter,
    lambda pair: (pair[0],),
    lambda pair: (*pair, pair[0]),
    lambda pair: None,
]
ODD_OPTIONS: dict[str, list[Any]] = {
    "out_dtype": [FP32, torch.float16, None, "bfloat16"],
    "num_sms": [1, 0, -1, 2**31, 1.5, True, "1"],
    "batch_invariant": [True, None, 1, 0],
    "grad": [False],
}
ODD_ARGUMENTS = [
    *((name, i) for name in TENSORS for i in range(len(ODD_TENSORS))),
    *((name, i) for name in ("pair a", "pair b") for i in range(len(ODD_PAIRS))),
    *((name, i) for name, odd in ODD_OPTIONS.items() for i in range(len(odd))),
]


def call_accepted(oddities: Sequence[tuple[str, int]], has_out: bool) -> bool:
    """Whether the public function goes on at once; if so, its checks must agree."""
    tensors = dict.fromkeys(TENSORS, torch.zeros(2, 2))
    pairs: dict[str, Callable[[list[Any]], Any]] = {"pair a": tuple, "pair b": tuple}
    options: dict[str, Any] = {"out_dtype": BF16, "num_sms": None, "batch_invariant": False}
    grad = True
    for name, i in oddities:
        if name in tensors:
            tensors[name] = ODD_TENSORS[i]()
        elif name in pairs:
            pairs[name] = ODD_PAIRS[i]
        elif name == "grad":
            grad = False
        else:
            options[name] = ODD_OPTIONS[name][i]
    a = pairs["pair a"]([tensors["a"], tensors["sfa"]])
    b = pairs["pair b"]([tensors["b"], tensors["sfb"]])
    arguments = (a, b, tensors["out"] if has_out else None, *options.values())
    with torch.set_grad_enabled(grad):
        usual = is_usual_gemm_call(*arguments)
        if usual:
            pykernels.gemm._check_arguments(*arguments)
    return usual


@pytest.mark.parametrize("has_out", [False, True])
@pytest.mark.parametrize("oddity", ODD_ARGUMENTS, ids=str)
def test_one_odd_argument(oddity: tuple[str, int], has_out: bool) -> None:
    """Without gradients a second oddity meets other conditions."""
    call_accepted([oddity], has_out)
    call_accepted([oddity, ("grad", 0)], has_out)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(ODD_ARGUMENTS), min_size=2, max_size=3), st.booleans())
def test_several_odd_arguments(oddities: list[tuple[str, int]], has_out: bool) -> None:
    event(f"accepted {call_accepted(oddities, has_out)}")


@pytest.mark.parametrize("m", [1, 7, 128])
@pytest.mark.parametrize("out_dtype", [BF16, FP32])
def test_usual_calls_are_accepted(m: int, out_dtype: torch.dtype) -> None:
    (a, sfa), (b, sfb) = gemm_operands(256, 136, 272)
    wide = torch.zeros(m, 256, dtype=out_dtype)
    outputs = (torch.zeros(m, 136, dtype=out_dtype), wide[:, :136], wide[:, 16:152])
    for scales in (sfa[:m], sfa.T.contiguous().T[:m], sfa[-1:].expand(m, 3)):
        for out in outputs:
            assert is_usual_gemm_call((a[:m], scales), (b, sfb), out, out_dtype, 4, True)
            operands = usual_gemm_operands(a[:m], scales, b, sfb, 4)
            assert operands is not None
            assert usual_gemm_output(out, a, operands) is not None
        assert is_usual_gemm_call((a[:m], scales), (b, sfb), None, out_dtype, None, False)


def test_tensors_without_memory_are_left_to_the_checks() -> None:
    call = make_call((2, 8, 16), BF16, [])
    tensors = [call[name].to("meta") for name in TENSORS[:4]]
    assert usual_gemm_operands(*tensors, None) is None


def test_empty_and_huge_sizes_are_left_to_the_checks() -> None:
    for sizes in ((0, 8, 16), (2, 0, 16), (2, 8, 0)):
        assert accepted(make_call(sizes, BF16, [])) == (False, False)
    for sizes in ((2**31, 8, 16), (2, 2**31, 16), (2, 8, 2**31)):
        assert usual_gemm_operands(*huge(*sizes), None) is None
    assert usual_gemm_operands(*huge(2, 8, 2**31 - 16), None) is not None


def huge(m: int, n: int, k: int) -> list[Any]:
    """What is read of tensors that no memory would hold."""

    def tensor(rows: int, columns: int, dtype: torch.dtype) -> Any:
        return SimpleNamespace(
            device=torch.device("cpu"),
            dtype=dtype,
            is_cuda=False,
            is_cpu=True,
            shape=(rows, columns),
            stride=lambda: (columns, 1),
            data_ptr=lambda: 0,
        )

    blocks = -(-k // 128)
    operands = ((m, k, FP8), (m, blocks, FP32), (n, k, FP8), (-(-n // 128), blocks, FP32))
    return [tensor(*operand) for operand in operands]


def test_the_stride_of_a_lone_row_says_nothing() -> None:
    for i in range(len(ODD_PARTS["pitch"])):
        for name in ("a", "out"):
            call = make_call((1, 136, 272), BF16, [(name, "pitch", i)])
            assert accepted(call) == (True, True)
