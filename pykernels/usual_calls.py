"""The usual calls, accepted in a few attribute reads, for the host path's sake.

:mod:`pykernels.checks` states and explains the requirements, one at a time. What is accepted here
those checks accept too, which a property test holds this file to; what is not accepted may still be
right and is theirs to judge.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pykernels.checks import MAX_SIZE
from pykernels.native import DTYPE_NAMES, Matrix

Operands = tuple[Matrix, Matrix, Matrix, Matrix]

_FP8, _BF16, _FP32 = torch.float8_e4m3fn, torch.bfloat16, torch.float32
_FP8_NAME, _FP32_NAME = DTYPE_NAMES[_FP8], DTYPE_NAMES[_FP32]
_STRIDED = torch.strided


def is_usual_gemm_call(
    a: object,
    b: object,
    out: object,
    out_dtype: object,
    num_sms: object,
    batch_invariant: object,
) -> bool:
    """Whether this passes the checks of the public function, of what the op does not see."""
    if type(a) is not tuple or type(b) is not tuple or len(a) != 2 or len(b) != 2:
        return False
    q, sfa = a
    w, sfb = b
    if not (
        isinstance(q, Tensor)
        and isinstance(sfa, Tensor)
        and isinstance(w, Tensor)
        and isinstance(sfb, Tensor)
        and q.layout is _STRIDED
        and sfa.layout is _STRIDED
        and w.layout is _STRIDED
        and sfb.layout is _STRIDED
        and not (q.is_nested or sfa.is_nested or w.is_nested or sfb.is_nested)
    ):
        return False
    if torch.is_grad_enabled() and (
        q.requires_grad or sfa.requires_grad or w.requires_grad or sfb.requires_grad
    ):
        return False
    if num_sms is not None and not (type(num_sms) is int and 0 < num_sms <= MAX_SIZE):
        return False
    if batch_invariant is not False and batch_invariant is not True:
        return False
    if out is None:
        return out_dtype is _BF16 or out_dtype is _FP32
    return (
        isinstance(out, Tensor)
        and out.layout is _STRIDED
        and not (out.is_nested or out.requires_grad)
        and (out_dtype is _BF16 or out_dtype is out.dtype)
    )


def usual_gemm_operands(
    a: Tensor, sfa: Tensor, b: Tensor, sfb: Tensor, num_sms: int | None
) -> Operands | None:
    """The operands as the extension takes them, if they pass the op's checks; no size is 0."""
    device = a.device
    if not (
        a.dtype is _FP8
        and b.dtype is _FP8
        and sfa.dtype is _FP32
        and sfb.dtype is _FP32
        and (a.is_cuda or a.is_cpu)
        and b.device == device
        and sfa.device == device
        and sfb.device == device
        and (num_sms is None or 0 < num_sms <= MAX_SIZE)
    ):
        return None
    try:
        m, k = a.shape
        n, b_k = b.shape
        sfa_rows, sfa_columns = sfa.shape
        sfb_rows, sfb_columns = sfb.shape
    except ValueError:  # not two dimensions
        return None
    if not (
        0 < m <= MAX_SIZE
        and 0 < n <= MAX_SIZE
        and 0 < k <= MAX_SIZE
        and n % 8 == 0
        and k % 16 == 0
        and b_k == k
        and sfa_rows == m
        and sfb_rows == (n + 127) // 128
        and sfa_columns == sfb_columns == (k + 127) // 128
    ):
        return None
    a_pitch, a_step = a.stride()
    b_pitch, b_step = b.stride()
    if m == 1:
        a_pitch = k  # says nothing
    a_address, b_address = a.data_ptr(), b.data_ptr()
    if not (
        a_step == 1
        and b_step == 1
        and a_pitch >= k
        and b_pitch >= k
        and (a_address | b_address | a_pitch | b_pitch) % 16 == 0
    ):
        return None
    sfa_pitch, sfa_step = sfa.stride()
    sfb_pitch, sfb_step = sfb.stride()
    return (
        (a_address, m, k, a_pitch, 1, _FP8_NAME),
        (sfa.data_ptr(), m, sfa_columns, sfa_pitch, sfa_step, _FP32_NAME),
        (b_address, n, k, b_pitch, 1, _FP8_NAME),
        (sfb.data_ptr(), sfb_rows, sfb_columns, sfb_pitch, sfb_step, _FP32_NAME),
    )


def usual_gemm_output(out: Tensor, a: Tensor, operands: Operands) -> Matrix | None:
    """The same of ``out``, which is written."""
    dtype = out.dtype
    if out.device != a.device or not (dtype is _BF16 or dtype is _FP32):
        return None
    m, n = operands[0][1], operands[2][1]
    try:
        rows, columns = out.shape
    except ValueError:
        return None
    pitch, step = out.stride()
    if m == 1:
        pitch = n
    address = out.data_ptr()
    size = 2 if dtype is _BF16 else 4
    if not (
        rows == m
        and columns == n
        and step == 1
        and pitch >= n
        and (address | pitch * size) % 16 == 0
    ):
        return None
    end = address + ((m - 1) * pitch + n) * size
    for start, other_rows, other_columns, other_pitch, other_step, name in operands:
        last = (other_rows - 1) * other_pitch + (other_columns - 1) * other_step
        if start < end and address < start + (last + 1) * (1 if name is _FP8_NAME else 4):
            return None  # their extents meet; their rows need not
    return address, m, n, pitch, 1, DTYPE_NAMES[dtype]
