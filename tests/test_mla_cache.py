"""Writing the MLA cache and reading it: torch implementation and kernels against the reference."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import pykernels
from pykernels import reference
from pykernels.native import native
from pykernels.testing import FP32_FLOOR, assert_rows_close, row_errors
from tests.cases import assert_same_bits
from tests.op_checks import CHECKS
from tests.recording import Cuda
from tests.target import selected

Pair = tuple[Tensor, Tensor]
FP8 = torch.float8_e4m3fn
WRITE, READ = pykernels.mla_cache_write, pykernels.mla_cache_read
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.uint8, FP8], ids=str)
IN_TORCH = pytest.mark.parametrize("in_torch", [False, True], ids=["kernel", "torch"])
MODES = ("early", "late", "random")
POISON = 0x55


@pytest.fixture(autouse=True)
def _compiled_anew() -> Iterator[None]:
    yield
    torch._dynamo.reset()


@dataclasses.dataclass(frozen=True)
class Case:
    """Tokens, pages of a size, and what they exercise."""

    num_tokens: int
    num_pages: int
    page_size: int
    what: str

    def __str__(self) -> str:
        return f"{self.num_tokens}-{self.num_pages}x{self.page_size}-{self.what.replace(' ', '_')}"


CASES = [
    Case(1, 1, 1, "one slot"),
    Case(4, 9, 1, "pages of one token"),
    Case(5, 2, 16, "a CTA and a warp"),
    Case(33, 1, 64, "one page"),
    Case(16, 2, 8, "every slot"),
    Case(21, 3, 256, "the largest pages"),
]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_tokens(num_tokens: int, seed: int = 0) -> Pair:
    """Columns of one projection, with NaN around them; rows and columns differ in magnitude."""
    magnitude = torch.exp(torch.randn(num_tokens, 1, generator=generator(seed)) * 2)
    blocks = torch.logspace(-2, 2, 9).repeat_interleave(64)
    wide = torch.full((num_tokens, 8 + 576 + 8), torch.nan, dtype=torch.bfloat16)
    tokens = wide[:, 8 : 8 + 576]
    tokens.copy_(torch.randn(num_tokens, 576, generator=generator(seed + 1)) * magnitude * blocks)
    return tokens[:, :512], tokens[:, 512:]


def make_cache(num_pages: int, page_size: int, dtype: torch.dtype) -> Tensor:
    """Filled with bytes that no test writes."""
    token_bytes = 1152 if dtype == torch.bfloat16 else 656
    shape = (num_pages, page_size, 1, token_bytes)
    return torch.full(shape, POISON, dtype=torch.uint8).view(dtype)


def make_slots(num_tokens: int, num_slots: int, seed: int = 0) -> Tensor:
    """A permutation; one token of many is left out."""
    slots = torch.randperm(num_slots, generator=generator(seed))[:num_tokens]
    if num_tokens > 2:
        slots[2] = -1
    return slots


def angles_of(num_tokens: int, dtype: torch.dtype = torch.float32, seed: int = 5) -> dict[str, Any]:
    angles = torch.randn(num_tokens, 32, generator=generator(seed)) * 4
    return {"cos": angles.cos().to(dtype), "sin": angles.sin().to(dtype)}


def weight(dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.rand(512, generator=generator(7)) + 0.5).to(dtype)


OPTIONS = ("copy", "norm", "interleaved", "halves", "all")


def options_of(name: str, num_tokens: int) -> dict[str, Any]:
    bf16 = torch.bfloat16
    return {
        "copy": {},
        "norm": {"norm_weight": weight(), "norm_eps": 1e-3},
        "interleaved": angles_of(num_tokens),
        "halves": {**angles_of(num_tokens, bf16), "rope_interleaved": False},
        "all": {"norm_weight": weight(bf16), **angles_of(num_tokens)},
    }[name]


def call(op: Any, in_torch: bool, *arguments: Any, options: Any = None, **named: Any) -> Any:
    """In torch, or by the kernel, with ``--device cuda`` on the GPU; demands no findings."""
    if in_torch:
        return op(*arguments, **named)
    result, launched = selected().call(op, *arguments, options=options, **named)
    assert launched in ([op.__name__], None)
    return result


def stored(cache: Tensor) -> Tensor:
    """Bytes of each slot."""
    return cache.contiguous().view(torch.uint8).flatten(0, 2)


def assert_stored(cache: Tensor, tokens: Pair, slots: Tensor, **named: Any) -> None:
    """Within 1.5 times what rounding costs, exactly where nothing is computed; no other slot."""
    exact = reference.mla_cache_tokens(*tokens, **named)
    expected = reference.mla_cache_write(*tokens, cache, slots, **named)
    kept = slots >= 0
    actual, best = (
        [part[kept] for part in reference.mla_cache_read(each, slots)] for each in (cache, expected)
    )
    written = torch.zeros(cache.size(0) * cache.size(1), dtype=torch.bool)
    written[slots[kept]] = True
    assert bool((stored(cache)[~written] == POISON).all())
    rope_at = 1024 if cache.dtype == torch.bfloat16 else 528
    if "norm_weight" not in named:
        assert_same_bits(
            stored(cache)[written][:, :rope_at], stored(expected)[written][:, :rope_at]
        )
    elif cache.dtype != torch.bfloat16:
        scales, best_scales = (
            stored(each)[written][:, 512:528].contiguous().view(torch.float32)
            for each in (cache, expected)
        )
        torch.testing.assert_close(scales, best_scales, rtol=2e-6, atol=0)
    for part, block in enumerate((128, 64)):
        of_blocks = exact[part][kept].reshape(-1, block)
        errors = row_errors(actual[part].reshape(-1, block), of_blocks)
        allowed = 1.5 * row_errors(best[part].reshape(-1, block), of_blocks) + FP32_FLOOR
        assert bool((errors <= allowed).all()), (part, errors - allowed)
    if "cos" not in named:
        assert_same_bits(
            stored(cache)[written][:, rope_at:], stored(expected)[written][:, rope_at:]
        )


@IN_TORCH
@DTYPES
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_write(case: Case, options: str, dtype: torch.dtype, in_torch: bool) -> None:
    tokens = make_tokens(case.num_tokens)
    cache = make_cache(case.num_pages, case.page_size, dtype)
    slots = make_slots(case.num_tokens, case.num_pages * case.page_size)
    named = options_of(options, case.num_tokens)
    assert call(WRITE, in_torch, *tokens, cache, slots, **named) is None
    assert_stored(cache, tokens, slots, **named)


@DTYPES
@pytest.mark.parametrize("options", OPTIONS)
def test_torch_and_kernel_agree(options: str, dtype: torch.dtype) -> None:
    tokens, slots = make_tokens(150, seed=3), make_slots(150, 160)
    named = options_of(options, 150)
    caches = [make_cache(10, 16, dtype) for _ in range(2)]
    for in_torch, cache in enumerate(caches):
        call(WRITE, bool(in_torch), *tokens, cache, slots, **named)
    assert_same_bits(*map(stored, caches))


@pytest.mark.parametrize("what", ["latent", "rope", "scale", "pairs", "swapped", "neighbour"])
def test_a_wrong_value_is_noticed(what: str) -> None:
    tokens, slots = make_tokens(8), make_slots(8, 16)
    named = options_of("all", 8)
    cache = make_cache(2, 8, torch.uint8)
    if what == "swapped":
        WRITE(*tokens, cache, slots.roll(1), **named)
    else:
        WRITE(*tokens, cache, slots, **named, rope_interleaved=what != "pairs")
    assert what in ("swapped", "pairs") or assert_stored(cache, tokens, slots, **named) is None
    token = stored(cache)[int(slots[4])]
    token_scales = token[512:528].view(torch.float32)
    if what == "latent":
        token[:512] = token[:512].roll(1)
    elif what == "rope":
        token[528:] = 0
    elif what == "scale":
        token_scales[1] *= 1.02
    elif what == "neighbour":
        stored(cache)[next(s for s in range(16) if s not in slots), 655] = 0
    with pytest.raises(AssertionError):
        assert_stored(cache, tokens, slots, **named)


@IN_TORCH
def test_fp8_is_the_cast_of_quantize_1x128(in_torch: bool) -> None:
    latent, rope = make_tokens(24)
    slots = make_slots(24, 32)
    cache = make_cache(2, 16, torch.uint8)
    call(WRITE, in_torch, latent, rope, cache, slots)
    q, scales = pykernels.quantize_1x128(latent)
    kept = slots >= 0
    tokens = stored(cache)[slots[kept]]
    assert_same_bits(tokens[:, :512], q.view(torch.uint8)[kept])
    assert_same_bits(tokens[:, 512:528].contiguous().view(torch.float32), scales[kept])
    assert_same_bits(tokens[:, 528:].contiguous().view(torch.bfloat16), rope[kept])

    read_latent, read_rope = call(READ, in_torch, cache, slots)
    values = (q.float() * scales.repeat_interleave(128, dim=1)).bfloat16()
    assert_same_bits(read_latent[kept], values[kept])
    assert_same_bits(read_rope[kept], rope[kept])
    assert_same_bits(read_latent[~kept], torch.zeros_like(read_latent[~kept]))
    assert_same_bits(read_rope[~kept], torch.zeros_like(read_rope[~kept]))


@IN_TORCH
def test_bf16_is_copied_with_all_its_bits(in_torch: bool) -> None:
    """All 65536 values there are, those of NaN with theirs."""
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    tokens = torch.cat([every, every[: 576 * 114 - 2**16]]).view(114, 576)
    slots = make_slots(114, 128)
    cache = make_cache(8, 16, torch.bfloat16)
    call(WRITE, in_torch, tokens[:, :512], tokens[:, 512:], cache, slots)
    kept = slots >= 0
    assert_same_bits(cache.flatten(0, 2)[slots[kept]], tokens[kept])
    latent, rope = call(READ, in_torch, cache, slots)
    assert_same_bits(torch.cat([latent, rope], dim=1)[kept], tokens[kept])


@IN_TORCH
def test_every_fp8_value_is_read(in_torch: bool) -> None:
    """Each with scales that round, that are or make subnormals, that overflow, and NaN."""
    scales = torch.tensor([1.0, 1 / 3, 0.7, 2.0**-140, 1e-40, 3e38, torch.nan, torch.inf])
    cache = torch.zeros(2, 2, 1, 656, dtype=torch.uint8)
    tokens = stored(cache)
    tokens[:, :512] = torch.arange(256, dtype=torch.uint8).repeat(2)
    rows = torch.stack([scales[[i, i, i + 1, i + 1]] for i in range(0, 8, 2)])
    tokens[:, 512:528] = rows.view(torch.uint8)
    cache = cache.view(FP8)
    latent, _ = call(READ, in_torch, cache, torch.arange(4))
    q = torch.arange(256, dtype=torch.uint8).view(FP8).float().repeat(2)
    expected = (q * rows.repeat_interleave(128, dim=1)).bfloat16()
    assert_same_bits(latent.isnan(), expected.isnan())
    assert_same_bits(latent.nan_to_num(1.0), expected.nan_to_num(1.0))


@IN_TORCH
@DTYPES
def test_norm_against_transformers(dtype: torch.dtype, in_torch: bool) -> None:
    """They round the normalised row to BF16 ahead of the weight: only that much apart."""
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3RMSNorm

    latent, rope = make_tokens(12)
    norm = DeepseekV3RMSNorm(512, eps=1e-6).bfloat16()
    with torch.no_grad():
        norm.weight.copy_(weight())
        expected = norm(latent)
    cache, slots = make_cache(1, 16, dtype), torch.arange(12)
    call(WRITE, in_torch, latent, rope, cache, slots, norm_weight=norm.weight.detach())
    actual, _ = call(READ, in_torch, cache, slots)
    bound = 0.005 if dtype == torch.bfloat16 else 0.04
    assert float(row_errors(actual, expected).max()) < bound


@IN_TORCH
@pytest.mark.parametrize("interleaved", [False, True])
def test_rotation_against_transformers(interleaved: bool, in_torch: bool) -> None:
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as deepseek

    latent, rope = make_tokens(12)
    angles = angles_of(12)
    apply: Any = (
        deepseek.apply_rotary_pos_emb_interleave if interleaved else deepseek.apply_rotary_pos_emb
    )
    both = [torch.cat([each, each], dim=1)[None] for each in angles.values()]
    _, turned = apply(rope[None, None].float(), rope[None, None].float(), *both)
    cache, slots = make_cache(1, 16, torch.bfloat16), torch.arange(12)
    call(WRITE, in_torch, latent, rope, cache, slots, **angles, rope_interleaved=interleaved)
    _, actual = call(READ, in_torch, cache, slots)
    if interleaved:  # theirs takes the columns of the pairs apart
        actual = torch.cat([actual[:, ::2], actual[:, 1::2]], dim=1)
    assert_rows_close(actual, turned[0, 0].double(), FP32_FLOOR)


@IN_TORCH
def test_special_values(in_torch: bool) -> None:
    """A block with NaN or infinity is NaN throughout; its neighbours stay what they are."""
    latent, rope = make_tokens(6)
    plain = make_cache(1, 8, torch.uint8)
    call(WRITE, in_torch, latent, rope, plain, torch.arange(6))
    spoilt = latent.clone()
    specials = (torch.nan, torch.inf, -torch.inf)
    for row, special in enumerate(specials):
        spoilt[row, 130 + 60 * row] = special
    spoilt[3, :128] = 0
    spoilt[4, 128:256] = -0.0
    cache = make_cache(1, 8, torch.uint8)
    call(WRITE, in_torch, spoilt, rope, cache, torch.arange(6))
    scales = stored(cache)[:6, 512:528].contiguous().view(torch.float32)
    codes = stored(cache)[:6, :512].view(6, 4, 128)
    for row in range(len(specials)):
        block = (130 + 60 * row) // 128
        assert bool(scales[row, block].isnan())
        assert bool((codes[row, block] == 0x7F).all())
        others = [b for b in range(4) if b != block]
        assert_same_bits(codes[row, others], stored(plain)[row, :512].view(4, 128)[others])
    assert (float(scales[3, 0]), float(scales[4, 1])) == (1, 1)
    assert bool((codes[3, 0] == 0).all())
    assert bool((codes[4, 1] == 0x80).all())
    read, _ = call(READ, in_torch, cache, torch.arange(6))
    assert read.isnan().view(6, 4, 128).all(dim=2).nonzero().tolist() == [[0, 1], [1, 1], [2, 1]]
    assert int(read.isnan().sum()) == 3 * 128


@IN_TORCH
@DTYPES
def test_norm_of_special_rows(dtype: torch.dtype, in_torch: bool) -> None:
    """NaN spreads over the row; infinity leaves zeros beside it; zeros stay zeros."""
    latent, rope = make_tokens(4)
    latent = latent.clone()
    latent[0, 5], latent[1, 300], latent[2] = torch.nan, torch.inf, 0
    cache = make_cache(1, 4, dtype)
    call(WRITE, in_torch, latent, rope, cache, torch.arange(4), norm_weight=weight())
    read, _ = call(READ, in_torch, cache, torch.arange(4))
    assert bool(read[0].isnan().all())
    columns = torch.tensor([300]) if dtype == torch.bfloat16 else torch.arange(256, 384)
    assert read[1].isnan().nonzero().flatten().tolist() == columns.tolist()
    assert not bool(read[1].nan_to_num(0).any())
    assert not bool(read[2].any())
    assert not bool(read[3].isnan().any())


# ---- layouts ----


def cache_layouts(dtype: torch.dtype) -> dict[str, Tensor]:
    """Three pages of eight tokens each."""
    columns = 576 if dtype == torch.bfloat16 else 656
    gap = 16 // dtype.itemsize
    tokens_apart = make_bytes(3, 8, 1, columns + gap, dtype=dtype)[..., :columns]
    pages_apart = make_bytes(3, 8 * columns + 3 * gap, dtype=dtype)[:, : 8 * columns]
    in_turns = make_bytes(8, 3, 1, columns, dtype=dtype).transpose(0, 1)
    return {
        "tokens apart": tokens_apart,
        "pages apart": pages_apart.unflatten(1, (8, 1, columns)),
        "pages in turns": in_turns,
        "heads apart": make_bytes(3, 8, 2, columns, dtype=dtype)[:, :, 1:],
    }


def make_bytes(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.full((*shape[:-1], shape[-1] * dtype.itemsize), POISON, dtype=torch.uint8).view(
        dtype
    )


@IN_TORCH
@DTYPES
@pytest.mark.parametrize("layout", cache_layouts(FP8))
def test_strides_of_the_cache(layout: str, dtype: torch.dtype, in_torch: bool) -> None:
    cache = cache_layouts(dtype)[layout]
    tokens, slots = make_tokens(11), make_slots(11, 24)
    call(WRITE, in_torch, *tokens, cache, slots)
    assert_stored(cache, tokens, slots)
    whole = torch.empty(0, dtype=torch.uint8).set_(cache.untyped_storage())
    assert int((whole != POISON).sum()) == int((stored(cache) != POISON).sum())
    plain = make_cache(3, 8, dtype).copy_(cache)
    for actual, expected in zip(
        call(READ, in_torch, cache, slots), call(READ, in_torch, plain, slots), strict=True
    ):
        assert_same_bits(actual, expected)


@IN_TORCH
def test_strides_of_the_tokens(in_torch: bool) -> None:
    """Each of the tensors on its own, and what is read into columns of one."""
    slots, angles = make_slots(9, 16), angles_of(9)
    latent, rope = make_tokens(9)
    cos_sin = torch.full((9, 128), torch.nan)
    cos, sin = cos_sin[:, 4:36].copy_(angles["cos"]), cos_sin[:, 64:96].copy_(angles["sin"])
    expected, cache = make_cache(1, 16, torch.uint8), make_cache(1, 16, torch.uint8)
    call(WRITE, in_torch, latent.clone(), rope.clone(), expected, slots, **angles)
    call(WRITE, in_torch, latent, rope, cache, slots, cos=cos, sin=sin)
    assert_same_bits(cache, expected)

    wide = torch.full((9, 600), 7.0, dtype=torch.bfloat16)
    out = wide[:, 8:520], wide[:, 520:584]
    result = call(READ, in_torch, cache, slots, out=out)
    assert result[0] is out[0]
    assert result[1] is out[1]
    for actual, values in zip(out, call(READ, in_torch, cache, slots), strict=True):
        assert_same_bits(actual, values)
    assert bool((wide[:, :8] == 7).all())
    assert bool((wide[:, 584:] == 7).all())


@IN_TORCH
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_types_of_slots(dtype: torch.dtype, in_torch: bool) -> None:
    tokens, slots = make_tokens(13), make_slots(13, 32).to(dtype)
    cache = make_cache(2, 16, FP8)
    call(WRITE, in_torch, *tokens, cache, slots)
    assert_stored(cache, tokens, slots)
    twice = torch.cat([slots, slots.flip(0)])
    latent, rope = call(READ, in_torch, cache, twice)
    exact = reference.mla_cache_read(cache, twice)
    assert_same_bits(latent, exact[0].bfloat16())
    assert_same_bits(rope, exact[1].bfloat16())


@pytest.mark.parametrize("mode", MODES)
def test_same_bits_with_every_schedule(mode: str) -> None:
    tokens, slots, named = make_tokens(21), make_slots(21, 32), options_of("all", 21)
    expected = make_cache(2, 16, torch.uint8)
    WRITE(*tokens, expected, slots, **named)
    read = READ(expected, slots)
    for seed in range(3):
        options = {"seed": seed, "async_completion": mode, "num_sms": seed + 1}
        cache = make_cache(2, 16, torch.uint8)
        call(WRITE, False, *tokens, cache, slots, **named, options=options)
        assert_same_bits(cache, expected)
        for actual, values in zip(
            call(READ, False, cache, slots, options=options), read, strict=True
        ):
            assert_same_bits(actual, values)


@IN_TORCH
@DTYPES
def test_nothing_to_do(dtype: torch.dtype, in_torch: bool) -> None:
    """No tokens; no pages, where every token is left out; all left out of a cache."""
    none, some = torch.zeros(0, dtype=torch.int32), torch.full((3,), -1, dtype=torch.int32)
    cache, empty = make_cache(2, 4, dtype), make_cache(0, 4, dtype)
    for slots, target in ((none, cache), (none, empty), (some, empty), (some, cache)):
        tokens = make_tokens(len(slots))
        if in_torch or len(slots) == 0:
            with pykernels.emulate() as report:
                WRITE(*make_tokens(0), target, none)
                latent, rope = READ(target, none)
            assert not report.launches
            WRITE(*tokens, target, slots)
            latent, rope = READ(target, slots)
        else:
            call(WRITE, False, *tokens, target, slots)
            latent, rope = call(READ, False, target, slots)
        assert (latent.shape, rope.shape) == ((len(slots), 512), (len(slots), 64))
        assert not bool(latent.any())
        assert not bool(rope.any())
    assert bool((stored(cache) == POISON).all())


# ---- what is moved ----


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.uint8], ids=str)
@pytest.mark.parametrize("options", ["copy", "all"])
def test_bytes(dtype: torch.dtype, options: str) -> None:
    """What a token consists of, its slot and its angles; the weights once for each warp."""
    num_tokens = 64
    tokens = tuple(part.contiguous() for part in make_tokens(num_tokens))
    named = options_of(options, num_tokens)
    cache = make_cache(4, 16, dtype)
    slots = torch.arange(num_tokens)
    with pykernels.emulate(checks=()) as report:
        WRITE(*tokens, cache, slots, **named)
    counters = report.counters
    angles = 2 * 32 * 4 if "cos" in named else 0
    weights = 512 * 2 if "norm_weight" in named else 0
    token_bytes = cache.stride(1) * cache.element_size()
    assert counters.global_bytes_written == num_tokens * token_bytes
    assert counters.global_footprint_bytes_read == num_tokens * (1152 + 8 + angles) + weights
    with pykernels.emulate(checks=()) as report:
        READ(cache, slots)
    assert report.counters.global_bytes_written == num_tokens * 1152
    least = num_tokens * (token_bytes + 8)
    assert report.counters.global_footprint_bytes_read == least


def test_no_spills_and_many_warps() -> None:
    """Few registers, so that an SM holds the tokens of 32 warps or more."""
    kernels = {info.name: info for info in native().registered_kernels()}
    assert kernels["mla_cache_write"].registers <= 64
    assert kernels["mla_cache_read"].registers <= 40


# ---- wrong arguments ----


def arguments_of(op: Any, num_tokens: int = 12) -> dict[str, Any]:
    latent, rope = make_tokens(num_tokens)
    cache = make_cache(2, 16, torch.uint8)
    slots = make_slots(num_tokens, 32)
    if op is READ:
        return {"kv_cache": cache, "slot_mapping": slots}
    return {"kv_latent": latent, "k_rope": rope, "kv_cache": cache, "slot_mapping": slots}


@dataclasses.dataclass(frozen=True)
class Wrong:
    """One spoilt call and what the message must say."""

    name: str
    named: dict[str, Any]
    message: str
    op: Any = WRITE

    def __str__(self) -> str:
        return self.name


BF16 = torch.bfloat16
CACHE = torch.zeros(2, 16, 1, 656, dtype=torch.uint8)
ANGLES = angles_of(12)
WRONG = [
    Wrong("latent no tensor", {"kv_latent": [1.0]}, "kv_latent must be a tensor, got list"),
    Wrong("cache no tensor", {"kv_cache": None}, "kv_cache must be a tensor, got NoneType"),
    Wrong("weight no tensor", {"norm_weight": 1.0}, "norm_weight must be a tensor, got float"),
    Wrong("sin no tensor", {"cos": ANGLES["cos"], "sin": 1}, "sin must be a tensor, got int"),
    Wrong("cos alone", {"cos": ANGLES["cos"]}, "cos and sin come together, got cos without sin"),
    Wrong("sin alone", {"sin": ANGLES["sin"]}, "cos and sin come together, got sin without cos"),
    Wrong(
        "order of pairs", {"rope_interleaved": 1}, "rope_interleaved must be True or False, got 1"
    ),
    Wrong("eps no number", {"norm_eps": "1"}, "norm_eps must be a number, got '1'"),
    Wrong("eps below 0", {"norm_eps": -1e-6}, "norm_eps must be from 0 to 1, got -1e-06"),
    Wrong("eps NaN", {"norm_eps": float("nan")}, "norm_eps must be from 0 to 1, got nan"),
    Wrong(
        "gradient",
        {"norm_weight": torch.ones(512, requires_grad=True)},
        "norm_weight requires grad",
    ),
    Wrong("device", {"norm_weight": weight().to("meta")}, "norm_weight on meta"),
    Wrong("dtype of latent", {"kv_latent": torch.zeros(12, 512)}, "kv_latent must be bfloat16"),
    Wrong("dtype of rope", {"k_rope": torch.zeros(12, 64).half()}, "k_rope must be bfloat16"),
    Wrong(
        "dtype of cache", {"kv_cache": CACHE.to(torch.int8)}, "kv_cache must be bfloat16 or uint8"
    ),
    Wrong(
        "dtype of slots", {"slot_mapping": torch.zeros(12)}, "slot_mapping must be int32 or int64"
    ),
    Wrong("dtype of weight", {"norm_weight": weight().double()}, "norm_weight must be float32 or"),
    Wrong(
        "dtype of cos", {name: each.half() for name, each in ANGLES.items()}, "cos must be float32"
    ),
    Wrong(
        "two dtypes", {**ANGLES, "sin": ANGLES["sin"].bfloat16()}, "cos and sin must have one dtype"
    ),
    Wrong("rank of latent", {"kv_latent": torch.zeros(12, 1, 512, dtype=BF16)}, "must have 2 dim"),
    Wrong("rank of slots", {"slot_mapping": torch.zeros(12, 1).long()}, "must have 1 dimensions"),
    Wrong(
        "columns of latent",
        {"kv_latent": torch.zeros(12, 576, dtype=BF16)},
        "kv_latent must be [num_tokens, 512] = [12, 512], got [12, 576]",
    ),
    Wrong(
        "rows of rope",
        {"k_rope": torch.zeros(11, 64, dtype=BF16)},
        "k_rope must be [num_tokens, 64] = [12, 64], got [11, 64]",
    ),
    Wrong(
        "number of slots",
        {"slot_mapping": torch.zeros(11).long()},
        "slot_mapping must be [num_tokens] = [12], got [11]",
    ),
    Wrong("size of weight", {"norm_weight": torch.ones(576)}, "norm_weight must be [512]"),
    Wrong(
        "shape of cos",
        {**ANGLES, "cos": torch.zeros(12, 64)},
        "cos must be [num_tokens, 32] = [12, 32], got [12, 64]",
    ),
    Wrong(
        "rank of cache",
        {"kv_cache": CACHE[:, :, 0]},
        "kv_cache of uint8 must be [num_pages, page_size, 1, 656], got [2, 16, 656]",
    ),
    Wrong(
        "heads of cache",
        {"kv_cache": CACHE.expand(2, 16, 2, 656)},
        "must be [num_pages, page_size, 1, 656], got [2, 16, 2, 656]",
    ),
    Wrong(
        "columns of an FP8 cache",
        {"kv_cache": CACHE[..., :576]},
        "bfloat16 has 576 columns, and all query heads share one head",
    ),
    Wrong(
        "columns of a BF16 cache",
        {"kv_cache": CACHE.to(BF16)},
        "kv_cache of bfloat16 must be [num_pages, page_size, 1, 576], got [2, 16, 1, 656]",
    ),
    Wrong(
        "page size",
        {"kv_cache": CACHE[:, :12]},
        "the page size of kv_cache must be a power of two from 1 to 256, got 12",
    ),
    Wrong("large pages", {"kv_cache": torch.zeros(1, 512, 1, 656, dtype=torch.uint8)}, "got 512"),
    Wrong("no tokens in a page", {"kv_cache": CACHE[:, :0]}, "from 1 to 256, got 0"),
    Wrong(
        "too many slots",
        {"kv_cache": torch.zeros(1, dtype=torch.uint8).expand(2**24, 256, 1, 656)},
        "slots (num_pages * page_size) of kv_cache must be at most 2147483647",
    ),
    Wrong(
        "columns apart",
        {"kv_cache": torch.zeros(2, 16, 1, 1312, dtype=torch.uint8)[..., ::2]},
        "kv_cache must be contiguous in its last dimension",
    ),
    Wrong(
        "token stride",
        {"kv_cache": torch.zeros(2, 16, 1, 664, dtype=torch.uint8)[..., :656]},
        "the token stride of kv_cache must be a multiple of 16 bytes, got 664",
    ),
    Wrong(
        "page stride",
        {
            "kv_cache": torch.zeros(30000, dtype=torch.uint8).as_strided(
                (2, 16, 1, 656), (10500, 656, 656, 1)
            )
        },
        "the page stride of kv_cache must be a multiple of 16 bytes, got 10500",
    ),
    Wrong(
        "tokens overlap",
        {
            "kv_cache": torch.zeros(30000, dtype=torch.uint8).as_strided(
                (2, 16, 1, 656), (10496, 640, 656, 1)
            )
        },
        "elements of kv_cache must not overlap",
    ),
    Wrong(
        "row stride",
        {"k_rope": torch.zeros(12, 68, dtype=BF16)[:, :64]},
        "the row stride of k_rope must be a multiple of 16 bytes, got 136",
    ),
    Wrong(
        "rows overlap",
        {"kv_latent": torch.zeros(1, 512, dtype=BF16).expand(12, 512)},
        "rows of kv_latent must not overlap",
    ),
    Wrong(
        "row stride of sin",
        {**ANGLES, "sin": torch.zeros(12, 33)[:, :32]},
        "the row stride of sin must be a multiple of 16 bytes, got 132",
    ),
    Wrong(
        "stride of slots",
        {"slot_mapping": torch.zeros(24).long()[::2]},
        "slot_mapping must be contiguous, got stride 2",
    ),
    Wrong(
        "stride of weight", {"norm_weight": torch.zeros(1024)[::2]}, "norm_weight must be contig"
    ),
    Wrong(
        "address of cache",
        {"kv_cache": torch.zeros(16 * 656 + 8, dtype=torch.uint8)[8:].view(1, 16, 1, 656)},
        "the data pointer of kv_cache must be a multiple of 16 bytes",
    ),
    Wrong("address of rope", {"k_rope": torch.zeros(12, 72, dtype=BF16)[:, 4:68]}, "(8 past one)"),
    Wrong(
        "address of weight", {"norm_weight": torch.zeros(513)[1:]}, "data pointer of norm_weight"
    ),
    Wrong("out no pair", {"out": torch.zeros(1)}, "out must be a pair (kv_latent, k_rope)", READ),
    Wrong("out of one", {"out": (torch.zeros(1),)}, "out must be a pair (kv_latent, k_rope)", READ),
    Wrong(
        "dtype of out",
        {"out": (torch.zeros(12, 512), torch.zeros(12, 64))},
        "out[0] must be bfloat16",
        READ,
    ),
    Wrong(
        "rows of out",
        {"out": (torch.zeros(11, 512, dtype=BF16), torch.zeros(12, 64, dtype=BF16))},
        "out[0] must be [num_tokens, 512] = [12, 512], got [11, 512]",
        READ,
    ),
    Wrong(
        "row stride of out",
        {"out": (torch.zeros(12, 512, dtype=BF16), torch.zeros(12, 65, dtype=BF16)[:, :64])},
        "the row stride of out[1] must be a multiple of 16 bytes, got 130",
        READ,
    ),
    Wrong("slots to read", {"slot_mapping": torch.zeros(12)}, "slot_mapping must be int32", READ),
    Wrong("cache to read", {"kv_cache": CACHE[:, :12]}, "power of two from 1 to 256", READ),
]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_refuses(wrong: Wrong) -> None:
    right = arguments_of(wrong.op)
    named = right | wrong.named
    with pytest.raises(ValueError, match=re.escape(wrong.message)) as error:
        wrong.op(**named)
    assert pykernels.can_run(wrong.op, **named) == (False, str(error.value))
    with pykernels.emulate() as report, pytest.raises(ValueError, match=re.escape(wrong.message)):
        wrong.op(**named)
    assert not report.launches
    assert bool((stored(right["kv_cache"]) == POISON).all())


def test_the_cache_may_not_share_memory() -> None:
    packed = torch.zeros(64, 656 // 2, dtype=BF16)
    cache = packed.view(torch.uint8).view(4, 16, 1, 656)
    rope = packed[:12, :64]
    slots = torch.arange(12)
    with pytest.raises(ValueError, match="kv_cache must not share memory with k_rope"):
        WRITE(make_tokens(12)[0], rope, cache, slots)
    with pytest.raises(ValueError, match=r"out\[1\] must not share memory with kv_cache"):
        READ(cache, slots, out=(torch.zeros(12, 512, dtype=BF16), rope))
    wide = torch.zeros(12, 520, dtype=BF16)
    with pytest.raises(ValueError, match=r"out\[0\] must not share memory with out\[1\]"):
        READ(cache, slots, out=(wide[:, :512], wide[:, 456:]))


def test_can_run() -> None:
    for op in (WRITE, READ):
        named = arguments_of(op)
        assert pykernels.can_run(op, **named) == (True, "")
        wrong = named | {"slot_mapping": torch.full((12,), 32)}
        assert "slot_mapping of token 0 must be from -1 to 31, got 32" in str(
            pykernels.can_run(op, **wrong).reason
        )
        with pykernels.emulate():
            assert pykernels.can_run(op, **wrong)  # the kernel looks at them


# ---- wrong slots ----


def spoilt_slots(value: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Slots of which that of token 4 is wrong, and the same with it left out."""
    right = make_slots(9, 32).to(dtype)
    wrong, right[4] = right.clone(), -1
    wrong[4] = value
    return wrong, right


WRONG_SLOTS = [
    (32, torch.int32, "32"),
    (-2, torch.int64, "-2"),
    (2**31 - 1, torch.int32, "2147483647 or more"),
    (2**32, torch.int64, "2147483647 or more"),
    (-(2**32) + 3, torch.int64, "-2147483648 or less"),
    (2**62, torch.int64, "2147483647 or more"),
]
SLOTS = pytest.mark.parametrize(("value", "dtype", "got"), WRONG_SLOTS, ids=str)


@SLOTS
def test_wrong_slots_in_torch(value: int, dtype: torch.dtype, got: str) -> None:
    wrong, _ = spoilt_slots(value, dtype)
    cache = make_cache(2, 16, torch.uint8)
    message = f"slot_mapping of token 4 must be from -1 to 31, got {value}$"
    with pytest.raises(ValueError, match=message):
        WRITE(*make_tokens(9), cache, wrong)
    assert bool((stored(cache) == POISON).all())
    out = torch.full((9, 512), 7.0, dtype=BF16), torch.full((9, 64), 7.0, dtype=BF16)
    with pytest.raises(ValueError, match=message):
        READ(cache, wrong, out=out)
    assert all(bool((part == 7).all()) for part in out)


@SLOTS
def test_wrong_slots_in_the_kernel(value: int, dtype: torch.dtype, got: str) -> None:
    """That token is left out, or read as NaN; all others are what they should be."""
    wrong, right = spoilt_slots(value, dtype)
    tokens = make_tokens(9)
    message = re.escape(f"slot_mapping of token 4 must be from -1 to 31, got {got}; ")
    cache = make_cache(2, 16, torch.uint8)
    with pykernels.emulate() as report, pytest.raises(ValueError, match=message):
        WRITE(*tokens, cache, wrong, norm_weight=weight())
    report.raise_if_findings()
    assert_stored(cache, tokens, right, norm_weight=weight())
    expected = READ(cache, right)
    out = torch.full((9, 512), 7.0, dtype=BF16), torch.full((9, 64), 7.0, dtype=BF16)
    with pykernels.emulate() as report, pytest.raises(ValueError, match=message):
        READ(cache, wrong, out=out)
    report.raise_if_findings()
    others = torch.arange(9) != 4
    for actual, values in zip(out, expected, strict=True):
        assert_same_bits(actual[others], values[others])
        assert bool(actual[4].isnan().all())


def test_many_wrong_slots_make_one_record() -> None:
    cache, slots = make_cache(1, 4, torch.uint8), torch.full((40,), 4)
    for arguments in ((*make_tokens(40), cache, slots), (cache, slots)):
        op = WRITE if len(arguments) == 4 else READ
        with pykernels.emulate() as report, pytest.raises(ValueError, match=r"of token \d+ must"):
            op(*arguments)
        report.raise_if_findings()
    assert bool((stored(cache) == POISON).all())


# ---- the CUDA path, by a recording driver ----


def test_capture_and_replay_with_other_slots(cuda: Cuda) -> None:
    """The slots are read when the graph runs, not when it is captured."""
    tokens, slots, named = make_tokens(9), torch.full((9,), -1), options_of("all", 9)
    cache = make_cache(2, 16, torch.uint8)
    out = torch.empty(9, 512, dtype=BF16), torch.empty(9, 64, dtype=BF16)
    stream = cuda.driver.create_stream(0)
    cuda.driver.begin_capture(stream)
    with cuda.on(0, stream):
        WRITE(*tokens, cache, slots, **named)
        READ(cache, slots, out=out)
    cuda.driver.end_capture()
    assert cuda.last.captured
    assert cuda.last.launch.programmatic_dependent
    for seed in range(2):
        cache.fill_(POISON)
        slots.copy_(make_slots(9, 32, seed))
        cuda.driver.replay()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pykernels.device.cuda_stream", lambda tensor: None)
            assert_stored(cache, tokens, slots, **named)
            for actual, expected in zip(out, READ(cache, slots), strict=True):
                assert_same_bits(actual, expected)


@pytest.mark.parametrize("op", [WRITE, READ], ids=["write", "read"])
def test_check_errors_raises_what_a_kernel_found(cuda: Cuda, op: Any) -> None:
    named = arguments_of(op)
    named["slot_mapping"][7] = 77
    op(**named)
    with pytest.raises(ValueError, match="slot_mapping of token 7 must be from -1 to 31, got 77"):
        pykernels.check_errors()
    pykernels.check_errors()


def test_the_launch_is_on_the_tensors_device_and_stream(cuda: Cuda) -> None:
    stream = cuda.driver.create_stream(1)
    with cuda.on(1, stream):
        WRITE(**arguments_of(WRITE))
    assert cuda.last.stream == stream
    assert cuda.last.launch.kernel == "mla_cache_write"
    assert cuda.last.launch.grid == (3, 1, 1)


# ---- torch ----


def test_schemas() -> None:
    ops = torch.ops.pykernels
    assert str(ops.mla_cache_write.default._schema) == (
        "pykernels::mla_cache_write(Tensor kv_latent, Tensor k_rope, Tensor(a!) kv_cache, "
        "Tensor slot_mapping, Tensor? norm_weight, float norm_eps, Tensor? cos, Tensor? sin, "
        "bool rope_interleaved) -> ()"
    )
    assert str(ops.mla_cache_read.default._schema) == (
        "pykernels::mla_cache_read(Tensor kv_cache, Tensor slot_mapping) -> (Tensor, Tensor)"
    )
    assert str(ops.mla_cache_read.out._schema) == (
        "pykernels::mla_cache_read.out(Tensor kv_cache, Tensor slot_mapping, *, Tensor(a!) "
        "kv_latent, Tensor(b!) k_rope) -> ()"
    )


@DTYPES
def test_opcheck(dtype: torch.dtype) -> None:
    checks = CHECKS if dtype == FP8 else ("test_schema", *CHECKS)
    tokens, slots = make_tokens(6), make_slots(6, 16)
    cache = make_cache(2, 8, dtype)
    if dtype == BF16:
        cache.zero_()
    named = options_of("all", 6)
    rest = named["norm_weight"], 1e-6, named["cos"], named["sin"], True
    ops = torch.ops.pykernels
    opcheck = torch.library.opcheck
    opcheck(ops.mla_cache_write.default, (*tokens, cache, slots, *rest), test_utils=checks)
    WRITE(*tokens, cache, slots)
    opcheck(ops.mla_cache_read.default, (cache, slots), test_utils=checks)
    latent, rope = READ(cache, slots)
    outputs = {"kv_latent": latent, "k_rope": rope}
    opcheck(ops.mla_cache_read.out, (cache, slots), outputs, test_utils=checks)


@pytest.mark.parametrize("dynamic", [False, True])
@DTYPES
def test_compile(dtype: torch.dtype, dynamic: bool) -> None:
    def layer(projection: Tensor, cache: Tensor, slots: Tensor) -> Tensor:
        WRITE(projection[:, :512], projection[:, 512:], cache, slots, norm_weight=norm_weight)
        latent, rope = READ(cache, slots)
        return latent.float().sum(dim=1) + rope.float().sum(dim=1)

    norm_weight = weight()
    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for num_tokens in (3, 5):
        projection = torch.randn(num_tokens, 576, generator=generator(1)).bfloat16()
        slots = make_slots(num_tokens, 16)
        caches = [make_cache(2, 8, dtype) for _ in range(2)]
        assert_same_bits(
            compiled(projection, caches[0], slots), layer(projection, caches[1], slots)
        )
        assert_same_bits(*caches)


def run_on(device: str, dtype: torch.dtype) -> list[Any]:
    projection = torch.empty(8, 576, dtype=BF16, device=device)
    slots = torch.zeros(8, dtype=torch.int32, device=device)
    columns = 576 if dtype == BF16 else 656
    cache = torch.empty(3, 16, 1, columns, dtype=dtype, device=device)
    WRITE(projection[:, :512], projection[:, 512:], cache, slots)
    parts = READ(cache, slots)
    READ(cache, slots, out=parts)
    return [(part.shape, part.stride(), part.dtype) for part in parts]


@DTYPES
def test_fake_and_meta_tensors(dtype: torch.dtype) -> None:
    real = run_on("cpu", dtype)
    assert run_on("meta", dtype) == real
    with FakeTensorMode():
        assert run_on("cpu", dtype) == real
        with pytest.raises(ValueError, match="power of two from 1 to 256, got 12"):
            READ(torch.empty(3, 12, 1, 656, dtype=torch.uint8), torch.zeros(8).int())
