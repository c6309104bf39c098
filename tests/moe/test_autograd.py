"""Gradients of dispatch and combine against dense torch formulas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import pykernels
from tests.moe.checking import buffer_of, capacity_of, same_bits
from tests.moe.played_gpu import Played
from tests.moe.routings import ROUTINGS, Batch, Routing, skewed
from tests.moe_launch import NUM_SMS

HIDDEN = 32
# A gradient is rounded to BF16 five times on its way (that of the result, of y, of a row, of the
# sum on a rank and at home), by at most 2^-9 of the terms each, and a little for their products.
TOLERANCE = 6 * 2.0**-9


def factor(expert: Tensor) -> Tensor:
    """What an expert multiplies with, so that experts differ."""
    return 0.5 + expert.double() / 8


def run_through_buffer(
    routing: Routing, batch: Batch, coefficients: list[Tensor], **options: Any
) -> list[Tensor]:
    """The loss ``sum(coefficients * out)``, back through combine, experts and dispatch."""
    buffer = buffer_of(routing, HIDDEN, **options)
    recv_x, offsets, handles = buffer.dispatch(
        batch.x, batch.topk_idx, batch.topk_weights, capacity=capacity_of(routing)
    )
    per_rank = routing.num_experts // routing.num_ranks
    y = []
    for rank, rows in enumerate(recv_x):
        row = torch.arange(rows.size(0))
        expert = torch.bucketize(row, offsets[rank][1:-1].long(), right=True) + rank * per_rank
        y.append((rows * factor(expert)[:, None]).bfloat16())
    outs = buffer.combine(y, handles)
    losses = [(out.float() * c).sum() for out, c in zip(outs, coefficients, strict=True)]
    torch.stack(losses).sum().backward()
    return outs


def gradients_of(routing: Routing, **options: Any) -> list[Tensor]:
    """The results, and the gradients of x and of the weights."""
    batch = routing.batch(HIDDEN)
    generator = torch.Generator().manual_seed(1)
    coefficients = [torch.randn(x.shape, generator=generator) for x in batch.x]
    for tensor in (*batch.x, *batch.topk_weights):
        tensor.requires_grad_()
    outs = run_through_buffer(routing, batch, coefficients, **options)
    found = [tensor.grad for tensor in (*batch.x, *batch.topk_weights)]
    assert all(gradient is not None for gradient in found)
    return [*outs, *(gradient for gradient in found if gradient is not None)]


def dense(x: Tensor, idx: Tensor, weights: Tensor) -> Tensor:
    scale = torch.where(idx >= 0, weights * factor(idx), 0)
    return scale.sum(1, keepdim=True) * x


@pytest.mark.parametrize("routing", ROUTINGS, ids=str)
def test_gradients_against_a_dense_formula(routing: Routing) -> None:
    batch = routing.batch(HIDDEN)
    generator = torch.Generator().manual_seed(1)
    coefficients = [torch.randn(x.shape, generator=generator) for x in batch.x]
    for tensor in (*batch.x, *batch.topk_weights):
        tensor.requires_grad_()
    run_through_buffer(routing, batch, coefficients)
    for x, idx, weights, coefficient in zip(
        batch.x, batch.topk_idx, batch.topk_weights, coefficients, strict=True
    ):
        exact_x = x.detach().double().requires_grad_()
        exact_weights = weights.detach().double().requires_grad_()
        (dense(exact_x, idx, exact_weights) * coefficient.double()).sum().backward()
        assert x.grad is not None
        assert weights.grad is not None
        assert exact_x.grad is not None
        assert exact_weights.grad is not None
        scale = torch.where(idx >= 0, weights * factor(idx), 0).abs().sum(1, keepdim=True)
        bound = TOLERANCE * scale * coefficient.abs() + 1e-12
        assert ((x.grad.double() - exact_x.grad).abs() <= bound).all()
        terms = (x.double() * coefficient).abs().sum(1, keepdim=True)
        bound = torch.where(idx >= 0, TOLERANCE * factor(idx) * terms, 0)
        assert ((weights.grad.double() - exact_weights.grad).abs() <= bound).all()


def test_gradients_of_weights_travel_exactly() -> None:
    """With 32 columns and 12 experts a token they take two combines of three columns each."""
    routing = Routing("wide", (4, 3), 16, 12, 4)
    batch = routing.batch(HIDDEN)
    for weights in batch.topk_weights:
        weights.requires_grad_()
    buffer = buffer_of(routing, HIDDEN)
    recv_x, _, handles = buffer.dispatch(batch.x, batch.topk_idx, batch.topk_weights)
    outs = buffer.combine(recv_x, handles)
    gradients = [torch.randn(out.shape).bfloat16() for out in outs]
    torch.autograd.backward(outs, gradients)
    for x, weights, gradient in zip(batch.x, batch.topk_weights, gradients, strict=True):
        exact = (x.float() * gradient.float()).sum(1, keepdim=True).expand_as(weights)
        assert weights.grad is not None
        torch.testing.assert_close(weights.grad, exact, rtol=1e-5, atol=1e-5)
        assert torch.equal(weights.grad, weights.grad[:, :1].expand_as(weights))


def test_finite_differences() -> None:
    """In powers of two, so that BF16 holds every sum: the differences are exact."""
    routing = Routing("uniform", (3, 2), 4, 2, 4)
    batch = routing.batch(8)
    x = [torch.randint(-4, 5, each.shape).bfloat16().requires_grad_() for each in batch.x]
    weights = [torch.ones_like(each).requires_grad_() for each in batch.topk_weights]
    coefficients = [torch.randint(-2, 3, each.shape).bfloat16() for each in batch.x]
    buffer = buffer_of(routing, 8)

    def loss() -> Tensor:
        recv_x, _, handles = buffer.dispatch(x, batch.topk_idx, weights)
        outs = buffer.combine(recv_x, handles)
        return sum(((o * c).float().sum() for o, c in zip(outs, coefficients, strict=True)))  # type: ignore[return-value]

    loss().backward()
    with torch.no_grad():
        base = loss()
        for tensor in (*x, *weights):
            for index in torch.cartesian_prod(*(torch.arange(n) for n in tensor.shape)):
                at = tuple(index.tolist())
                tensor[at] += 1
                assert tensor.grad is not None
                assert float(loss() - base) == float(tensor.grad[at])
                tensor[at] -= 1


def test_rows_that_no_token_has_get_no_gradient() -> None:
    routing = Routing("dropped", (3, 2), 4, 2, 4)
    batch = routing.batch(8)
    buffer = buffer_of(routing, 8)
    _, offsets, handles = buffer.dispatch(batch.x, batch.topk_idx, batch.topk_weights)
    y = [torch.full((16, 8), torch.nan).bfloat16() for _ in range(2)]
    for rank, rows in enumerate(y):
        rows[: int(offsets[rank][-1])] = 1
        rows.requires_grad_()
    torch.stack([out.float().sum() for out in buffer.combine(y, handles)]).sum().backward()
    for rank, rows in enumerate(y):
        used = int(offsets[rank][-1])
        assert rows.grad is not None
        assert (rows.grad[:used] > 0).all()
        assert not rows.grad[used:].any()


@pytest.mark.parametrize("of_weights", [False, True])
def test_choices_that_have_changed_are_noticed(of_weights: bool) -> None:
    """As a router does that writes into the same tensor for each layer."""
    routing = Routing("uniform", (3, 2), 4, 2, 4)
    batch = routing.batch(8)
    buffer = buffer_of(routing, 8)
    for tensor in batch.topk_weights if of_weights else ():
        tensor.requires_grad_()
    recv_x, _, handles = buffer.dispatch(batch.x, batch.topk_idx, batch.topk_weights)
    y = [rows.nan_to_num().requires_grad_() for rows in recv_x]
    outs = buffer.combine(y, handles)
    batch.topk_idx[1].zero_()
    with pytest.raises(RuntimeError, match="has been modified by an inplace operation"):
        torch.stack([out.float().sum() for out in outs]).sum().backward()


def test_choices_made_in_inference_mode() -> None:
    routing = Routing("uniform", (3, 2), 4, 2, 4)
    batch = routing.batch(8)
    buffer = buffer_of(routing, 8)
    with torch.inference_mode():
        idx = [each.clone() for each in batch.topk_idx]
    recv_x, _, handles = buffer.dispatch(batch.x, idx, batch.topk_weights)
    y = [rows.nan_to_num().requires_grad_() for rows in recv_x]
    torch.stack([out.float().sum() for out in buffer.combine(y, handles)]).sum().backward()
    assert all(rows.grad is not None for rows in y)


@pytest.mark.parametrize("what", ["x", "y", "topk_weights"])
def test_only_what_requires_a_gradient_gets_one(what: str) -> None:
    routing = Routing("uniform", (3, 2), 4, 2, 4)
    batch = routing.batch(8)
    buffer = buffer_of(routing, 8)
    tensors = batch.x if what == "x" else batch.topk_weights if what == "topk_weights" else []
    for tensor in tensors:
        tensor.requires_grad_()
    recv_x, _, handles = buffer.dispatch(batch.x, batch.topk_idx, batch.topk_weights)
    assert recv_x[0].requires_grad == (what == "x")
    if what == "y":
        recv_x = tensors = [rows.nan_to_num().requires_grad_() for rows in recv_x]
    outs = buffer.combine(recv_x, handles)
    assert outs[0].requires_grad
    outs[0].float().sum().backward()  # the loss of one rank alone
    assert all(tensor.grad is not None for tensor in tensors)
    with torch.no_grad():
        assert not buffer.combine(recv_x, handles)[0].requires_grad


# ---- over the kernels ----

OF_KERNELS = [
    Routing("alone", (5,), 4, 2, 5),
    Routing("no_tokens", (0, 0), 2, 1, 4),
    Routing("uniform", (8, 8), 8, 3, 8),
    Routing("skewed", (16, 16, 16, 16), 16, 4, 16, skewed),
    *(each for each in ROUTINGS if each.what in ("dropped", "repeated_experts", "nowhere")),
    Routing("wide", (4, 3), 16, 12, 4),  # gradients of weights take two combines
]


@pytest.mark.parametrize("routing", OF_KERNELS, ids=str)
def test_gradients_over_the_kernels(routing: Routing) -> None:
    """In the emulator the same bits as in torch."""
    expected = gradients_of(routing)
    with pykernels.emulate(seed=len(routing.num_tokens), async_completion="random") as report:
        found = gradients_of(routing, num_sms=NUM_SMS)
    assert not report.findings
    assert all(map(same_bits, found, expected))
    kernels = [name for name, _ in report.launches]
    assert kernels.count("moe_dispatch") == 2
    assert kernels.count("moe_combine") >= 3


class Waits(TorchDispatchMode):
    """The ops for whose results the host would wait on a GPU: it needs a number or a size."""

    names = ("nonzero", "_local_scalar_dense", "masked_select", "unique", "bincount")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put_", "index_put") else ()
        if name.startswith(self.names) or any(
            index is not None and index.dtype == torch.bool for index in indices
        ):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def test_the_host_waits_for_no_gradient(make_played: Callable[..., Played]) -> None:
    """On a GPU, for which a recording driver stands in."""
    routing = Routing("uniform", (8, 8), 8, 3, 8)
    expected = gradients_of(routing)
    played = make_played()
    played.gpu.runs_at_once = True
    with Waits() as waits:
        found = gradients_of(routing, num_sms=NUM_SMS)
    assert waits.found == []
    assert played.findings == []
    assert played.gpu.num_synchronized == 1  # where the buffer is made
    assert all(map(same_bits, found, expected))


def test_waits_are_noticed() -> None:
    x = torch.arange(4)
    with Waits() as waits:
        x[x > 2].sum().item()
    assert waits.found == ["index", "_local_scalar_dense"]
