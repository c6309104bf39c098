"""Argument checks of MLA decode, beside those of its plan and of the paged cache.

What the host knows is checked here. Lengths and pages are on the device: the kernel checks them
there, and :func:`check_values` where torch computes on the CPU.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pykernels import checks
from pykernels.mla_cache_checks import (
    BF16_TOKEN_COLUMNS,
    LATENT_DIM,
    ROPE_DIM,
    check_kv_cache,
)
from pykernels.mla_checks import (
    MAX_HEADS,
    MlaPlan,
    check_plan,
    check_vectors,
    plan_tensors,
)
from pykernels.overlap import check_no_overlap

# Tokens of a request and rows of a call: kernels count to the end of a block of 64, and so beyond.
MAX_COUNT = checks.MAX_SIZE - 1024
_SEQLEN_Q_DIM = {"q": 1, "q_nope": 1, "q_rope": 1, "out[0]": 1, "out[1]": 2}  # left out by many
_FP32 = torch.finfo(torch.float32)
_ABSORB = (
    "the decode takes queries absorbed into the latent space, q_nope @ w_uk of each head beside "
    "q_rope"
)


class DecodeCall(NamedTuple):
    """What a call computes from; see :func:`pykernels.mla_decode`."""

    q_nope: Tensor
    q_rope: Tensor
    kv_cache: Tensor
    block_table: Tensor
    cache_seqlens: Tensor
    plan: MlaPlan | None
    softmax_scale: float
    causal: bool

    @property
    def queries(self) -> dict[str, Tensor]:
        return {"q_nope": self.q_nope, "q_rope": self.q_rope}

    @property
    def inputs(self) -> dict[str, Tensor]:
        return {
            **self.queries,
            "kv_cache": self.kv_cache,
            "block_table": self.block_table,
            "cache_seqlens": self.cache_seqlens,
        }

    @property
    def max_length(self) -> int:
        """Tokens that a row of the table reaches."""
        return self.block_table.size(1) * self.kv_cache.size(1)


def check_query(q: object) -> tuple[Tensor, Tensor]:
    """The query's latent and rope part: a pair as it is, of one tensor two views."""
    if isinstance(q, (tuple, list)):
        if len(q) != 2 or not all(isinstance(part, Tensor) for part in q):
            raise ValueError(
                "q must be a tensor or a pair (q_nope, q_rope) of tensors, got a "
                f"{type(q).__name__} of {len(q)}"
            )
        return checks.check_tensor("q[0]", q[0]), checks.check_tensor("q[1]", q[1])
    if not isinstance(q, Tensor):
        raise ValueError(
            f"q must be a tensor or a pair (q_nope, q_rope) of tensors, got {type(q).__name__}"
        )
    checks.check_tensor("q", q)
    checks.check_rank("q", q, 4, _SEQLEN_Q_DIM["q"])
    if q.size(-1) != BF16_TOKEN_COLUMNS:
        raise ValueError(
            f"q must be [batch, seqlen_q, num_heads, {BF16_TOKEN_COLUMNS}], got {list(q.shape)}; "
            f"{_ABSORB}"
        )
    q_nope, q_rope = q.split_with_sizes((LATENT_DIM, ROPE_DIM), -1)  # sooner than two slices
    return q_nope, q_rope


def check_plan_argument(plan: object, batch_invariant: object) -> None:
    """What the op does not see of a plan: its type, and what it was made for."""
    checks.check_batch_invariant(batch_invariant)
    if plan is None:
        return
    if not isinstance(plan, MlaPlan):
        raise ValueError(
            "plan must be an MlaPlan, as mla_decode_plan returns, or None, got "
            f"{type(plan).__name__}"
        )
    for name, tensor in plan_tensors(plan).items():
        checks.check_tensor(name, tensor)
    if batch_invariant and not plan.batch_invariant:
        raise ValueError(
            "batch_invariant is True but the plan was made without it; make the plan with "
            "mla_decode_plan(..., batch_invariant=True)"
        )


def check_softmax_scale(softmax_scale: object) -> None:
    if isinstance(softmax_scale, torch.SymFloat):
        return
    number = isinstance(softmax_scale, checks.NUMBERS) and not isinstance(softmax_scale, bool)
    if not number:
        raise ValueError(f"softmax_scale must be a number, got {checks.shown(softmax_scale)}")
    # The kernel multiplies by log2(e) times this, in FP32.
    if not _FP32.tiny <= softmax_scale <= _FP32.max / 2:  # type: ignore[operator]
        raise ValueError(
            "softmax_scale must be a finite number above 0, and a normal one in FP32, got "
            f"{checks.shown(softmax_scale)}; (128 + 64) ** -0.5 is that of DeepSeek-V3 without YaRN"
        )


def check_mla_decode(
    call: DecodeCall, out: tuple[Tensor, Tensor] | None, *, real: bool = True
) -> None:
    """All requirements of mla_decode; ``real`` is False where tensors have no memory."""
    outputs = {} if out is None else {"out[0]": out[0], "out[1]": out[1]}
    inputs = call.inputs
    checks.check_same_device(**inputs, **outputs)
    for name, tensor in call.queries.items():
        checks.check_dtype(name, tensor, torch.bfloat16)
    for name in ("block_table", "cache_seqlens"):
        checks.check_dtype(name, inputs[name], torch.int32)
    if out is not None:
        checks.check_dtype("out[0]", out[0], torch.bfloat16)
        checks.check_dtype("out[1]", out[1], torch.float32)
    ranks = {"q_nope": 4, "q_rope": 4, "block_table": 2, "cache_seqlens": 1}
    ranks |= {"out[0]": 4, "out[1]": 3}
    for name, tensor in (inputs | outputs).items():
        if name in ranks:
            checks.check_rank(name, tensor, ranks[name], _SEQLEN_Q_DIM.get(name, 0))

    check_kv_cache("kv_cache", call.kv_cache, real=real)
    _check_shapes(call, out)
    _check_strides(call, out)
    check_softmax_scale(call.softmax_scale)
    checks.check_flag("causal", call.causal)
    plan = call.plan
    if plan is not None:
        batch, seqlen_q, num_heads, _ = call.q_nope.shape
        # A call without query tokens launches nothing: it goes with plans for any number of them.
        planned = seqlen_q or plan.partial_lse.size(1)
        check_plan(plan, batch, planned, num_heads, call.q_nope.device)
    if real:
        for name, tensor in call.queries.items():
            checks.check_address(name, tensor)
        if out is not None:
            checks.check_address("out[0]", out[0])
            if plan is not None:
                inputs |= plan_tensors(plan)
            check_no_overlap("out[0]", out[0], {**inputs, "out[1]": out[1]})
            check_no_overlap("out[1]", out[1], inputs)


def _check_shapes(call: DecodeCall, out: tuple[Tensor, Tensor] | None) -> None:
    *leading, columns = call.q_nope.shape
    rope_columns = call.q_rope.size(-1)
    if columns != LATENT_DIM or rope_columns != ROPE_DIM:
        raise ValueError(
            f"q_nope and q_rope must have {LATENT_DIM} and {ROPE_DIM} columns, got {columns} and "
            f"{rope_columns}; {_ABSORB}"
        )
    batch, seqlen_q, num_heads = leading
    checks.check_sizes(
        "q_rope", call.q_rope, (*leading, ROPE_DIM), f"[batch, seqlen_q, num_heads, {ROPE_DIM}]"
    )
    if not 1 <= num_heads <= MAX_HEADS:
        fix = "leave the call out" if num_heads == 0 else "split the heads over several calls"
        raise ValueError(f"num_heads must be from 1 to {MAX_HEADS}, got {num_heads}; {fix}")
    checks.check_size("batch", batch, MAX_COUNT)
    checks.check_size("seqlen_q * num_heads", seqlen_q * num_heads, MAX_COUNT)
    checks.check_size("num_pages", call.kv_cache.size(0))
    if call.block_table.size(0) != batch:
        raise ValueError(
            f"block_table must be [batch, max_pages] with batch = {batch}, got "
            f"{list(call.block_table.shape)}; it has a row for each request of q"
        )
    checks.check_sizes("cache_seqlens", call.cache_seqlens, (batch,), "[batch]")
    if call.max_length > MAX_COUNT:
        raise ValueError(
            f"a row of block_table may reach {MAX_COUNT} tokens at most, got max_pages * page_size "
            f"= {call.max_length}; pass fewer of its columns"
        )
    if out is not None:
        meaning = f"[batch, seqlen_q, num_heads, {LATENT_DIM}]"
        checks.check_sizes("out[0]", out[0], (*leading, LATENT_DIM), meaning)
        checks.check_sizes(
            "out[1]", out[1], (batch, num_heads, seqlen_q), "[batch, num_heads, seqlen_q]"
        )


def _check_strides(call: DecodeCall, out: tuple[Tensor, Tensor] | None) -> None:
    for name, tensor in call.queries.items():
        check_vectors(name, tensor)
    table, lengths = call.block_table, call.cache_seqlens
    if table.size(1) > 1 and table.numel() > 0 and table.stride(1) != 1:
        raise ValueError(
            "block_table must have stride 1 in its last dimension, got strides "
            f"{tuple(table.stride())}; pass block_table.contiguous()"
        )
    if lengths.size(0) > 1 and lengths.stride(0) != 1:
        raise ValueError(
            f"cache_seqlens must be contiguous, got stride {lengths.stride(0)}; pass "
            "cache_seqlens.contiguous()"
        )
    if out is not None:
        check_vectors("out[0]", out[0])
        for name, tensor in zip(("out[0]", "out[1]"), out, strict=True):
            checks.check_distinct_elements(name, tensor)


def check_values(call: DecodeCall) -> None:
    """The lengths, the plan's lengths and the pages, of CPU tensors; the words are the kernel's.

    Entries of the table that no token needs are not looked at.

    Raises:
        ValueError: one is wrong.
    """
    num_pages, page_size = call.kv_cache.shape[:2]
    planned = None if call.plan is None else call.plan.requests[:, :2].tolist()
    for request, length in enumerate(call.cache_seqlens.tolist()):
        if not 0 <= length <= call.max_length:
            raise ValueError(
                f"cache_seqlens of request {request} must be from 0 to {call.max_length}, what its "
                f"row of block_table reaches, got {length}"
            )
        if planned is not None:
            _check_planned(request, length, *planned[request])
        pages = call.block_table[request, : checks.ceil_div(length, page_size)]
        wrong = pages[(pages < 0) | (pages >= num_pages)]
        if wrong.numel() > 0:
            raise ValueError(
                f"block_table of request {request} must name pages from 0 to {num_pages - 1}, got "
                f"{int(wrong[0])}"
            )


def _check_planned(request: int, length: int, planned_length: int, num_splits: int) -> None:
    if num_splits == 0:
        raise ValueError(
            f"the plan was not updated for request {request}; call mla_update_plan with the "
            "cache_seqlens of the whole batch"
        )
    if planned_length != length:
        raise ValueError(
            f"the plan was updated for cache_seqlens of {planned_length} in request {request}, got "
            f"{length}; call mla_update_plan whenever the lengths change"
        )
