"""Wrong arguments: each requirement, what the message says, and that nothing is written."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pykernels import moe
from pykernels.moe import checks as moe_checks
from tests.moe.checking import buffer_of, same_bits
from tests.moe.routings import Routing
from tests.wrong_arguments import Wrong, misaligned, padded, put

HIDDEN = 64
ROUTING = Routing("uniform", (4, 3), 8, 2, 4)
SIZES: dict[str, Any] = {
    "hidden": 64,
    "num_experts": 8,
    "num_topk": 2,
    "num_max_tokens_per_rank": 4,
}


def of_rank_1(name: str, change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], Any]:
    """The arguments with one changed, of rank 1 alone."""

    def changed(arguments: dict[str, Any]) -> Any:
        return {name: [arguments[name][0], change(arguments[name][1])]}

    return changed


def strided(tensor: Tensor) -> Tensor:
    return tensor.T.contiguous().T


def with_entry(value: int) -> Callable[[Tensor], Tensor]:
    def change(idx: Tensor) -> Tensor:
        changed = idx.clone()
        changed[2, 1] = value
        return changed

    return change


DISPATCH = [
    Wrong("no_list", put(x=lambda a: tuple(a["x"])), "x must be a list of 2, one for each rank"),
    Wrong("short_list", put(x=lambda a: a["x"][:1]), "x must be a list of 2, one for each rank of"),
    Wrong("no_tensor", of_rank_1("x", lambda _: 3), "x of rank 1 must be a bfloat16 tensor or a p"),
    Wrong("meta", of_rank_1("x", lambda x: x.to("meta")), "x of rank 1 must be on the buffer's"),
    Wrong(
        "x_dtype", of_rank_1("x", lambda x: x.half()), "x of rank 1 must be bfloat16, got float1"
    ),
    Wrong(
        "no_scales",
        of_rank_1("x", lambda x: x.to(torch.float8_e4m3fn)),
        "x of rank 1 must be bfloat16 or a pair (values, scales), got float8_e4m3fn without",
    ),
    Wrong(
        "idx_dtype",
        of_rank_1("topk_idx", lambda idx: idx.short()),
        "topk_idx of rank 1 must be int64 or int32, got int16",
    ),
    Wrong(
        "weights_dtype",
        of_rank_1("topk_weights", lambda weights: weights.double()),
        "topk_weights of rank 1 must be float32, got float64",
    ),
    Wrong("x_rank", of_rank_1("x", lambda x: x[0]), "x of rank 1 must have 2 dimensions, got 1"),
    Wrong(
        "too_many_tokens",
        of_rank_1("x", lambda x: x.repeat(2, 1)),
        "x of rank 1 must have at most num_max_tokens_per_rank = 4 rows, got 6",
    ),
    Wrong(
        "hidden",
        of_rank_1("x", lambda x: x[:, :32].contiguous()),
        "x of rank 1 must have the buffer's hidden of 64 columns, got 32",
    ),
    Wrong(
        "idx_tokens",
        of_rank_1("topk_idx", lambda idx: idx[:2]),
        "topk_idx of rank 1 must be [num_tokens, num_topk] = [3, 2], got [2, 2]",
    ),
    Wrong(
        "weights_topk",
        of_rank_1("topk_weights", lambda weights: weights[:, :1].contiguous()),
        "topk_weights of rank 1 must be [num_tokens, num_topk] = [3, 2], got [3, 1]",
    ),
    Wrong("x_strides", of_rank_1("x", strided), "x of rank 1 must be row-major (stride 1 in its"),
    Wrong(
        "x_row_stride",
        of_rank_1("x", lambda x: padded(x, 68)),
        "the row stride of x of rank 1 must be a multiple of 16 bytes, got 136",
    ),
    Wrong("idx_strides", of_rank_1("topk_idx", strided), "topk_idx of rank 1 must be contiguous"),
    Wrong(
        "weights_strides", of_rank_1("topk_weights", strided), "topk_weights of rank 1 must be c"
    ),
    Wrong("x_address", of_rank_1("x", misaligned), "the data pointer of x of rank 1 must be a mul"),
    Wrong(
        "index_too_large",
        of_rank_1("topk_idx", with_entry(8)),
        "topk_idx of rank 1 must be from 0 to 7, or -1 for a dropped entry, got 8 for token 2, k 1",
    ),
    Wrong(
        "index_negative", of_rank_1("topk_idx", with_entry(-2)), "topk_idx of rank 1 must be from"
    ),
    Wrong(
        "mixed",
        lambda a: {"x": [a["x"][0], pair_of(a["x"][1])]},
        "x must be of one type on all ranks, got torch.bfloat16 on rank 0 and torch.float8_e4m3fn",
    ),
    Wrong(
        "scales_dtype",
        lambda a: {"x": [(q, s.double()) for q, s in map(pair_of, a["x"])]},
        "x[1] of rank 0 must be float32, got float64",
    ),
    Wrong(
        "scales_shape",
        lambda a: {"x": [(q, s.repeat(1, 2)) for q, s in map(pair_of, a["x"])]},
        "x[1] of rank 0 must be [num_tokens, ceil(hidden / 128)] = [4, 1], got [4, 2]",
    ),
]
GROUPED = [
    Wrong(
        "capacity", put(capacity=lambda _: -1), "capacity (None for the worst case) must be at l"
    ),
    Wrong(
        "capacity_type", put(capacity=lambda _: 1.5), "capacity (None for the worst case) must be"
    ),
]
LOW_LATENCY = [
    Wrong("fp8", put(fp8=lambda _: 1), "fp8 must be True or False, got 1"),
    Wrong("scale_fmt", put(scale_fmt=lambda _: "e8m0"), "scale_fmt must be 'fp32' or 'ue8m0'"),
    Wrong("hook", put(return_recv_hook=lambda _: None), "return_recv_hook must be True or False"),
    Wrong(
        "pair_without_fp8",
        lambda a: {"x": [pair_of(x) for x in a["x"]], "fp8": False},
        "x must be bfloat16 with fp8=False, got a pair (values, scales)",
    ),
    Wrong(
        "gradient",
        lambda a: {"x": [x.clone().requires_grad_() for x in a["x"]]},
        "low_latency_dispatch is not differentiable and x requires grad",
    ),
    Wrong(
        "gradient_of_weights",
        lambda a: {"topk_weights": [w.clone().requires_grad_() for w in a["topk_weights"]]},
        "low_latency_dispatch is not differentiable and topk_weights requires grad",
    ),
]


def pair_of(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.to(torch.float8_e4m3fn), torch.ones(x.size(0), 1)


def sent() -> dict[str, Any]:
    batch = ROUTING.batch(HIDDEN)
    return {"x": batch.x, "topk_idx": batch.topk_idx, "topk_weights": batch.topk_weights}


def check_raises(wrong: Wrong, call: Callable[..., Any], arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=re.escape(wrong.message)):
        call(**(arguments | wrong.change(arguments)))


@pytest.mark.parametrize("wrong", DISPATCH + GROUPED, ids=str)
def test_dispatch(wrong: Wrong) -> None:
    buffer = buffer_of(ROUTING, HIDDEN)
    check_raises(wrong, buffer.dispatch, sent())
    buffer.dispatch(**sent())  # there are no peers: the buffer goes on


@pytest.mark.parametrize("wrong", DISPATCH + LOW_LATENCY, ids=str)
def test_low_latency_dispatch(wrong: Wrong) -> None:
    buffer = buffer_of(ROUTING, HIDDEN)
    check_raises(wrong, buffer.low_latency_dispatch, sent())
    buffer.low_latency_dispatch(**sent())


COMBINE = [
    Wrong(
        "no_handle", of_rank_1("handle", lambda _: 1), "handle of rank 1 must be the DispatchHan"
    ),
    Wrong(
        "one_handle", put(handle=lambda a: a["handle"][0]), "handle must be a list of 2, one for"
    ),
    Wrong(
        "y_dtype", of_rank_1("y", lambda y: y.float()), "y of rank 1 must be bfloat16, got float"
    ),
    Wrong("y_rank", of_rank_1("y", lambda y: y[0, 0]), "y of rank 1 must have "),
    Wrong("y_shape", of_rank_1("y", lambda y: y[..., :32]), "y of rank 1 must be ["),
    Wrong(
        "y_strides", of_rank_1("y", lambda y: y.mT.contiguous().mT), "y of rank 1 must be row-maj"
    ),
    Wrong(
        "y_address", of_rank_1("y", misaligned), "the data pointer of y of rank 1 must be a mult"
    ),
    Wrong("out_dtype", of_rank_1("out", lambda o: o.float()), "out of rank 1 must be bfloat16"),
    Wrong(
        "out_shape", of_rank_1("out", lambda o: o[:1]), "out of rank 1 must be [num_tokens, hidde"
    ),
    Wrong("out_rank", of_rank_1("out", lambda o: o[0]), "out of rank 1 must have 2 dimensions"),
    Wrong("out_strides", of_rank_1("out", strided), "out of rank 1 must be row-major"),
    Wrong("out_address", of_rank_1("out", misaligned), "the data pointer of out of rank 1 must be"),
    Wrong(
        "out_in_y",
        lambda a: {"out": [a["out"][0], a["y"][1].view(-1, HIDDEN)[:3]]},
        "out of rank 1 must not share memory with y of rank 1",
    ),
    Wrong(
        "out_in_another_y",
        lambda a: {"out": [a["out"][0], a["y"][0].view(-1, HIDDEN)[:3]]},
        "out of rank 1 must not share memory with y of rank 0",
    ),
    Wrong(
        "one_out_for_two",
        lambda a: {"out": [a["out"][0], a["out"][0][:3]]},
        "out of rank 1 must not share memory with out of rank 0",
    ),
]


@pytest.mark.parametrize("masked", [False, True], ids=["combine", "low_latency_combine"])
@pytest.mark.parametrize("wrong", COMBINE, ids=str)
def test_combine(wrong: Wrong, masked: bool) -> None:
    """Nothing is written, on no rank."""
    buffer = buffer_of(ROUTING, HIDDEN)
    if masked:
        rows, _, handle, _ = buffer.low_latency_dispatch(**sent(), fp8=False)
    else:
        rows, _, handle = buffer.dispatch(**sent())
    out = [torch.full((n, HIDDEN), 7.0).bfloat16() for n in ROUTING.num_tokens]
    before = [each.clone() for each in out]
    y = [torch.ones_like(each) for each in rows]
    call = buffer.low_latency_combine if masked else buffer.combine
    check_raises(wrong, call, {"y": y, "handle": handle, "out": out})
    assert all(map(same_bits, out, before))
    call(y, handle, out=out)
    assert not any(map(same_bits, out, before))


def test_handles_of_the_other_kind() -> None:
    buffer = buffer_of(ROUTING, HIDDEN)
    rows, _, grouped = buffer.dispatch(**sent())
    masked_rows, _, masked, _ = buffer.low_latency_dispatch(**sent(), fp8=False)
    with pytest.raises(ValueError, match="is of low_latency_dispatch, so it must be passed to low"):
        buffer.combine(rows, masked)
    with pytest.raises(ValueError, match="is of dispatch, so it must be passed to combine"):
        buffer.low_latency_combine(masked_rows, grouped)
    other = buffer_of(Routing("other", (4, 3), 8, 3, 4), HIDDEN)
    with pytest.raises(
        ValueError, match=r"must be of a buffer with .* = \[2, 4, 3\], got \[2, 4, 2"
    ):
        other.combine(rows, grouped)


@pytest.mark.parametrize("masked", [False, True], ids=["combine", "low_latency_combine"])
@pytest.mark.parametrize("mixed", ["ranks", "batches"])
def test_handles_that_do_not_belong_together(mixed: str, masked: bool) -> None:
    """Nothing is written; the buffer refuses work until it is reset, as over torch.distributed."""
    buffer = buffer_of(ROUTING, HIDDEN)
    dispatch, combine = (
        (lambda **arguments: buffer.low_latency_dispatch(**arguments, fp8=False)[:3])
        if masked
        else buffer.dispatch,
        buffer.low_latency_combine if masked else buffer.combine,
    )
    rows, _, handles = dispatch(**sent())
    nowhere = sent()
    nowhere["topk_idx"] = [torch.full_like(idx, -1) for idx in nowhere["topk_idx"]]
    _, _, others = dispatch(**nowhere)
    out = [torch.full((n, HIDDEN), 7.0).bfloat16() for n in ROUTING.num_tokens]
    wrong = [handles[0], others[1]]
    if mixed == "ranks":
        wrong, out = handles[::-1], out[::-1]
    with pytest.raises(ValueError, match="all ranks must pass handles of the same dispatch, got "):
        combine(rows, wrong, out=out)
    assert all(each.eq(7).all() for each in out)
    buffer.reset()
    combine(rows, handles)


def test_a_combine_ahead_of_the_hook_of_its_handle() -> None:
    """Nothing is sent and the buffer goes on: the hook may still be called."""
    buffer = buffer_of(ROUTING, HIDDEN)
    *_, first, hook = buffer.low_latency_dispatch(**sent(), fp8=False, return_recv_hook=True)
    rows, _, second, _ = buffer.low_latency_dispatch(**sent(), fp8=False)
    message = "low_latency_combine must come after the hook of the low_latency_dispatch of its hand"
    with pytest.raises(RuntimeError, match=message):
        buffer.low_latency_combine(rows, first)
    wanted, _ = buffer.low_latency_combine(rows, second)
    hook()
    found, _ = buffer.low_latency_combine(rows, first)
    assert all(map(same_bits, found, wanted))


def test_out_of_inference_mode() -> None:
    buffer = buffer_of(ROUTING, HIDDEN)
    rows, _, handle = buffer.dispatch(**sent())
    with torch.inference_mode():
        out = [torch.empty(n, HIDDEN, dtype=torch.bfloat16) for n in ROUTING.num_tokens]
    wanted = buffer.combine(rows, handle)
    assert all(map(same_bits, buffer.combine(rows, handle, out=out), wanted))


def test_low_latency_combine_has_no_gradients() -> None:
    buffer = buffer_of(ROUTING, HIDDEN)
    arguments = sent()
    for weights in arguments["topk_weights"]:
        weights.requires_grad_()
    with torch.no_grad():
        y, _, handle, _ = buffer.low_latency_dispatch(**arguments, fp8=False)
    message = "low_latency_combine is not differentiable and topk_weights requires grad"
    with pytest.raises(ValueError, match=message):
        buffer.low_latency_combine(y, handle)
    with torch.no_grad():
        buffer.low_latency_combine(y, handle)


def test_gradients_and_out_do_not_go_together() -> None:
    buffer = buffer_of(ROUTING, HIDDEN)
    rows, _, handle = buffer.dispatch(**sent())
    y = [each.nan_to_num().requires_grad_() for each in rows]
    out = [torch.empty(n, HIDDEN, dtype=torch.bfloat16) for n in ROUTING.num_tokens]
    with pytest.raises(ValueError, match="combine with out is not differentiable and y of rank 0"):
        buffer.combine(y, handle, out=out)


@pytest.mark.parametrize("capacity", [0, 5])
def test_too_little_room(capacity: int) -> None:
    """The buffer refuses work until it is reset, as it does where only the GPU knows."""
    buffer = buffer_of(ROUTING, HIDDEN)
    with pytest.raises(
        ValueError, match=r"capacity must be at least \d+, the rows that rank \d rec"
    ):
        buffer.dispatch(**sent(), capacity=capacity)
    for call in (lambda: buffer.dispatch(**sent()), buffer.check):
        with pytest.raises(
            RuntimeError, match="refuses work since an earlier call failed: capacity"
        ):
            call()
    buffer.reset()
    buffer.check()
    buffer.dispatch(**sent())


def test_an_expert_without_room() -> None:
    arguments = sent()
    arguments["topk_idx"] = [torch.zeros_like(idx) for idx in arguments["topk_idx"]]
    buffer = buffer_of(ROUTING, HIDDEN)
    with pytest.raises(ValueError, match=r"expert 0 must receive at most .* = 8 rows, got 14"):
        buffer.low_latency_dispatch(**arguments)
    buffer.reset()


def test_no_rows_at_all() -> None:
    arguments = sent()
    arguments["topk_idx"] = [torch.full_like(idx, -1) for idx in arguments["topk_idx"]]
    buffer = buffer_of(ROUTING, HIDDEN)
    rows, offsets, handle = buffer.dispatch(**arguments, capacity=0)
    assert rows[0].shape == (0, HIDDEN)
    assert offsets[0].tolist() == [0] * 5
    outs = buffer.combine(rows, handle)
    assert all(not out.any() and out.size(0) == n for out, n in zip(outs, (4, 3), strict=True))


def test_fp8_rows_of_8_columns() -> None:
    routing = Routing("uniform", (2, 2), 4, 2, 4)
    buffer, batch = buffer_of(routing, 8), routing.batch(8)
    buffer.dispatch(batch.x, batch.topk_idx, batch.topk_weights)
    with pytest.raises(ValueError, match="hidden of FP8 rows must be a multiple of 16, got 8"):
        buffer.low_latency_dispatch(batch.x, batch.topk_idx, batch.topk_weights)


BUFFERS = [
    ({"hidden": 12}, "hidden must be a multiple of 8"),
    ({"hidden": 0}, "hidden must be at least 1, got 0"),
    ({"hidden": 64.0}, "hidden must be an integer, got 64.0"),
    ({"num_experts": 7}, "num_experts must be a multiple of the group's 2 ranks, got 7"),
    ({"num_topk": 33}, "num_topk must be at most 32, got 33"),
    ({"num_topk": True}, "num_topk must be an integer, got True"),
    ({"num_max_tokens_per_rank": 0}, "num_max_tokens_per_rank must be at least 1, got 0"),
    ({"num_max_tokens_per_rank": 2**29}, "a rank must receive at most 2147483647 rows"),
    ({"num_sms": 0}, "num_sms must be at least 1"),
    ({"timeout": 0}, "timeout must be above 0 and at most 86400 seconds, got 0"),
    ({"timeout": "1"}, "timeout must be a number of seconds, got '1'"),
    ({"device": "meta"}, "device must be a CUDA device or the CPU, got 'meta'"),
    ({"device": 3}, "device must be a torch.device, its name or None, got 3"),
    ({"ranks_per_node": 3}, "ranks_per_node must be at most 2, got 3"),
]


@pytest.mark.parametrize(("change", "message"), BUFFERS, ids=lambda value: str(value)[:30])
def test_buffers(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        moe.Buffer(moe.LocalGroup(2), **(SIZES | change))


@pytest.mark.parametrize("device", ["cpu:0", torch.device("cpu", 1)])
def test_cpu_devices_with_an_index(device: torch.device | str) -> None:
    """Tensors that torch makes on them have none."""
    buffer = buffer_of(ROUTING, HIDDEN, device=device)
    recv_x, _, handle = buffer.dispatch(**sent())
    assert recv_x[0].device == torch.device("cpu")
    buffer.combine(recv_x, handle)


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_no_gpu(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match=f"torch finds no GPU for device {device}; pass device"):
        moe.Buffer(moe.LocalGroup(2), **SIZES, device=device)


def test_devices_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, answer in (("is_available", True), ("device_count", 2), ("current_device", 1)):
        monkeypatch.setattr(torch.cuda, name, lambda answer=answer: answer)
    assert moe_checks.check_device("cuda") == torch.device("cuda", 1)
    assert moe_checks.check_device("cuda:0") == torch.device("cuda", 0)
    with pytest.raises(ValueError, match="device must be one of the 2 GPUs that torch finds"):
        moe_checks.check_device("cuda:2")


def test_groups() -> None:
    with pytest.raises(ValueError, match="num_ranks must be at least 1, got 0"):
        moe.LocalGroup(0)
    with pytest.raises(RuntimeError, match=r"torch\.distributed is not initialised"):
        moe.Buffer(**SIZES)


def test_masks() -> None:
    buffer = buffer_of(ROUTING, HIDDEN)
    for ranks, message in (
        (3, "ranks must be a collection of ranks, got 3"),
        ([2], "each rank to mask must be at most 1, got 2"),
        ([0, 1], "at least one rank must not be masked, got all 2"),
    ):
        with pytest.raises(ValueError, match=message):
            buffer.mask_ranks(ranks)  # type: ignore[arg-type]
    assert buffer.masked_ranks == []


def test_check_takes_a_flag() -> None:
    with pytest.raises(ValueError, match="wait must be True or False, got 'x'"):
        buffer_of(ROUTING, HIDDEN).check(wait="x")  # type: ignore[arg-type]


def test_closed_buffers() -> None:
    with buffer_of(ROUTING, HIDDEN) as buffer:
        assert buffer.bytes == 0
        *_, hook = buffer.low_latency_dispatch(**sent(), return_recv_hook=True)
    calls = (lambda: buffer.dispatch(**sent()), buffer.check, buffer.reset, buffer.__enter__, hook)
    for call in calls:
        with pytest.raises(RuntimeError, match="the buffer is closed; make a new one"):
            call()
    buffer.close()
