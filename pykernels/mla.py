"""MLA decode attention over a paged latent cache: public function, op, torch implementation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pykernels import checks, device, mla_decode_checks
from pykernels._ops import define
from pykernels.device import launch_device
from pykernels.mla_cache_checks import FP8_ROPE_OFFSET, FP8_SCALE_OFFSET, LATENT_DIM
from pykernels.mla_checks import NUM_PLAN_TENSORS, MlaPlan, check_result_pair, plan_tensors
from pykernels.mla_decode_checks import DecodeCall
from pykernels.mla_plan import mla_decode_plan, mla_update_plan
from pykernels.native import native, tensor_parts
from pykernels.usual_decode_calls import (
    is_usual_decode_call,
    usual_decode_outputs,
    usual_decode_parts,
)


def mla_decode(
    q: Tensor | tuple[Tensor, Tensor],
    kv_cache: Tensor,
    block_table: Tensor,
    cache_seqlens: Tensor,
    *,
    softmax_scale: float,
    causal: bool = True,
    plan: MlaPlan | None = None,
    batch_invariant: bool = False,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Attend with each query row to its request's tokens in a paged cache of latent vectors.

    A cached token of 576 columns, 512 of the latent and 64 rotated, is the key of all heads, and
    its first 512 columns are their value: ``out = softmax(softmax_scale * q @ tokens.T) @
    tokens[:, :512]``. The query is absorbed: ``q_nope @ w_uk`` of each head, then ``q_rope``.

    Lengths and pages are read on the device, so a call with a plan can be captured into a CUDA
    graph. A wrong value there makes ``out`` and ``lse`` of the request NaN and is raised by
    :func:`pykernels.check_errors`; the emulator and torch on the CPU raise at once.

    Args:
        q: ``[batch, seqlen_q, num_heads, 576]``, ``bfloat16``, or the pair ``(q_nope [..., 512],
            q_rope [..., 64])``. The last dimension is contiguous, the strides of the others are any
            multiples of 16 bytes. 1 to 128 heads. Messages call the parts of one tensor ``q_nope``
            and ``q_rope`` too.
        kv_cache: ``[num_pages, page_size, 1, 576]``, ``bfloat16``; or ``[num_pages, page_size, 1,
            656]``, ``uint8`` or ``float8_e4m3fn``: a token's 512 values in e4m3, 4 FP32 scale
            factors of 128 values each, 64 BF16 rotated ones. The page size is a power of two from 1
            to 256. Whatever lies in slots and pages that no request uses is not read.
        block_table: ``[batch, max_pages]``, ``int32``: the pages of each request, in order. Only
            those that its tokens need are read. Requests may share pages.
        cache_seqlens: ``[batch]``, ``int32``: the tokens that each request has in the cache, those
            of this step included; 0 for none.
        softmax_scale: by what scores are multiplied, a finite number above 0.
        causal: the ``seqlen_q`` tokens of ``q`` are the request's last ones, and token i sees the
            first ``cache_seqlens - (seqlen_q - 1 - i)`` tokens of the cache. If False, each sees
            all of them.
        plan: what :func:`pykernels.mla_decode_plan` returned, updated by
            :func:`pykernels.mla_update_plan` with these ``cache_seqlens``: once a step, for all
            layers. None to make one for this call, which allocates memory.
        batch_invariant: without a plan, to make one with which the bits of a request's result do
            not depend on the other requests. With a plan, True demands that it is such a plan.
        out: the pair ``(out, lse)`` to write into, or None to allocate it. ``out`` has strides as
            ``q_nope``, ``lse`` any; they share no memory with the inputs, the plan or each other.

    ``q``, the cache and ``out`` start at a multiple of 16 bytes.

    Returns:
        out ``[batch, seqlen_q, num_heads, 512]``, ``bfloat16``, and lse ``[batch, num_heads,
        seqlen_q]``, ``float32``: the natural logarithm of the sum of the row's exponentials. A row
        that sees no token has zeros and -inf. Nothing runs where batch or seqlen_q is 0.

    Raises:
        ValueError: a shape, dtype, stride, alignment, device or option is not as above, the plan is
            one for other sizes, or a tensor requires grad; nothing has been written. On the CPU
            also for a wrong length or page, and for a plan that was updated for other lengths.
        RuntimeError: the GPU or its driver cannot run the kernels, or a CUDA graph is captured
            without a plan.

    Reference: :func:`pykernels.reference.mla_decode` (DeepSeek-V2 report, section 2.1).
    """
    q_nope, q_rope = _split_query(q)
    inputs = q_nope, q_rope, kv_cache, block_table, cache_seqlens
    if is_usual_decode_call(inputs, softmax_scale, causal, plan, batch_invariant, out):
        assert plan is not None
        if out is None:
            result, lse = _OP(*inputs, *plan[:NUM_PLAN_TENSORS], softmax_scale, causal)
            return result, lse
        _OP_OUT(*inputs, *plan[:NUM_PLAN_TENSORS], softmax_scale, causal, out=out[0], lse=out[1])
        return out
    call = DecodeCall(*inputs, plan, softmax_scale, causal)
    pair = _check_arguments(call, batch_invariant, out)
    if plan is None:
        real = checks.has_memory(q_nope)
        mla_decode_checks.check_mla_decode(call, pair, real=real)
        if not real or q_nope.numel() == 0:  # nothing runs, so nothing need be planned
            return _empty_outputs(q_nope) if pair is None else pair
        _check_not_capturing(q_nope)
        plan = _plan_for_call(call, batch_invariant)
    of_plan = plan_tensors(plan)
    tensors = (*call.inputs.values(), *of_plan.values())
    options = (float(softmax_scale), bool(causal))
    if pair is None:
        result, lse = _OP(*tensors, *options)
        return result, lse
    _OP_OUT(*tensors, *options, out=pair[0], lse=pair[1])
    return pair


def _split_query(q: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    if type(q) is tuple and len(q) == 2:  # what is in it is checked with all other tensors
        return q
    return mla_decode_checks.check_query(q)


@checks.checks_call(mla_decode)
def _check_call(
    q: Tensor | tuple[Tensor, Tensor],
    kv_cache: Tensor,
    block_table: Tensor,
    cache_seqlens: Tensor,
    *,
    softmax_scale: float,
    causal: bool = True,
    plan: MlaPlan | None = None,
    batch_invariant: bool = False,
    out: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    q_nope, q_rope = mla_decode_checks.check_query(q)
    call = DecodeCall(
        q_nope, q_rope, kv_cache, block_table, cache_seqlens, plan, softmax_scale, causal
    )
    pair = _check_arguments(call, batch_invariant, out)
    real = checks.has_memory(q_nope)
    mla_decode_checks.check_mla_decode(call, pair, real=real)
    if plan is None:
        _check_not_capturing(q_nope)
    computes = q_nope.size(0) > 0 and q_nope.size(1) > 0
    if real and computes and q_nope.device.type == "cpu" and launch_device(q_nope) is None:
        mla_decode_checks.check_values(call)
    return q_nope


def _check_arguments(
    call: DecodeCall, batch_invariant: bool, out: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor] | None:
    """The pair to write into, after the checks of what the op itself does not see."""
    pair = None if out is None else check_result_pair("out", out)
    tensors = call.inputs
    for name, tensor in tensors.items():
        checks.check_tensor(name, tensor)
    if pair is not None:
        tensors |= {"out[0]": pair[0], "out[1]": pair[1]}
    checks.check_no_gradient("mla_decode", tensors)
    mla_decode_checks.check_softmax_scale(call.softmax_scale)
    checks.check_flag("causal", call.causal)
    mla_decode_checks.check_plan_argument(call.plan, batch_invariant)
    return pair


def _check_not_capturing(q_nope: Tensor) -> None:
    if device.is_capturing(q_nope):
        raise RuntimeError(
            "mla_decode without a plan allocates one, which a CUDA graph cannot capture; make it "
            "ahead with mla_decode_plan and pass plan="
        )


def _plan_for_call(call: DecodeCall, batch_invariant: bool) -> MlaPlan:
    """A plan for a checked call that has rows."""
    plan = mla_decode_plan(
        *call.q_nope.shape[:3],
        batch_invariant=batch_invariant,
        max_seqlen=max(call.max_length, 1),
        device=call.q_nope.device,
    )
    mla_update_plan(plan, call.cache_seqlens)
    return plan


def _empty_outputs(q_nope: Tensor) -> tuple[Tensor, Tensor]:
    batch, seqlen_q, num_heads, _ = q_nope.shape
    out = q_nope.new_empty((batch, seqlen_q, num_heads, LATENT_DIM))
    return out, q_nope.new_empty((batch, num_heads, seqlen_q), dtype=torch.float32)


def _compute(call: DecodeCall, out: Tensor, lse: Tensor) -> None:
    """Runs on whatever computes for these tensors; the arguments have been checked."""
    target = launch_device(call.q_nope)
    if out.numel() == 0:
        return
    if target is None:
        mla_decode_checks.check_values(call)
        decode_in_torch(call, out, lse)
        return
    assert call.plan is not None
    inputs = call.inputs
    if call.kv_cache.dtype == torch.uint8:
        inputs["kv_cache"] = call.kv_cache.view(torch.float8_e4m3fn)  # one name for FP8 tokens
    plan = plan_tensors(call.plan)
    tensors = (*inputs.values(), *plan.values(), out, lse)
    native().mla_decode(target, *map(tensor_parts, tensors), call.softmax_scale, call.causal)


def decode_in_torch(call: DecodeCall, out: Tensor, lse: Tensor) -> None:
    """One request after the other, in FP32; the lengths and pages are right."""
    seqlen_q, num_heads = out.shape[1:3]
    for request, length in enumerate(call.cache_seqlens.tolist()):
        if length == 0:
            out[request] = 0
            lse[request] = -torch.inf
            continue
        tokens = _gather_tokens(call.kv_cache, call.block_table[request], length)
        query = torch.cat([call.q_nope[request], call.q_rope[request]], dim=-1).float()
        scores = (query.flatten(0, 1) @ tokens.T * call.softmax_scale).unflatten(0, (seqlen_q, -1))
        if call.causal and seqlen_q > 1:
            position = torch.arange(length, device=scores.device)
            visible = length - seqlen_q + 1 + torch.arange(seqlen_q, device=scores.device)
            scores.masked_fill_((position >= visible[:, None])[:, None], -torch.inf)
        greatest = scores.amax(dim=-1, keepdim=True)
        greatest.masked_fill_(greatest == -torch.inf, 0)  # of rows that see nothing
        weights = scores.sub_(greatest).exp_()
        total = weights.sum(dim=-1, keepdim=True)
        lse[request] = (greatest + total.log()).squeeze(-1).T
        total.masked_fill_(total == 0, 1)
        values = weights.flatten(0, 1) @ tokens[:, :LATENT_DIM]
        out[request] = values.view(seqlen_q, num_heads, LATENT_DIM) / total


def _gather_tokens(kv_cache: Tensor, pages: Tensor, length: int) -> Tensor:
    """``[length, 576]``, FP32: a request's tokens with the values that the kernel computes with."""
    used = pages[: checks.ceil_div(length, kv_cache.size(1))]
    if kv_cache.dtype == torch.bfloat16:
        return kv_cache[used].flatten(0, 2)[:length].float()
    stored = kv_cache.view(torch.uint8)[used].flatten(0, 2)[:length]
    latent = stored[:, :LATENT_DIM].view(torch.float8_e4m3fn).float()
    scales = stored[:, FP8_SCALE_OFFSET:FP8_ROPE_OFFSET].view(torch.float32)
    product = latent.view(length, -1, checks.SCALE_BLOCK) * scales[..., None]
    rope = stored[:, FP8_ROPE_OFFSET:].view(torch.bfloat16).float()
    return torch.cat([product.flatten(1).bfloat16().float(), rope], dim=1)


def _call_of(inputs: tuple[Any, ...]) -> DecodeCall:
    """From the op's arguments. Whether the plan is invariant shows in its sizes."""
    *tensors, softmax_scale, causal = inputs
    operands, of_plan = tensors[:-NUM_PLAN_TENSORS], tensors[-NUM_PLAN_TENSORS:]
    items, part_offsets, requests = (tensor.numel() for tensor in of_plan[:3])
    num_borders = part_offsets - 2  # between parts, each of which may cut a request in two
    batch_invariant = bool(items != requests + 4 * num_borders)
    plan = MlaPlan._make([*of_plan, batch_invariant])
    return DecodeCall._make([*operands, plan, softmax_scale, causal])


def _define(real: bool) -> tuple[Any, Any]:
    """Both overloads: for tensors with memory, or for fake ones."""

    def allocate(*inputs: Any) -> tuple[Tensor, Tensor]:
        parts = usual_decode_parts(*inputs[:-1]) if real else None
        if parts is not None and (target := launch_device(inputs[0])) is not None:
            out, lse = _empty_outputs(inputs[0])
            results = tensor_parts(out), tensor_parts(lse)
            native().mla_decode(target, *parts, *results, *inputs[-2:])
            return out, lse
        call = _call_of(inputs)
        mla_decode_checks.check_mla_decode(call, None, real=real)
        out, lse = _empty_outputs(call.q_nope)
        if real:
            _compute(call, out, lse)
        return out, lse

    def write(*inputs: Any, out: Tensor, lse: Tensor) -> None:
        parts = usual_decode_parts(*inputs[:-1]) if real else None
        if (
            parts is not None
            and (results := usual_decode_outputs(out, lse, inputs[0], parts)) is not None
            and (target := launch_device(inputs[0])) is not None
        ):
            native().mla_decode(target, *parts, *results, *inputs[-2:])
            return
        call = _call_of(inputs)
        mla_decode_checks.check_mla_decode(call, (out, lse), real=real)
        if real:
            _compute(call, out, lse)

    return allocate, write


_allocate, _write = _define(real=True)
_fake_allocate, _fake_write = _define(real=False)
_INPUTS = (
    "Tensor q_nope, Tensor q_rope, Tensor kv_cache, Tensor block_table, Tensor cache_seqlens, "
    "Tensor items, Tensor part_offsets, Tensor requests, Tensor(a!) partial_out, "
    "Tensor(b!) partial_lse, float softmax_scale, bool causal"
)
_OP = define(
    f"mla_decode({_INPUTS}) -> (Tensor, Tensor)", implementation=_allocate, fake=_fake_allocate
)
_OP_OUT = define(
    f"mla_decode.out({_INPUTS}, *, Tensor(c!) out, Tensor(d!) lse) -> ()",
    implementation=_write,
    fake=_fake_write,
)
