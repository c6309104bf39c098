"""Argument checks of the public ops: every requirement stands here once.

The ops, their fake implementations and :func:`can_run` all call these functions. A check raises
``ValueError`` with the requirement, the value that broke it and a fix. Order: device, dtype, rank,
shape, stride, values that the host knows (alignment of addresses among them). Nothing is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from numbers import Integral
from reprlib import Repr
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from pykernels.device import require_device
from pykernels.overlap import check_no_overlap

SCALE_BLOCK = 128  # columns (and, for weights, rows) that share a scale factor
MAX_SIZE = 2**31 - 1  # sizes travel to the kernels as 32-bit integers
ALIGNMENT = 16  # bytes: TMA and 16-byte vector accesses
_DEVICE_TYPES = ("cuda", "cpu", "meta")
SCALE_FORMATS = ("fp32", "ue8m0")
NUMBERS = (int, float, np.integer, np.floating)  # what is taken for a real number


class Capability(NamedTuple):
    """Whether a call can run, and if not, why."""

    ok: bool
    reason: str

    def __bool__(self) -> bool:
        return self.ok


def ceil_div(value: int, divisor: int) -> int:
    return (value + divisor - 1) // divisor


def check_pair(name: str, pair: object) -> tuple[Tensor, Tensor]:
    """An operand that is a pair (values, scales) of tensors."""
    if (
        not isinstance(pair, (tuple, list))
        or len(pair) != 2
        or not all(isinstance(tensor, Tensor) for tensor in pair)
    ):
        raise ValueError(
            f"{name} must be a pair (values, scales) of tensors, got {_describe(pair)}; "
            "quantize_1x128 and quantize_128x128 return such pairs"
        )
    return check_tensor(f"{name}[0]", pair[0]), check_tensor(f"{name}[1]", pair[1])


def check_tensor(name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must be a tensor, got {_describe(value)}")
    if value.layout is not torch.strided or value.is_nested:
        kind = "a nested tensor" if value.is_nested else str(value.layout)
        raise ValueError(f"{name} must be a dense tensor, got {kind}; convert it to one")
    return value


def shown(value: object, most: int = 200) -> str:
    """A value for a message: shortened, whatever it is."""
    text = _SHORT.repr(value)
    return text if len(text) <= most else text[: most - 3] + "..."


class _Short(Repr):
    """Prints values that Python and torch do not print, alone and in collections."""

    def repr1(self, x: object, level: int) -> str:
        if isinstance(x, Tensor):  # its storage may be gone, which torch does not check
            return _describe(x)
        if isinstance(x, int) and x.bit_length() > _MOST_BITS:
            return f"an int of {x.bit_length()} bits"
        return str(x) if isinstance(x, Integral) else super().repr1(x, level)


_SHORT = _Short()
_SHORT.maxstring = _SHORT.maxother = 200
_MOST_BITS = 4096  # Python prints no more than 4300 digits


# Any: what a caller has passed.
def items(value: object) -> tuple[Any, ...] | None:
    """What can be iterated as a tuple (an iterator can be read once only); None for all else.

    Strings are values, not collections.
    """
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        return None
    try:
        return tuple(value)
    except (TypeError, RuntimeError):  # arrays without dimensions, tensors without memory
        return None


def check_integer(name: str, value: object, least: int, most: int) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise ValueError(f"{name} must be an integer, got {shown(value)}")
    if int(value) < least:
        raise ValueError(f"{name} must be at least {least}, got {shown(value)}")
    if int(value) > most:
        raise ValueError(f"{name} must be at most {most}, got {shown(value)}")


def check_flag(name: str, value: object) -> None:
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} must be True or False, got {shown(value)}")


def check_no_gradient(op: str, tensors: Mapping[str, Tensor]) -> None:
    """FP8 products and casts have no derivative here; silence would lose gradients."""
    if torch.is_grad_enabled():
        for name, tensor in tensors.items():
            if tensor.requires_grad:
                raise ValueError(
                    f"{op} is not differentiable and {name} requires grad; "
                    f"call it under torch.no_grad() or pass {name}.detach()"
                )


def check_same_device(**tensors: Tensor) -> None:
    (first_name, first), *others = tensors.items()
    if first.device.type not in _DEVICE_TYPES:
        raise ValueError(
            f"{first_name} must be a CUDA or CPU tensor, got one on {first.device}; "
            "move it with .to('cuda') or .to('cpu')"
        )
    for name, tensor in others:
        if tensor.device != first.device:
            raise ValueError(
                f"all tensors must be on one device, got {first_name} on {first.device} and "
                f"{name} on {tensor.device}; move {name} with .to({str(first.device)!r})"
            )


def check_dtype(name: str, tensor: Tensor, *allowed: torch.dtype) -> None:
    if tensor.dtype not in allowed:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise ValueError(
            f"{name} must be {names}, got {str(tensor.dtype).removeprefix('torch.')}; "
            f"{_dtype_fix(name, allowed[0])}"
        )


def has_memory(tensor: Tensor) -> bool:
    """Whether its values and its address can be read: fake and meta tensors have none."""
    return not tensor.is_meta and not isinstance(tensor, FakeTensor)


def check_rank(name: str, tensor: Tensor, rank: int, missing_dim: int = 0) -> None:
    """``missing_dim``: where the dimension goes that a tensor of one too few most likely lacks."""
    if tensor.dim() != rank:
        too_many = tensor.dim() > rank
        fix = f".flatten(0, {-rank})" if too_many else f".unsqueeze({missing_dim})"
        raise ValueError(
            f"{name} must have {rank} dimensions, got {tensor.dim()} (shape {_shape(tensor)}); "
            f"reshape it, for example with {fix}"
        )


def check_shape(name: str, tensor: Tensor, expected: tuple[int, int], meaning: str) -> None:
    if tensor.shape != expected:
        transposed = tuple(reversed(tensor.shape)) == expected
        fix = f"pass {name}.T" if transposed else "slice, pad or allocate it to this shape"
        wanted = f"{meaning} = [{expected[0]}, {expected[1]}]"
        raise ValueError(f"{name} must be {wanted}, got {_shape(tensor)}; {fix}")


def check_sizes(name: str, tensor: Tensor, expected: tuple[int, ...], meaning: str) -> None:
    """As check_shape, of a tensor of any rank."""
    if tensor.shape != expected:
        raise ValueError(
            f"{name} must be {meaning} = {list(expected)}, got {_shape(tensor)}; "
            "slice, pad or allocate it to this shape"
        )


def check_multiple(name: str, value: int, divisor: int, fix: str) -> None:
    if value % divisor != 0:
        raise ValueError(f"{name} must be a multiple of {divisor}, got {value}; {fix}")


def check_size(name: str, value: int, most: int = MAX_SIZE) -> None:
    if value > most:
        raise ValueError(f"{name} must be at most {most}, got {value}; split the call")


def check_rows(name: str, tensor: Tensor) -> None:
    """Row-major: last dimension contiguous, rows a multiple of 16 bytes apart, no overlap."""
    rows, columns = tensor.shape
    if rows == 0 or columns == 0:
        return
    row_stride, column_stride = tensor.stride()
    if columns > 1 and column_stride != 1:
        raise ValueError(
            f"{name} must be row-major (stride 1 in its last dimension), got strides "
            f"({row_stride}, {column_stride}); {_layout_fix(name)}"
        )
    if rows == 1:
        return
    if row_stride < columns:
        raise ValueError(
            f"rows of {name} must not overlap: its row stride must be at least {columns}, got "
            f"{row_stride}; {_layout_fix(name)}"
        )
    row_bytes = row_stride * tensor.element_size()
    if row_bytes % ALIGNMENT != 0:
        raise ValueError(
            f"the row stride of {name} must be a multiple of {ALIGNMENT} bytes, got {row_bytes}; "
            "allocate rows padded to 16 bytes and pass a view of them"
        )


def check_distinct_elements(name: str, tensor: Tensor) -> None:
    """A tensor that is written with any strides: no two elements may share an address."""
    dims = sorted(
        (stride, size)
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
        if size != 1
    )
    if any(size == 0 for _, size in dims):
        return
    extent = 1  # of all dimensions with smaller strides
    for stride, size in dims:
        if stride < extent:
            raise ValueError(
                f"elements of {name} must not overlap, got shape {_shape(tensor)} with strides "
                f"{tuple(tensor.stride())}; allocate it with torch.empty"
            )
        extent += stride * (size - 1)


def check_address(name: str, tensor: Tensor) -> None:
    """Only real tensors have addresses; fake ones are not asked."""
    address = tensor.data_ptr()
    if address % ALIGNMENT != 0 and tensor.numel() > 0:
        raise ValueError(
            f"the data pointer of {name} must be a multiple of {ALIGNMENT} bytes, got "
            f"{address:#x} ({address % ALIGNMENT} past one); start the view at a 16-byte boundary "
            f"or pass {name}.clone()"
        )


def check_num_sms(num_sms: int | None) -> None:
    if num_sms is None:
        return
    if not isinstance(num_sms, (Integral, torch.SymInt)) or isinstance(num_sms, bool):
        raise ValueError(f"num_sms must be an integer, or None for all, got {num_sms!r}")
    if num_sms < 1:
        raise ValueError(f"num_sms must be at least 1, or None for all, got {num_sms}")
    if num_sms > MAX_SIZE:
        raise ValueError(f"num_sms must be at most {MAX_SIZE}, or None for all, got {num_sms}")


def check_batch_invariant(batch_invariant: object) -> None:
    if not isinstance(batch_invariant, bool):
        raise ValueError(f"batch_invariant must be True or False, got {batch_invariant!r}")


def check_out_dtype_argument(out: Tensor | None, out_dtype: object) -> None:
    """A public function's dtype of the result, beside ``out``."""
    if not isinstance(out_dtype, torch.dtype):
        raise ValueError(f"out_dtype must be bfloat16 or float32, got {out_dtype!r}")
    # bfloat16 is the default, so only another dtype is known to be the caller's wish.
    if out is not None and out_dtype not in (torch.bfloat16, out.dtype):
        raise ValueError(
            f"out_dtype is {out_dtype} but out is {out.dtype}; "
            "pass one of the two, or let them agree"
        )


def check_gemm_sizes(m: int, n: int, k: int) -> None:
    check_multiple("n (rows of b)", n, 8, "pad b and its scales with rows and slice the result")
    check_multiple("k (columns of a and b)", k, 16, "pad a and b with columns of zeros")
    for name, size in (("m", m), ("n", n), ("k", k)):
        check_size(name, size)


def check_fp8_gemm_nt(
    a: Tensor,
    sfa: Tensor,
    b: Tensor,
    sfb: Tensor,
    out: Tensor | None,
    out_dtype: torch.dtype,
    num_sms: int | None,
    *,
    real: bool = True,
) -> None:
    """All requirements of fp8_gemm_nt; ``real`` is False where tensors have no memory."""
    named = {"a[0]": a, "a[1]": sfa, "b[0]": b, "b[1]": sfb}
    if out is not None:
        named["out"] = out
    check_same_device(**named)
    for name, tensor in (("a[0]", a), ("b[0]", b)):
        check_dtype(name, tensor, torch.float8_e4m3fn)
    for name, tensor in (("a[1]", sfa), ("b[1]", sfb)):
        check_dtype(name, tensor, torch.float32)
    check_out_dtype(out, out_dtype)
    for name, tensor in named.items():
        check_rank(name, tensor, 2)

    (m, k), (n, b_k) = a.shape, b.shape
    if b_k != k:
        raise ValueError(
            f"a[0] and b[0] must have the same k, got {_shape(a)} and {_shape(b)}; "
            "b is [n, k], a weight as torch.nn.Linear stores it"
        )
    check_gemm_sizes(m, n, k)
    k_blocks = ceil_div(k, SCALE_BLOCK)
    check_shape("a[1]", sfa, (m, k_blocks), "[m, ceil(k / 128)]")
    check_shape("b[1]", sfb, (ceil_div(n, SCALE_BLOCK), k_blocks), "[ceil(n / 128), ceil(k / 128)]")
    if out is not None:
        check_shape("out", out, (m, n), "[m, n]")

    row_major = {"a[0]": a, "b[0]": b} | ({} if out is None else {"out": out})
    for name, tensor in row_major.items():
        check_rows(name, tensor)
    check_num_sms(num_sms)
    if real:
        for name, tensor in row_major.items():
            check_address(name, tensor)
        if out is not None:
            del named["out"]
            check_no_overlap("out", out, named)


def check_quantize(
    x: Tensor,
    scale_fmt: str,
    out: tuple[Tensor, Tensor] | None,
    block_rows: int,
    *,
    real: bool = True,
) -> None:
    """All requirements of quantize_1x128 (``block_rows`` 1) and quantize_128x128 (128)."""
    named = {"x": x}
    if out is not None:
        named |= {"out[0]": out[0], "out[1]": out[1]}
    check_same_device(**named)
    check_dtype("x", x, torch.bfloat16, torch.float16, torch.float32)
    if out is not None:
        check_dtype("out[0]", out[0], torch.float8_e4m3fn)
        check_dtype("out[1]", out[1], torch.float32)
    if block_rows > 1 and x.dim() > 2:
        raise ValueError(
            f"x must have 2 dimensions, got {x.dim()} (shape {_shape(x)}); cast each matrix on its "
            "own, since blocks may not span two, for example with out=(q[g], scales[g])"
        )
    for name, tensor in named.items():
        check_rank(name, tensor, 2)

    m, k = x.shape
    check_size("m", m)
    check_size("k", k)
    if out is not None:
        check_shape("out[0]", out[0], (m, k), "[m, k]")
        blocks = (ceil_div(m, block_rows), ceil_div(k, SCALE_BLOCK))
        rows = "m" if block_rows == 1 else f"ceil(m / {block_rows})"
        check_shape("out[1]", out[1], blocks, f"[{rows}, ceil(k / {SCALE_BLOCK})]")

    check_rows("x", x)
    if out is not None:
        check_rows("out[0]", out[0])
        check_distinct_elements("out[1]", out[1])
    check_scale_format(scale_fmt)
    if real:
        check_address("x", x)
        if out is not None:
            check_address("out[0]", out[0])
            check_no_overlap("out[0]", out[0], {"x": x, "out[1]": out[1]})
            check_no_overlap("out[1]", out[1], {"x": x})


def check_scale_format(scale_fmt: object) -> None:
    if not isinstance(scale_fmt, str) or scale_fmt not in SCALE_FORMATS:
        raise ValueError(f"scale_fmt must be 'fp32' or 'ue8m0', got {scale_fmt!r}")


_CALL_CHECKS: dict[Callable[..., Any], Callable[..., Tensor]] = {}


def checks_call(op: Callable[..., Any]) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Registers what checks a public op's very arguments; it returns the op's first tensor."""

    def register(check: Callable[..., Tensor]) -> Callable[..., Tensor]:
        # Python names the function when arguments are missing or unknown: the op, not its check.
        check.__name__, check.__qualname__ = op.__name__, op.__qualname__
        _CALL_CHECKS[op] = check
        return check

    return register


def can_run(op: Callable[..., Any], *args: Any, **kwargs: Any) -> Capability:
    """Says whether ``op(*args, **kwargs)`` would run here, without running it.

    Args:
        op: a public function of this package, for example :func:`pykernels.fp8_gemm_nt`.
        args: its positional arguments.
        kwargs: its keyword arguments.

    Returns:
        ``Capability(ok, reason)``; the reason is the message of the error that the call raises.

    Raises:
        ValueError: ``op`` is not an op of this package.
    """
    check = next((check for known, check in _CALL_CHECKS.items() if known is op), None)
    if check is None:
        known = ", ".join(sorted(function.__name__ for function in _CALL_CHECKS))
        raise ValueError(f"op must be one of {known}, got {_describe(op)}")
    try:
        require_device(check(*args, **kwargs))
    except (ValueError, TypeError, RuntimeError) as error:
        return Capability(False, str(error))
    return Capability(True, "")


def check_out_dtype(out: Tensor | None, out_dtype: torch.dtype) -> None:
    allowed = (torch.bfloat16, torch.float32)
    if out is not None:
        check_dtype("out", out, *allowed)
    elif out_dtype not in allowed:
        raise ValueError(f"out_dtype must be bfloat16 or float32, got {out_dtype}")


def _dtype_fix(name: str, dtype: torch.dtype) -> str:
    if dtype == torch.float8_e4m3fn:
        return "quantize_1x128 and quantize_128x128 make such values"
    if name.startswith("out"):
        return f"allocate it with dtype={dtype}"
    return f"convert with {name}.to({dtype})"


def _layout_fix(name: str) -> str:
    if name.startswith("out"):
        return "allocate it with torch.empty"
    return f"make it so with {name}.contiguous()"


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {_shape(value)}"
    name = getattr(value, "__name__", None)
    return name if isinstance(name, str) else type(value).__name__
