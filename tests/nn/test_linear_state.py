"""What Fp8Linear loads, what it refuses, and that it is then as it was before."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pykernels import quantize_128x128, reference
from pykernels.nn import Fp8Linear, check_state_dict
from tests.cases import assert_same_bits

OUT, IN = 136, 272
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
State = dict[str, Tensor]


class Model(nn.Module):
    """Two Linears, so that names have a prefix and one can be right where the other is wrong."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.first = Fp8Linear.empty(IN, OUT, bias=True, **options)
        self.second = Fp8Linear.empty(IN, OUT, bias=True, **options)


def random_weight(dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Its blocks differ by powers of ten, so that a scale in the wrong place shows."""
    generator = torch.Generator().manual_seed(seed)
    factors = torch.tensor([[1.0, 10.0, 100.0], [0.1, 1000.0, 0.01]])
    factors = factors.repeat_interleave(128, 0)[:OUT].repeat_interleave(128, 1)[:, :IN]
    return (torch.randn(OUT, IN, generator=generator) * factors).to(dtype)


def public_state() -> State:
    """Of both, in the public format."""
    state = {}
    for seed, name in enumerate(("first", "second")):
        values, scales = reference.quantize_128x128(random_weight(seed=seed))
        state |= {f"{name}.weight": values, f"{name}.weight_scale_inv": scales.float()}
        state[f"{name}.bias"] = torch.randn(OUT, generator=torch.Generator().manual_seed(seed))
    return state


def assert_same_state(actual: nn.Module, expected: State) -> None:
    found = actual.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert_same_bits(found[name], tensor)


def test_the_public_format() -> None:
    model, state = Model(), public_state()
    check_state_dict(model, state)
    model.load_state_dict(state)
    assert_same_state(model, state)
    x = torch.randn(4, IN)
    weight = state["second.weight"], state["second.weight_scale_inv"]
    exact = reference.fp8_gemm_nt(reference.quantize_1x128(x), weight)
    exact = exact + state["second.bias"].double()
    assert torch.allclose(model.second(x).double(), exact, rtol=1e-4, atol=1e-2)


def test_our_own_state_goes_round() -> None:
    model, copy = Model(), Model()
    model.load_state_dict(public_state())
    copy.load_state_dict(model.state_dict())
    assert_same_state(copy, public_state())


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("scale_fmt", ["fp32", "ue8m0"])
def test_other_weights_are_cast(dtype: torch.dtype, scale_fmt: str) -> None:
    weight = random_weight(dtype)
    linear = nn.Linear(IN, OUT).to(dtype)
    linear.weight.data.copy_(weight)
    module = Fp8Linear.empty(IN, OUT, bias=True, scale_fmt=scale_fmt)
    state = linear.state_dict()
    module.load_state_dict(state)
    values, scales = quantize_128x128(weight, scale_fmt=scale_fmt)
    assert_same_bits(module.weight, values)
    assert_same_bits(module.weight_scale_inv, scales)
    assert module.bias is not None
    assert torch.equal(module.bias, linear.bias.float())
    assert list(state) == ["weight", "bias"]  # the caller's dict is as it was
    from_float = Fp8Linear.from_float(linear, scale_fmt=scale_fmt)
    assert_same_bits(from_float.weight, values)
    assert_same_bits(from_float.weight_scale_inv, scales)


def test_a_model_without_memory_is_loaded_by_assignment() -> None:
    model = Model(device="meta")
    state = public_state() | {"second.weight": random_weight(torch.bfloat16)}
    del state["second.weight_scale_inv"]
    model.load_state_dict(state, assign=True)
    assert not any(tensor.is_meta for tensor in model.state_dict().values())
    assert model.first.weight.data_ptr() == state["first.weight"].data_ptr()
    assert_same_bits(model.second.weight, quantize_128x128(state["second.weight"])[0])


def without(name: str) -> Callable[[State], State]:
    return lambda state: {key: tensor for key, tensor in state.items() if key != name}


def replaced(name: str, tensor: Tensor) -> Callable[[State], State]:
    return lambda state: state | {name: tensor}


WRONG: dict[str, tuple[Callable[[State], State], str]] = {
    "no scales": (
        without("second.weight_scale_inv"),
        "second.weight is float8_e4m3fn and needs second.weight_scale_inv, float32 [2, 3], one "
        "factor for each block of 128x128; the checkpoint has none",
    ),
    "scales of another shape": (
        replaced("second.weight_scale_inv", torch.ones(3, 2)),
        "second.weight is float8_e4m3fn and needs second.weight_scale_inv of shape [2, 3], one "
        "factor for each block of 128x128, got [3, 2]",
    ),
    "scales of another dtype": (
        replaced("second.weight_scale_inv", torch.ones(2, 3, dtype=torch.bfloat16)),
        "second.weight is float8_e4m3fn and needs second.weight_scale_inv in float32, got bfloat16",
    ),
    "scales alone": (
        without("second.weight"),
        "second.weight_scale_inv needs second.weight, of which the checkpoint has none",
    ),
    "scales of a weight that has none": (
        replaced("second.weight", torch.ones(OUT, IN)),
        "second.weight_scale_inv goes with a weight in float8_e4m3fn, got one in float32",
    ),
    "another FP8": (
        replaced("second.weight", torch.ones(OUT, IN).to(torch.float8_e5m2)),
        "second.weight must be float8_e4m3fn with weight_scale_inv, or bfloat16, float16, float32, "
        "got float8_e5m2",
    ),
    "another shape": (
        replaced("second.weight", torch.zeros(IN, OUT).to(torch.float8_e4m3fn)),
        "second.weight must have shape [136, 272], got [272, 136]",
    ),
    "a bias of another shape": (
        replaced("second.bias", torch.zeros(1)),
        "second.bias must have shape [136], got [1]",
    ),
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("strict", [True, False])
def test_what_is_refused(what: str, strict: bool) -> None:
    change, message = WRONG[what]
    model = Model()
    model.load_state_dict(public_state())
    before = {name: tensor.clone() for name, tensor in model.second.state_dict().items()}
    state = change({name: tensor.clone() for name, tensor in public_state().items()})
    for name in state:
        if state[name].dtype == torch.float32:
            state[name] += 1
    with pytest.raises(RuntimeError, match=re.escape(message)) as load_error:
        model.load_state_dict(state, strict=strict)
    assert "Missing key" not in str(load_error.value)
    assert_same_state(model.second, before)
    with pytest.raises(RuntimeError, match=re.escape(message)):
        check_state_dict(model, state)


def test_the_check_changes_nothing_and_names_all() -> None:
    model, state = Model(), public_state()
    del state["first.weight_scale_inv"], state["second.weight_scale_inv"]
    with pytest.raises(RuntimeError, match=r"fit Model:\n\tfirst.weight is .*\n\tsecond.weight is"):
        check_state_dict(model, state)
    assert bool(model.first.weight_scale_inv.isnan().all())


def test_missing_names_are_torchs_to_report() -> None:
    model = Model()
    state = {name: tensor for name, tensor in public_state().items() if "second" not in name}
    check_state_dict(model, state)
    missing = model.load_state_dict(state, strict=False).missing_keys
    assert sorted(missing) == ["second.bias", "second.weight", "second.weight_scale_inv"]
    assert bool(model.second(torch.ones(1, IN)).isnan().all())  # nothing has been loaded
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(state)


@pytest.mark.parametrize("convert", [nn.Module.half, nn.Module.bfloat16, nn.Module.double])
def test_conversions_leave_the_dtypes(convert: Callable[[nn.Module], nn.Module]) -> None:
    model = Model()
    model.load_state_dict(public_state())
    convert(model)
    assert_same_state(model, public_state())
    model.to("meta", torch.float16)
    assert model.first.weight.is_meta
    assert model.first.weight.dtype == torch.float8_e4m3fn


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((264, 136), "Fp8Linear: in_features must be a multiple of 16, got 264"),
        ((272, 132), "Fp8Linear: out_features must be a multiple of 8, got 132"),
    ],
)
def test_sizes_that_the_gemm_does_not_take(sizes: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Fp8Linear.empty(*sizes)
    with pytest.raises(ValueError, match=message):
        Fp8Linear.from_float(nn.Linear(*sizes))
    with pytest.raises(ValueError, match="scale_fmt"):
        Fp8Linear.empty(272, 136, scale_fmt="e8m0")
