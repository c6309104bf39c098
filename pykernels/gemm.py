"""The FP8 GEMM with fine-grained scales: public function, op, and its torch implementation."""

from __future__ import annotations

import torch
from torch import Tensor

from pykernels import checks
from pykernels._ops import define
from pykernels.device import launch_device
from pykernels.native import DTYPE_NAMES, Matrix, native, tensor_view
from pykernels.usual_calls import is_usual_gemm_call, usual_gemm_operands, usual_gemm_output

_OUT_DTYPES = (torch.bfloat16, torch.float32)


def fp8_gemm_nt(
    a: tuple[Tensor, Tensor],
    b: tuple[Tensor, Tensor],
    *,
    out: Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    num_sms: int | None = None,
    batch_invariant: bool = False,
) -> Tensor:
    """Return ``dequant(a) @ dequant(b).T``, accumulated in FP32.

    Every 128 columns of k are summed from zero and added to the total as ``fmaf(sum, sfa * sfb,
    total)`` in ascending order, so the bits do not depend on the tile sizes. Small m may be
    computed with k split over a cluster: the totals of the parts are added in ascending order.
    NaN in a value or a scale reaches exactly the results that use it.

    CUDA tensors run on their device and its current stream; CPU tensors run in torch, whose FP32
    sums differ from the tensor core's in the last bits, or inside :func:`pykernels.emulate` in the
    emulator, which computes the GPU's bits.

    Args:
        a: ``[m, k]``, ``float8_e4m3fn``, row-major; ``[m, ceil(k / 128)]``, ``float32``, any
            strides: one scale per row and 128 columns. k is a multiple of 16.
        b: ``[n, k]``, ``float8_e4m3fn``, row-major; ``[ceil(n / 128), ceil(k / 128)]``,
            ``float32``, any strides: one scale per 128x128 block. n is a multiple of 8.
        out: ``[m, n]``, ``bfloat16`` or ``float32``, row-major, to write into; None to allocate.
        out_dtype: ``bfloat16`` or ``float32``, of the result allocated when ``out`` is None.
        num_sms: how many SMs the kernel may take; None for all.
        batch_invariant: takes no schedule that splits k: the bits of a row do not depend on the
            other rows or on m. Kernel and cluster shape still change with m, but all that do not
            split k give the same bits.

    Values and ``out`` start at a multiple of 16 bytes, and so do their rows. ``out`` shares no
    memory with the inputs.

    Returns:
        ``[m, n]``, row-major: ``out`` where given. m = 0 or n = 0: empty; k = 0: zeros.

    Raises:
        ValueError: a shape, dtype, stride, alignment or device is not as above, or a tensor
            requires grad; nothing has been written.
        RuntimeError: the GPU or its driver cannot run the kernels.

    Reference: :func:`pykernels.reference.fp8_gemm_nt` (DeepSeek-V3 report, section 3.3.2).
    """
    if not is_usual_gemm_call(a, b, out, out_dtype, num_sms, batch_invariant):
        _check_arguments(a, b, out, out_dtype, num_sms, batch_invariant)
    a_values, sfa = a
    b_values, sfb = b
    # torch takes 4 us to convert a dtype, so what the schemas have as defaults is not passed.
    usual = num_sms is None and batch_invariant is False
    if out is None:
        result: Tensor
        if usual and out_dtype is torch.bfloat16:
            result = _OP(a_values, sfa, b_values, sfb)
        else:
            result = _OP(a_values, sfa, b_values, sfb, out_dtype, num_sms, batch_invariant)
        return result
    if usual:
        _OP_OUT(a_values, sfa, b_values, sfb, out=out)
    else:
        _OP_OUT(a_values, sfa, b_values, sfb, num_sms, batch_invariant, out=out)
    return out


@checks.checks_call(fp8_gemm_nt)
def _check_call(
    a: tuple[Tensor, Tensor],
    b: tuple[Tensor, Tensor],
    *,
    out: Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    num_sms: int | None = None,
    batch_invariant: bool = False,
) -> Tensor:
    _check_arguments(a, b, out, out_dtype, num_sms, batch_invariant)
    checks.check_fp8_gemm_nt(*a, *b, out, out_dtype, num_sms)
    return a[0]


def _check_arguments(
    a: tuple[Tensor, Tensor],
    b: tuple[Tensor, Tensor],
    out: Tensor | None,
    out_dtype: torch.dtype,
    num_sms: int | None,
    batch_invariant: bool,
) -> None:
    """The checks of what the op itself does not see."""
    a_values, sfa = checks.check_pair("a", a)
    b_values, sfb = checks.check_pair("b", b)
    tensors = {"a[0]": a_values, "a[1]": sfa, "b[0]": b_values, "b[1]": sfb}
    if out is not None:
        tensors["out"] = checks.check_tensor("out", out)
    checks.check_no_gradient("fp8_gemm_nt", tensors)
    checks.check_out_dtype_argument(out, out_dtype)
    checks.check_num_sms(num_sms)
    checks.check_batch_invariant(batch_invariant)


def _allocate(
    a: Tensor,
    sfa: Tensor,
    b: Tensor,
    sfb: Tensor,
    out_dtype: torch.dtype = torch.bfloat16,
    num_sms: int | None = None,
    batch_invariant: bool = False,
) -> Tensor:
    operands = usual_gemm_operands(a, sfa, b, sfb, num_sms)
    if operands is None or out_dtype not in _OUT_DTYPES:
        checks.check_fp8_gemm_nt(a, sfa, b, sfb, None, out_dtype, num_sms)
        out = torch.empty(a.size(0), b.size(0), dtype=out_dtype, device=a.device)
        _compute(a, sfa, b, sfb, num_sms, batch_invariant, out)
        return out
    m, n = operands[0][1], operands[2][1]
    out = torch.empty(m, n, dtype=out_dtype, device=a.device)
    output = out.data_ptr(), m, n, n, 1, DTYPE_NAMES[out_dtype]
    _compute(a, sfa, b, sfb, num_sms, batch_invariant, out, (*operands, output))
    return out


def _write(
    a: Tensor,
    sfa: Tensor,
    b: Tensor,
    sfb: Tensor,
    num_sms: int | None = None,
    batch_invariant: bool = False,
    *,
    out: Tensor,
) -> None:
    operands = usual_gemm_operands(a, sfa, b, sfb, num_sms)
    output = None if operands is None else usual_gemm_output(out, a, operands)
    if operands is None or output is None:
        checks.check_fp8_gemm_nt(a, sfa, b, sfb, out, out.dtype, num_sms)
        _compute(a, sfa, b, sfb, num_sms, batch_invariant, out)
    else:
        _compute(a, sfa, b, sfb, num_sms, batch_invariant, out, (*operands, output))


def _compute(
    a: Tensor,
    sfa: Tensor,
    b: Tensor,
    sfb: Tensor,
    num_sms: int | None,
    batch_invariant: bool,
    out: Tensor,
    views: tuple[Matrix, ...] | None = None,
) -> None:
    """Runs on whatever computes for these tensors; the arguments have been checked.

    ``views`` are all five as the extension takes them; given where they are usual, so no size is 0.
    """
    device = launch_device(a)
    if views is None:
        if out.numel() == 0:
            return
        if a.size(1) == 0:
            out.zero_()
            return
        views = tensor_view(a), tensor_view(sfa), tensor_view(b), tensor_view(sfb), tensor_view(out)
    if device is None:
        compute_in_torch(a, sfa, b, sfb, out, batch_invariant=batch_invariant)
    else:
        native().fp8_gemm_nt(device, *views, num_sms, None, None, batch_invariant)


def compute_in_torch(
    a: Tensor, sfa: Tensor, b: Tensor, sfb: Tensor, out: Tensor, *, batch_invariant: bool = False
) -> None:
    """The kernel's order of operations in torch: each k tile of 128 in FP32, promoted in FP32.

    How torch orders the sums of a product depends on m. FP64 holds the sum of 128 FP8 products
    exactly (multiples of 2^-18 below 2^25), so there no order shows.
    """
    block = checks.SCALE_BLOCK
    exact = torch.float64 if batch_invariant else torch.float32
    total = torch.zeros(out.shape, dtype=torch.float32, device=out.device)
    b_block = torch.arange(b.size(0), device=b.device) // block
    for k_tile in range(sfa.size(1)):
        columns = slice(k_tile * block, (k_tile + 1) * block)
        acc = (a[:, columns].to(exact) @ b[:, columns].to(exact).T).float()
        # Two roundings: whether one operation would fuse them depends on an element's place.
        total += acc * (sfa[:, k_tile, None] * sfb[b_block, k_tile])
    out.copy_(total)


def _fake_allocate(
    a: Tensor,
    sfa: Tensor,
    b: Tensor,
    sfb: Tensor,
    out_dtype: torch.dtype = torch.bfloat16,
    num_sms: int | None = None,
    batch_invariant: bool = False,
) -> Tensor:
    checks.check_fp8_gemm_nt(a, sfa, b, sfb, None, out_dtype, num_sms, real=False)
    return a.new_empty((a.size(0), b.size(0)), dtype=out_dtype)


def _fake_write(
    a: Tensor,
    sfa: Tensor,
    b: Tensor,
    sfb: Tensor,
    num_sms: int | None = None,
    batch_invariant: bool = False,
    *,
    out: Tensor,
) -> None:
    checks.check_fp8_gemm_nt(a, sfa, b, sfb, out, out.dtype, num_sms, real=False)


# torch hands over no argument that has its schema's default.
_OP = define(
    "fp8_gemm_nt(Tensor a, Tensor sfa, Tensor b, Tensor sfb, ScalarType out_dtype=bfloat16,"
    " int? num_sms=None, bool batch_invariant=False) -> Tensor",
    implementation=_allocate,
    fake=_fake_allocate,
)
_OP_OUT = define(
    "fp8_gemm_nt.out(Tensor a, Tensor sfa, Tensor b, Tensor sfb, int? num_sms=None,"
    " bool batch_invariant=False, *, Tensor(a!) out) -> ()",
    implementation=_write,
    fake=_fake_write,
)
