"""DeepSeek-V3 of transformers with the kernels' modules, beside the same model in plain torch."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
import torch._dynamo
from torch import Tensor

import pykernels
from pykernels.integrations.transformers import Acceleration, LatentCache, accelerate_model
from pykernels.nn import Fp8Mlp, MlaAttention, MoeLayer
from tests.integrations.models import deepseek_v3, in_fp8, logits, token_ids
from tests.nn.mla_models import error

IDS = token_ids(2, 9)
LEFT_PADDED = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1], [1] * 9])
RIGHT_PADDED = LEFT_PADDED.flip(1)
CACHES = pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float8_e4m3fn], ids=["bf16", "fp8"]
)


@functools.cache
def accelerated(dtype: torch.dtype = torch.bfloat16) -> Acceleration:
    return accelerate_model(deepseek_v3(), cache_dtype=dtype, page_size=16)


@functools.cache
def by_reference(fp8_cache: bool) -> tuple[Tensor, Tensor]:
    """Logits in FP32 and in FP8."""
    model = deepseek_v3()
    return (
        logits(copy.deepcopy(model).float(), IDS, use_cache=False),
        logits(in_fp8(model, fp8_cache), IDS, use_cache=False),
    )


def assert_as_fp8(found: Tensor, exact: Tensor, reference: Tensor) -> None:
    """As far from FP32 as FP8 is, and nearer to the FP8 model: other roundings are less."""
    by_fp8 = error(reference, exact)
    assert by_fp8 < 0.15
    assert error(found, exact) <= 1.1 * by_fp8
    assert error(found, reference) <= 0.9 * by_fp8


def same(found: Tensor, wanted: Tensor) -> None:
    """Up to roundings to BF16 and what they change in FP8."""
    assert error(found, wanted) < 0.05


def test_what_is_replaced() -> None:
    acceleration = accelerated()
    assert [tuple(each) for each in acceleration.replaced] == [
        ("model.layers.0.self_attn", "DeepseekV3Attention", "MlaAttention"),
        ("model.layers.0.mlp", "DeepseekV3MLP", "Fp8Mlp"),
        ("model.layers.1.self_attn", "DeepseekV3Attention", "MlaAttention"),
        ("model.layers.1.mlp", "DeepseekV3MoE", "MoeLayer"),
        ("model.layers.2.self_attn", "DeepseekV3Attention", "MlaAttention"),
        ("model.layers.2.mlp", "DeepseekV3MoE", "MoeLayer"),
        ("model.rotary_emb", "DeepseekV3RotaryEmbedding", "RotaryEmbedding"),
    ]
    assert [tuple(each) for each in acceleration.left] == [
        ("lm_head", "Linear", "makes the logits; name it in include")
    ]
    layer = acceleration.model.get_submodule("model.layers.1")
    assert isinstance(layer.self_attn, MlaAttention)
    assert isinstance(layer.mlp, MoeLayer)
    assert isinstance(acceleration.model.get_submodule("model.layers.0.mlp"), Fp8Mlp)
    assert acceleration.bytes_after < 0.7 * acceleration.bytes_before


@CACHES
def test_teacher_forced_logits(dtype: torch.dtype) -> None:
    exact, reference = by_reference(dtype == torch.float8_e4m3fn)
    found = logits(accelerated(dtype).model, IDS, use_cache=False)
    assert_as_fp8(found, exact, reference)
    assert torch.equal(logits(accelerated(dtype).model, IDS), found)  # with a cache


def test_a_model_in_fp32() -> None:
    exact, reference = by_reference(False)
    with accelerate_model(deepseek_v3(torch.float32)) as acceleration:
        out = acceleration.model(IDS, use_cache=False).logits
    assert out.dtype == torch.float32
    assert_as_fp8(out, exact, reference)


def test_in_the_emulator() -> None:
    model = deepseek_v3(num_hidden_layers=2)
    ids = IDS[:1, :4]
    exact, reference = logits(copy.deepcopy(model).float(), ids), logits(in_fp8(model), ids)
    accelerate_model(model)
    with pykernels.emulate() as report:
        found = model(ids[:, :3])
        last = model(ids[:, 3:], cache=found.cache)
    report.raise_if_findings()
    assert_as_fp8(torch.cat([found.logits, last.logits], dim=1), exact, reference)


@pytest.mark.parametrize("mask", [LEFT_PADDED, RIGHT_PADDED], ids=["left", "right"])
@pytest.mark.parametrize("use_cache", [False, True], ids=["no_cache", "cache"])
def test_padding_changes_nothing(mask: Tensor, use_cache: bool) -> None:
    model = accelerated().model
    found = logits(model, IDS, attention_mask=mask, use_cache=use_cache)
    for row, is_token in enumerate(mask.bool()):
        alone = logits(model, IDS[row : row + 1, is_token], use_cache=False)
        same(found[row, is_token], alone[0])


def test_token_by_token_and_in_parts() -> None:
    model, cache = accelerated().model, None
    whole = logits(model, IDS, attention_mask=LEFT_PADDED)
    found = []
    for begin, end in ((0, 5), (5, 7), (7, 8), (8, 9)):
        out = model(IDS[:, begin:end], attention_mask=LEFT_PADDED[:, :end], cache=cache)
        cache = out.cache
        found.append(out.logits)
    is_token = LEFT_PADDED.bool()
    same(torch.cat(found, dim=1)[is_token], whole[is_token])
    assert cache.get_seq_length() == 9
    assert cache.pages.lengths == (6, 9)


def test_no_graph_breaks() -> None:
    model = accelerated().model
    for options in ({"use_cache": False}, {}):
        assert torch._dynamo.explain(model)(IDS, **options).graph_break_count == 0


def test_a_compiled_decode() -> None:
    """One graph, compiled once, for any number of steps; the same as without compiling."""
    model = accelerated().model
    cache, eager_cache = (LatentCache(model.config, 2, page_size=4) for _ in range(2))
    for each in (cache, eager_cache):
        model(IDS[:, :6], cache=each)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch._dynamo.utils.counters.clear()
    for place in range(6, 9):
        cache.reserve()
        found = logits(compiled, IDS[:, place : place + 1], cache=cache)
        wanted = logits(model, IDS[:, place : place + 1], cache=eager_cache)
        assert error(found, wanted) < 0.01
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_undo_is_bitwise() -> None:
    model = deepseek_v3()
    modules = dict(model.named_modules())
    state = {name: (tensor, tensor.clone()) for name, tensor in model.state_dict().items()}
    before = logits(model, IDS)
    with accelerate_model(model) as acceleration:
        assert not torch.equal(logits(model, IDS), before)
        model.generate(IDS, max_new_tokens=2)
        model.train()
    assert all(each is modules[name] for name, each in model.named_modules())
    assert list(dict(model.named_modules())) == list(modules)
    assert model.get_submodule("model.layers.0.self_attn").training
    for name, tensor in model.state_dict().items():
        assert tensor.data_ptr() == state[name][0].data_ptr()
        assert torch.equal(tensor, state[name][1])
    assert torch.equal(logits(model.eval(), IDS), before)
    acceleration.undo()  # does nothing
    assert "_prepare_cache_for_generation" not in vars(model)


def test_what_was_given_up_cannot_come_back() -> None:
    acceleration = accelerate_model(deepseek_v3(num_hidden_layers=1))
    acceleration.keep()
    with pytest.raises(RuntimeError, match=r"keep\(\) gave up"):
        acceleration.undo()


def test_undo_finds_another_module() -> None:
    acceleration = accelerate_model(deepseek_v3(num_hidden_layers=1))
    other = acceleration.model.model.layers[0].mlp = torch.nn.Identity()
    with pytest.raises(RuntimeError, match=r"needs model\.layers\.0\.mlp as accelerate_model"):
        acceleration.undo()
    assert acceleration.model.model.layers[0].mlp is other
