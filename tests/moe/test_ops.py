"""A rank's calls as ops: torch's checks of them, fake tensors, and torch.compile."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from pykernels import moe
from pykernels.moe.collective import CollectiveTransport
from pykernels.moe.handle import DispatchHandle
from tests.moe.checking import HIDDEN, buffer_of, same_bits
from tests.moe.routings import Routing
from tests.op_checks import CHECKS, one_thread

ROUTING = Routing("alone", (5,), 4, 4, 5)  # every row of every result is filled
CAPACITY = 20
OPS = torch.ops.pykernels
TABLES = (
    "position_in_rank",
    "send_counts",
    "number",
    "recv_counts",
    "rows",
    "row_weights",
    "row_topk",
)


@pytest.fixture(scope="module", autouse=True)
def group() -> Iterator[None]:
    """One rank, in this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def buffer() -> Iterator[moe.Buffer]:
    with buffer_of(ROUTING, group=None) as made:
        yield made


def batch_of(fp8: bool = False, seed: int = 0) -> tuple[Any, Tensor, Tensor]:
    batch = ROUTING.batch(HIDDEN, seed)
    return (batch.fp8() if fp8 else batch.x)[0], batch.topk_idx[0], batch.topk_weights[0]


def handle_tensors(handle: DispatchHandle) -> tuple[Tensor, ...]:
    return (handle.topk_idx, handle.topk_weights, *(getattr(handle, name) for name in TABLES))


def op_arguments(buffer: moe.Buffer, fp8: bool) -> tuple[Any, ...]:
    x, *rest = batch_of(fp8)
    return (buffer.number, buffer.token, *(x if fp8 else (x, None)), *rest)


def combine_arguments(buffer: moe.Buffer, masked: bool) -> tuple[Any, ...]:
    if masked:
        recv_x, _, handle, _ = buffer.low_latency_dispatch(*batch_of(), fp8=False)
    else:
        recv_x, _, handle = buffer.dispatch(*batch_of())
    return buffer.number, buffer.token, recv_x.nan_to_num(0), *handle_tensors(handle)


def checks_for(*arguments: Any) -> tuple[str, ...]:
    has_fp8 = any(isinstance(a, Tensor) and a.dtype == torch.float8_e4m3fn for a in arguments)
    return CHECKS if has_fp8 else ("test_schema", *CHECKS)


def assert_same(found: Any, wanted: Any) -> None:
    """Of whole results: tensors, pairs, handles; of rows of dispatches those that are filled."""
    if isinstance(wanted, Tensor):
        assert same_bits(found, wanted)
    elif isinstance(wanted, DispatchHandle):
        assert_same(handle_tensors(found)[:4], handle_tensors(wanted)[:4])
        num_tokens = int(wanted.recv_counts[0])
        for name in TABLES[4:]:
            assert_same(getattr(found, name)[:, :num_tokens], getattr(wanted, name)[:, :num_tokens])
    else:
        for each, other in zip(found, wanted, strict=True):
            assert_same(each, other)


# ---- the ops ----


def test_schemas() -> None:
    buffer, batch = "int buffer, Tensor(a!) token", "Tensor topk_idx, Tensor topk_weights"
    tables = ", ".join(f"Tensor {name}" for name in TABLES)
    sent = f"{buffer}, Tensor x, Tensor? scales, {batch}"
    received = f"(Tensor recv_x, Tensor recv_scales, Tensor counts, {tables})"
    name = "pykernels::moe_"
    assert str(OPS.moe_dispatch.default._schema) == (
        f"{name}dispatch({sent}, int capacity) -> {received}"
    )
    assert str(OPS.moe_low_latency_dispatch.default._schema) == (
        f"{name}low_latency_dispatch({sent}, bool fp8, str scale_fmt) -> {received}"
    )
    for kind in ("combine", "low_latency_combine"):
        op = getattr(OPS, f"moe_{kind}")
        arguments = f"{buffer}, Tensor y, {batch}, {tables}"
        assert str(op.default._schema) == f"{name}{kind}({arguments}) -> Tensor"
        assert str(op.out._schema) == f"{name}{kind}.out({arguments}, *, Tensor(b!) out) -> ()"


@pytest.fixture
def every_call_is_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a dispatch has the same results again, its number among them."""
    dispatch = CollectiveTransport.dispatch

    def renumbered(transport: CollectiveTransport, *arguments: Any) -> Any:
        transport._call = 0
        return dispatch(transport, *arguments)

    monkeypatch.setattr(CollectiveTransport, "dispatch", renumbered)


@pytest.mark.usefixtures("every_call_is_the_first")
@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
def test_opcheck_of_dispatch(buffer: moe.Buffer, fp8: bool) -> None:
    arguments = op_arguments(buffer, fp8)
    utils = checks_for(*arguments)
    torch.library.opcheck(OPS.moe_dispatch.default, (*arguments, CAPACITY), test_utils=utils)


@pytest.mark.usefixtures("every_call_is_the_first")
@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
def test_opcheck_of_low_latency_dispatch(buffer: moe.Buffer, fp8: bool) -> None:
    arguments = (*op_arguments(buffer, fp8), fp8, "fp32")
    op = OPS.moe_low_latency_dispatch.default
    torch.library.opcheck(op, arguments, test_utils=checks_for(*arguments))


@pytest.mark.parametrize("masked", [False, True], ids=["combine", "low_latency_combine"])
def test_opcheck_of_combine(buffer: moe.Buffer, masked: bool) -> None:
    op = OPS.moe_low_latency_combine if masked else OPS.moe_combine
    arguments = combine_arguments(buffer, masked)
    utils = checks_for(*arguments)
    torch.library.opcheck(op.default, arguments, test_utils=utils)
    out = torch.zeros(5, HIDDEN).bfloat16()
    torch.library.opcheck(op.out, arguments, {"out": out}, test_utils=utils)


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
def test_ops_do_what_methods_do(buffer: moe.Buffer, fp8: bool) -> None:
    recv_x, offsets, handle = buffer.dispatch(*batch_of(fp8), capacity=CAPACITY)
    found = OPS.moe_dispatch(*op_arguments(buffer, fp8), CAPACITY)
    used = int(offsets[-1])
    x, scales = recv_x if fp8 else (recv_x, None)
    assert_same(found[0][:used], x[:used])
    assert found[0].shape == x.shape
    if scales is None:
        assert found[1].numel() == 0
    else:
        assert_same(found[1][:used], scales[:used])
        assert found[1].stride() == scales.stride()
    assert_same(found[2], offsets)
    y = torch.randn(CAPACITY, HIDDEN).bfloat16()
    wanted = buffer.combine(y, handle)
    given = (buffer.number, buffer.token, y, *handle_tensors(handle))
    assert_same(OPS.moe_combine(*given), wanted)
    out = torch.full_like(wanted, 7)
    assert OPS.moe_combine.out(*given, out=out) is None
    assert_same(out, wanted)


def test_errors_of_ops(buffer: moe.Buffer) -> None:
    """The same as of the methods; a buffer is known as long as it lives."""
    number, token, x, scales, idx, weights = op_arguments(buffer, False)
    for wrong, message in (
        ((x[:, :16], scales, idx, weights), "hidden of 144 columns, got 16"),
        ((x, scales, idx.short(), weights), "topk_idx must be int"),
        ((x, scales, idx + 4, weights), "topk_idx must be from 0 to 3"),
    ):
        with pytest.raises(ValueError, match=message):
            OPS.moe_dispatch(number, token, *wrong, CAPACITY)
        buffer.reset()
    with pytest.raises(ValueError, match="capacity must be at least"):
        OPS.moe_dispatch(number, token, x, scales, idx, weights, 1)
    with pytest.raises(RuntimeError, match="refuses work"):
        OPS.moe_dispatch(number, token, x, scales, idx, weights, CAPACITY)
    buffer.reset()
    other = buffer_of(ROUTING, group=None)
    gone = other.number
    assert gone != number
    del other
    gc.collect()
    with pytest.raises(RuntimeError, match=rf"there is no buffer {gone}; a buffer must outlive"):
        OPS.moe_dispatch(gone, token, x, scales, idx, weights, CAPACITY)


def test_numbers_of_local_groups_are_refused() -> None:
    """Their calls take lists."""
    local = buffer_of(ROUTING)
    with pytest.raises(ValueError, match="x must be a list of 1"):
        OPS.moe_dispatch(local.number, local.token, *op_arguments(local, False)[2:], CAPACITY)


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
def test_fake_tensors(buffer: moe.Buffer, fp8: bool) -> None:
    real = OPS.moe_dispatch(*op_arguments(buffer, fp8), CAPACITY)
    with FakeTensorMode() as mode:
        number, *tensors = op_arguments(buffer, fp8)
        fake = [None if each is None else mode.from_tensor(each) for each in tensors]
        found = OPS.moe_dispatch(number, *fake, CAPACITY)
        for each, wanted in zip(found, real, strict=True):
            assert (each.shape, each.dtype, each.stride()) == (
                wanted.shape,
                wanted.dtype,
                wanted.stride(),
            )
        with pytest.raises(ValueError, match="topk_weights must be float32"):
            OPS.moe_dispatch(number, *fake[:-1], fake[-1].double(), CAPACITY)
        with pytest.raises(ValueError, match="capacity"):
            OPS.moe_dispatch(number, *fake, -1)


# ---- torch.compile ----


class Graphs:
    """A backend of torch.compile that counts the nodes of the graphs it gets."""

    def __init__(self) -> None:
        self.nodes: list[str] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Any:
        self.nodes += [str(node.target) for node in graph.graph.nodes if node.op != "placeholder"]
        return graph.forward

    @property
    def calls(self) -> list[str]:
        return [node for node in self.nodes if node.startswith("pykernels.")]


def step(buffer: moe.Buffer, x: Any, topk_idx: Tensor, topk_weights: Tensor) -> Any:
    recv_x, offsets, handle = buffer.dispatch(x, topk_idx, topk_weights, capacity=CAPACITY)
    y = recv_x[0].float() if isinstance(recv_x, tuple) else recv_x
    return offsets, handle, buffer.combine((y * 2).bfloat16(), handle)


def decode(buffer: moe.Buffer, x: Any, topk_idx: Tensor, topk_weights: Tensor) -> Any:
    (q, scales), masked_m, handle, hook = buffer.low_latency_dispatch(x, topk_idx, topk_weights)
    hook()
    y = (q.float() * scales.repeat_interleave(128, dim=-1)[..., :HIDDEN]).bfloat16()
    out, hook = buffer.low_latency_combine(y, handle)
    hook()
    return masked_m, handle, out


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
def test_calls_are_nodes(buffer: moe.Buffer, fp8: bool) -> None:
    batch = batch_of(fp8)
    wanted = step(buffer, *batch)
    graphs = Graphs()
    compiled = torch.compile(step, fullgraph=True, backend=graphs)
    assert_same(compiled(buffer, *batch), wanted)
    assert graphs.calls == ["pykernels.moe_dispatch.default", "pykernels.moe_combine.default"]
    assert_same(compiled(buffer, *batch), wanted)
    assert len(graphs.calls) == 2


def test_low_latency_calls_are_nodes(buffer: moe.Buffer) -> None:
    batch = batch_of()
    wanted = decode(buffer, *batch)
    graphs = Graphs()
    compiled = torch.compile(decode, fullgraph=True, backend=graphs)
    assert_same(compiled(buffer, *batch), wanted)
    kinds = ("dispatch", "combine")
    assert graphs.calls == [f"pykernels.moe_low_latency_{kind}.default" for kind in kinds]


@one_thread
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile(buffer: moe.Buffer, backend: str) -> None:
    """Through functionalisation, with a given result, and with other sizes."""

    def into(out: Tensor, *batch: Any) -> Any:
        recv_x, offsets, handle = buffer.dispatch(*batch, capacity=CAPACITY)
        return offsets, buffer.combine(recv_x, handle, out=out)

    compiled = torch.compile(into, fullgraph=True, backend=backend)
    for num_tokens in (5, 3, 4):
        batch = tuple(each[:num_tokens] for each in batch_of(seed=num_tokens))
        out, other = torch.zeros(2, num_tokens, HIDDEN).bfloat16()
        wanted = into(other, *batch)
        found = compiled(out, *batch)
        assert_same(found, wanted)
        assert found[1] is out


@one_thread
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_no_call_is_left_out_or_merged(
    buffer: moe.Buffer, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other ranks wait for each, whether its results are used or known already."""
    made: list[str] = []
    for name in ("dispatch", "combine"):
        function = getattr(CollectiveTransport, name)

        def counted(*arguments: Any, function: Any = function, name: str = name) -> Any:
            made.append(name)
            return function(*arguments)

        monkeypatch.setattr(CollectiveTransport, name, counted)

    def calls(x: Tensor, idx: Tensor, weights: Tensor) -> Tensor:
        buffer.dispatch(x, idx, weights)
        recv_x, _, handle = buffer.dispatch(x, idx, weights)
        buffer.combine(recv_x, handle)
        return buffer.combine(recv_x, handle) + buffer.combine(recv_x, handle)

    batch = batch_of()
    wanted = calls(*batch)
    compiled = torch.compile(calls, fullgraph=True, backend=backend)
    assert_same(compiled(*batch), wanted)
    assert made == ["dispatch", "dispatch", "combine", "combine", "combine"] * 2


def test_errors_in_compiled_code(buffer: moe.Buffer) -> None:
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    x, idx, weights = batch_of()
    compiled(buffer, x, idx, weights)
    with pytest.raises(ValueError, match="topk_idx must be from 0 to 3"):
        compiled(buffer, x, idx + 4, weights)
    with pytest.raises(RuntimeError, match="refuses work"):
        compiled(buffer, x, idx, weights)
    buffer.reset()
    compiled(buffer, x, idx, weights)


@pytest.mark.parametrize("what", ["x", "y", "topk_weights"])
def test_low_latency_calls_in_compiled_code_have_no_gradients(
    buffer: moe.Buffer, what: str
) -> None:
    """An error, as outside of it, and not results without their gradients."""
    factor = torch.ones(HIDDEN, dtype=torch.bfloat16, requires_grad=what == "y")

    def calls(x: Tensor, idx: Tensor, weights: Tensor) -> Tensor:
        recv_x, _, handle, _ = buffer.low_latency_dispatch(x, idx, weights, fp8=False)
        return buffer.low_latency_combine(recv_x * factor, handle)[0]

    x, idx, weights = batch_of()
    x.requires_grad_(what == "x")
    weights.requires_grad_(what == "topk_weights")
    with pytest.raises(ValueError, match=f"is not differentiable and {what} requires grad"):
        torch.compile(calls, backend="aot_eager")(x, idx, weights)


@pytest.mark.parametrize("what", ["gradient", "hook", "local"])
def test_what_ends_a_graph(buffer: moe.Buffer, what: str) -> None:
    """It runs all the same, between two graphs; with ``fullgraph=True`` that is an error."""
    x, idx, weights = batch_of()
    local = buffer_of(ROUTING)

    def calls(x: Tensor) -> Tensor:
        x = x * 1
        if what == "local":
            recv, _, handles = local.dispatch([x], [idx], [weights])
            out: Tensor = local.combine(recv, handles)[0]
        elif what == "hook":
            recv_x, _, handle, hook = buffer.low_latency_dispatch(
                x, idx, weights, fp8=False, return_recv_hook=True
            )
            hook()
            out, hook = buffer.low_latency_combine(recv_x, handle, return_recv_hook=True)
            hook()
        else:
            recv_x, _, handle = buffer.dispatch(x, idx, weights)
            out = buffer.combine(recv_x, handle)
        return out * 2

    if what == "gradient":
        x.requires_grad_()
    wanted = calls(x)
    found = torch.compile(calls, backend="aot_eager")(x)
    assert_same(found, wanted)
    if what == "gradient":
        (gradient,) = torch.autograd.grad(found.float().sum(), x)
        (exact,) = torch.autograd.grad(wanted.float().sum(), x)
        assert_same(gradient, exact)
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"disable"):
        torch.compile(calls, backend="aot_eager", fullgraph=True)(x)
