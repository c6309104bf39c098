"""Casts to FP8 with fine-grained scales: public functions, ops, and their torch implementation.

The kernels (csrc/quantize) and the torch implementation agree bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pykernels import checks
from pykernels._ops import define
from pykernels.device import launch_device
from pykernels.native import native, tensor_view

_E4M3_MAX = 448.0
_E4M3_NAN = 0x7F
_UE8M0_MIN_BITS = 0x00400000  # 2^-127, the smallest ue8m0 value, as an FP32 subnormal
_EXPONENT_MASK = 0x7F800000
_MANTISSA_MASK = 0x007FFFFF


def quantize_1x128(
    x: Tensor, *, scale_fmt: str = "fp32", out: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Cast to FP8 with one scale per row and 128 columns: ``x ~ q * scale``.

    In each block, ``scale = amax / 448`` and ``q = e4m3(x / scale)``, both divisions rounded to
    nearest, the cast to nearest even and saturating at 448. With ``ue8m0`` the scale is the
    smallest power of two (from 2^-127 up) that is not below ``amax / 448``. A block whose scale
    would be zero (all zero, or amax at most 224 * 2^-149) has scale 1 and q 0; a block with NaN or
    infinity has scale NaN and q NaN (0x7F) throughout. Zeros keep their sign.

    CUDA tensors run on their device and its current stream; CPU tensors run in torch or, inside
    :func:`pykernels.emulate`, in the emulator; all three give the same bits.

    Args:
        x: ``[m, k]``, ``bfloat16``, ``float16`` or ``float32``, row-major.
        scale_fmt: ``"fp32"`` or ``"ue8m0"``; scales are ``float32`` tensors either way.
        out: ``(q, scales)`` to write into (scales of any strides), or None to allocate. They share
            no memory with ``x`` or each other.

    ``x`` and ``q`` start at a multiple of 16 bytes, and so do their rows: where k is no multiple of
    16, the rows of an allocated ``q`` lie the next multiple of 16 bytes apart.

    Returns:
        q ``[m, k]``, ``float8_e4m3fn``, and scales ``[m, ceil(k / 128)]``, ``float32``; ``out``
        where given.

    Raises:
        ValueError: a shape, dtype, stride, alignment, device or format is not as above, or a tensor
            requires grad; nothing has been written.
        RuntimeError: the GPU or its driver cannot run the kernels.

    Reference: :func:`pykernels.reference.quantize_1x128` (DeepSeek-V3 technical report, 3.3.2).
    """
    return _quantize(quantize_1x128, x, scale_fmt, out)


def quantize_128x128(
    x: Tensor, *, scale_fmt: str = "fp32", out: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Cast to FP8 with one scale per block of 128 rows and 128 columns: ``x ~ q * scale``.

    As :func:`quantize_1x128` in everything else.

    Args:
        x: ``[m, k]``, ``bfloat16``, ``float16`` or ``float32``, row-major.
        scale_fmt: ``"fp32"`` or ``"ue8m0"``; scales are ``float32`` tensors either way.
        out: ``(q, scales)`` to write into (scales of any strides), or None to allocate. They share
            no memory with ``x`` or each other.

    Returns:
        q ``[m, k]``, ``float8_e4m3fn``, and scales ``[ceil(m / 128), ceil(k / 128)]``, ``float32``;
        ``out`` where given.

    Raises:
        ValueError: a shape, dtype, stride, alignment, device or format is not as above, or a tensor
            requires grad; nothing has been written.
        RuntimeError: the GPU or its driver cannot run the kernels.

    Reference: :func:`pykernels.reference.quantize_128x128` (DeepSeek-V3 technical report, 3.3.2).
    """
    return _quantize(quantize_128x128, x, scale_fmt, out)


Quantize = Callable[..., tuple[Tensor, Tensor]]
_BLOCK_ROWS: dict[Quantize, int] = {quantize_1x128: 1, quantize_128x128: 128}


def _quantize(
    op: Quantize, x: Tensor, scale_fmt: str, out: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    pair = _check_tensors(op, x, scale_fmt, out)
    allocate, write = _OPS[op.__name__]
    if pair is None:
        q, scales = allocate(x, scale_fmt)
        return q, scales
    q, scales = pair
    write(x, scale_fmt, q=q, scales=scales)
    return q, scales


def _check_tensors(
    op: Quantize, x: Tensor, scale_fmt: str, out: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor] | None:
    """The pair to write into, after the checks of what the op itself does not see."""
    tensors = {"x": checks.check_tensor("x", x)}
    pair = None if out is None else checks.check_pair("out", out)
    if pair is not None:
        tensors |= {"out[0]": pair[0], "out[1]": pair[1]}
    checks.check_no_gradient(op.__name__, tensors)
    checks.check_scale_format(scale_fmt)
    return pair


def _register_check(op: Quantize) -> None:
    def check_call(
        x: Tensor, *, scale_fmt: str = "fp32", out: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        pair = _check_tensors(op, x, scale_fmt, out)
        checks.check_quantize(x, scale_fmt, pair, _BLOCK_ROWS[op])
        return x

    checks.checks_call(op)(check_call)


def _empty_outputs(x: Tensor, block_rows: int) -> tuple[Tensor, Tensor]:
    m, k = x.shape
    row_bytes = checks.ceil_div(k, 16) * 16
    q = torch.empty_strided((m, k), (row_bytes, 1), dtype=torch.float8_e4m3fn, device=x.device)
    blocks = (checks.ceil_div(m, block_rows), checks.ceil_div(k, checks.SCALE_BLOCK))
    return q, torch.empty(blocks, dtype=torch.float32, device=x.device)


def _compute(x: Tensor, scale_fmt: str, block_rows: int, q: Tensor, scales: Tensor) -> None:
    """Runs on whatever computes for these tensors; the arguments have been checked."""
    device = launch_device(x)
    if x.numel() == 0:
        return
    if device is None:
        compute_in_torch(x, scale_fmt, block_rows, q, scales)
    else:
        native().quantize(
            device,
            tensor_view(x),
            tensor_view(q),
            tensor_view(scales),
            block_rows,
            scale_fmt == "ue8m0",
        )


def compute_in_torch(x: Tensor, scale_fmt: str, block_rows: int, q: Tensor, scales: Tensor) -> None:
    """The kernels' arithmetic in torch, with the same bits."""
    m, k = x.shape
    m_blocks, k_blocks = scales.shape
    block_columns = checks.SCALE_BLOCK
    padded = torch.zeros(
        (m_blocks * block_rows, k_blocks * block_columns), dtype=torch.float32, device=x.device
    )
    padded[:m, :k] = x
    blocks = padded.view(m_blocks, block_rows, k_blocks, block_columns)

    amax = blocks.abs().amax(dim=(1, 3))
    finite = torch.isfinite(amax)
    scale = amax / _E4M3_MAX
    if scale_fmt == "ue8m0":
        scale = _round_up_to_power_of_two(scale)
    scale = torch.where(amax / _E4M3_MAX == 0, 1.0, scale)
    scale = torch.where(finite, scale, torch.nan)
    scales.copy_(scale)

    quotients = (blocks / scale[:, None, :, None]).clamp(-_E4M3_MAX, _E4M3_MAX)
    bytes_ = quotients.to(torch.float8_e4m3fn).view(torch.uint8)
    bytes_ = torch.where(finite[:, None, :, None], bytes_, _E4M3_NAN)
    q.view(torch.uint8).copy_(bytes_.view(padded.shape)[:m, :k])


def _round_up_to_power_of_two(scale: Tensor) -> Tensor:
    """The smallest ue8m0 value not below each non-negative finite value."""
    bits = scale.view(torch.int32)
    rounded = (bits + _MANTISSA_MASK) & _EXPONENT_MASK
    return torch.where(bits <= _UE8M0_MIN_BITS, _UE8M0_MIN_BITS, rounded).view(torch.float32)


def _define_ops(name: str, block_rows: int) -> tuple[torch._ops.OpOverload, torch._ops.OpOverload]:
    """Defines both overloads of one op."""

    def allocate(x: Tensor, scale_fmt: str) -> tuple[Tensor, Tensor]:
        checks.check_quantize(x, scale_fmt, None, block_rows)
        q, scales = _empty_outputs(x, block_rows)
        _compute(x, scale_fmt, block_rows, q, scales)
        return q, scales

    def write(x: Tensor, scale_fmt: str, *, q: Tensor, scales: Tensor) -> None:
        checks.check_quantize(x, scale_fmt, (q, scales), block_rows)
        _compute(x, scale_fmt, block_rows, q, scales)

    def fake_allocate(x: Tensor, scale_fmt: str) -> tuple[Tensor, Tensor]:
        checks.check_quantize(x, scale_fmt, None, block_rows, real=False)
        return _empty_outputs(x, block_rows)

    def fake_write(x: Tensor, scale_fmt: str, *, q: Tensor, scales: Tensor) -> None:
        checks.check_quantize(x, scale_fmt, (q, scales), block_rows, real=False)

    return (
        define(
            f"{name}(Tensor x, str scale_fmt) -> (Tensor, Tensor)",
            implementation=allocate,
            fake=fake_allocate,
        ),
        define(
            f"{name}.out(Tensor x, str scale_fmt, *, Tensor(a!) q, Tensor(b!) scales) -> ()",
            implementation=write,
            fake=fake_write,
        ),
    )


_OPS = {op.__name__: _define_ops(op.__name__, rows) for op, rows in _BLOCK_ROWS.items()}
for _op in _BLOCK_ROWS:
    _register_check(_op)
