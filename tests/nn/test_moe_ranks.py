"""MoeLayer on several ranks: a LocalGroup in torch and in the emulator, and gloo processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import pykernels
from pykernels import moe
from pykernels.nn import MoeLayer, forward_local_ranks
from pykernels.testing import row_errors
from tests.cases import assert_same_bits
from tests.moe.gloo import run_ranks
from tests.nn import moe_calls
from tests.nn.moe_models import DEEPSEEK, MODELS, ONE_EXPERT, Model, assert_as_fp8
from tests.nn.test_moe import counts_of

NUM_SMS = 2  # of a rank
NUM_TOKENS = (5, 0, 1, 7)
BOTH = pytest.mark.parametrize("low_latency", [False, True], ids=["dispatch", "low_latency"])
# The sum over experts is rounded on each rank, and added in another order: in BF16.
ROUNDING = 8e-3


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def x_of(model: Model, num_tokens: Sequence[int] = NUM_TOKENS) -> list[Tensor]:
    return [model.x(count, seed=rank) for rank, count in enumerate(num_tokens)]


def with_buffer(layers: list[MoeLayer], most: int = 8, **options: Any) -> list[MoeLayer]:
    """The layers, which share a buffer of their LocalGroup."""
    group = moe.LocalGroup(len(layers))
    buffer = layers[0].make_buffer(group, num_max_tokens_per_rank=most, **options)
    for layer in layers:
        layer.use_buffers(buffer)
    return layers


def check(
    model: Model, outs: Sequence[Tensor], counts: Sequence[Tensor], *, emulated: bool = False
) -> None:
    """All ranks' results and counts, beside the models and the layer on one rank."""
    x = x_of(model)
    assert_as_fp8(torch.cat(list(outs)), model, torch.cat(x), len(outs), emulated=emulated)
    for out, each in zip(outs, x, strict=True):
        assert out.shape == each.shape
    assert torch.equal(torch.cat(list(counts)), counts_of(model, torch.cat(x)))


@BOTH
@pytest.mark.parametrize("model", MODELS, ids=str)
def test_local_ranks(model: Model, low_latency: bool) -> None:
    layers = with_buffer(model.layers(4))
    outs = forward_local_ranks(layers, x_of(model), low_latency=low_latency)
    check(model, outs, [layer.expert_counts() for layer in layers])
    alone = model.layer()(torch.cat(x_of(model)))
    assert float(row_errors(torch.cat(outs), alone).max()) < ROUNDING


@BOTH
@pytest.mark.parametrize("model", [DEEPSEEK, ONE_EXPERT], ids=str)
def test_local_ranks_on_the_emulator(model: Model, low_latency: bool) -> None:
    """Real kernels: those that move tokens, too."""
    layers, alone = model.layers(4), model.layer()
    x = x_of(model)
    with pykernels.emulate() as report:
        with_buffer(layers, num_sms=NUM_SMS)
        outs = forward_local_ranks(layers, x, low_latency=low_latency)
        on_one_rank = alone(torch.cat(x))
    report.raise_if_findings()
    names = [name for name, _ in report.launches]
    assert {"moe_layout", "moe_dispatch", "moe_combine"} <= set(names)
    check(model, outs, [layer.expert_counts() for layer in layers], emulated=True)
    assert float(row_errors(torch.cat(outs), on_one_rank).max()) < ROUNDING


def test_both_ways_give_the_same_bits() -> None:
    layers = with_buffer(DEEPSEEK.layers(4))
    outs = [forward_local_ranks(layers, x_of(DEEPSEEK), low_latency=each) for each in (False, True)]
    for found, wanted in zip(*outs, strict=True):
        assert_same_bits(found, wanted)


def test_gloo_ranks() -> None:
    """Processes over torch.distributed: the bits of a LocalGroup."""
    models = [DEEPSEEK, ONE_EXPERT]
    layers, x = [model.layers(4) for model in models], x_of(DEEPSEEK)
    ranks = run_ranks(4, moe_calls.both_ways, layers, x)
    for number, (model, of_ranks) in enumerate(zip(models, layers, strict=True)):
        with_buffer(of_ranks)
        for low_latency in (False, True):
            found = [answers[number][low_latency] for answers in ranks]
            outs, counts = zip(*found, strict=True)
            check(model, outs, counts)
            local = forward_local_ranks(of_ranks, x, low_latency=low_latency)
            for out, wanted in zip(outs, local, strict=True):
                assert_same_bits(out, wanted)


@BOTH
def test_a_local_group_of_one_rank(low_latency: bool) -> None:
    (layer,) = with_buffer([DEEPSEEK.layer()])
    x = DEEPSEEK.x(6)
    found = layer(x, low_latency=low_latency)
    assert_as_fp8(found, DEEPSEEK, x)


def test_shared_experts_run_while_tokens_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the send and the receive."""
    layers = with_buffer(DEEPSEEK.layers(2))
    events = []
    dispatch = moe.Buffer.low_latency_dispatch

    def recorded(buffer: moe.Buffer, *arguments: Any, **options: Any) -> Any:
        *results, hook = dispatch(buffer, *arguments, **options)
        events.append("send")

        def receive() -> None:
            events.append("receive")
            hook()

        return *results, receive

    monkeypatch.setattr(moe.Buffer, "low_latency_dispatch", recorded)
    for layer in layers:
        run = layer.shared_experts.forward_fp8
        monkeypatch.setattr(
            layer.shared_experts,
            "forward_fp8",
            lambda *arguments, run=run: events.append("shared") or run(*arguments),
        )
    forward_local_ranks(layers, [DEEPSEEK.x(2), DEEPSEEK.x(3)], low_latency=True)
    assert events == ["send", "shared", "shared", "receive"]


def test_two_buffers_and_the_attribute() -> None:
    """Decoding by a buffer of its own, which is for fewer tokens."""
    layers = with_buffer(DEEPSEEK.layers(2), most=9)
    buffer = layers[0].buffer
    decoding = layers[0].make_buffer(moe.LocalGroup(2), num_max_tokens_per_rank=2)
    for layer in layers:
        layer.use_buffers(buffer, decoding)
        layer.low_latency = True
    few, many = [DEEPSEEK.x(2), DEEPSEEK.x(1)], [DEEPSEEK.x(9), DEEPSEEK.x(1)]
    forward_local_ranks(layers, few)
    forward_local_ranks(layers, many, low_latency=False)
    with pytest.raises(ValueError, match="at most num_max_tokens_per_rank = 2 rows, got 9"):
        forward_local_ranks(layers, many)


def test_capacity() -> None:
    layers = with_buffer(DEEPSEEK.layers(4))
    for layer in layers:
        layer.capacity = 1
    with pytest.raises(ValueError, match="capacity must be at least"):
        forward_local_ranks(layers, x_of(DEEPSEEK))


# ---- torch.compile ----


@pytest.fixture
def group() -> Iterator[None]:
    """One rank, in this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@BOTH
def test_compile_with_a_distributed_buffer(group: None, low_latency: bool) -> None:
    layer, compiled_layer = DEEPSEEK.layer(), DEEPSEEK.layer()
    with layer.make_buffer(num_max_tokens_per_rank=8) as buffer:
        for each in (layer, compiled_layer):
            each.use_buffers(buffer)
            each.low_latency = low_latency
        compiled: Any = torch.compile(compiled_layer, fullgraph=True, backend="aot_eager")
        for num_tokens in (1, 4, 7):
            x = DEEPSEEK.x(num_tokens)
            assert_same_bits(compiled(x), layer(x))
        assert torch.equal(compiled_layer.expert_counts(), layer.expert_counts())


# ---- bad input ----


def test_no_buffer() -> None:
    with pytest.raises(RuntimeError, match="MoeLayer of rank 1 of 4 has no buffer to move tokens"):
        DEEPSEEK.layer(rank=1, num_ranks=4)(DEEPSEEK.x(2))


@pytest.mark.parametrize(
    ("ranks", "options", "message"),
    [
        (4, {}, "num_ranks = 2, got 4"),
        (2, {"num_experts": 32}, "num_experts = 16, got 32"),
        (2, {"num_topk": 3}, "num_topk = 4, got 3"),
        (2, {"hidden": 512}, "hidden = 256, got 512"),
    ],
)
def test_a_buffer_of_other_sizes(ranks: int, options: dict[str, int], message: str) -> None:
    layer = DEEPSEEK.layer(num_ranks=2)
    sizes = {"hidden": 256, "num_experts": 16, "num_topk": 4} | options
    buffer = moe.Buffer(moe.LocalGroup(ranks), num_max_tokens_per_rank=4, **sizes)
    with pytest.raises(ValueError, match=f"the buffer of MoeLayer must have {message}"):
        layer.use_buffers(buffer)
    assert layer.buffer is None


def test_a_distributed_buffer_of_other_ranks(group: None) -> None:
    layer = DEEPSEEK.layer(rank=1, num_ranks=2)
    message = "must have num_ranks = 2, got 1"
    with (
        DEEPSEEK.layer().make_buffer(num_max_tokens_per_rank=4) as buffer,
        pytest.raises(ValueError, match=message),
    ):
        layer.use_buffers(buffer)


def test_calls_that_do_not_fit_the_ranks() -> None:
    layers = with_buffer(DEEPSEEK.layers(2))
    x = [DEEPSEEK.x(2)] * 2
    with pytest.raises(RuntimeError, match="ranks run together: call forward_local_ranks"):
        layers[0](x[0])
    with pytest.raises(ValueError, match="one element for each rank of the layers, got 1 and 2"):
        forward_local_ranks(layers[:1], x)
    with pytest.raises(ValueError, match=r"layers must be of ranks 0, 1, ..., got \[1, 0\]"):
        forward_local_ranks(layers[::-1], x)
    with_buffer(DEEPSEEK.layers(2))
    layers[1].use_buffers(with_buffer(DEEPSEEK.layers(2))[0].buffer)
    with pytest.raises(RuntimeError, match="must share a buffer of a LocalGroup"):
        forward_local_ranks(layers, x)
