"""Argument checks of the MLA cache's ops, beside those of :mod:`pykernels.checks`.

What the host knows is checked here. The slots are on the device: a kernel checks them there, and
:mod:`pykernels.mla_cache` where torch computes on the CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pykernels import checks
from pykernels.overlap import check_no_overlap

LATENT_DIM = 512
ROPE_DIM = 64
BF16_TOKEN_COLUMNS = LATENT_DIM + ROPE_DIM
FP8_SCALE_OFFSET = LATENT_DIM  # bytes: behind a byte for each value of the latent part
FP8_ROPE_OFFSET = FP8_SCALE_OFFSET + LATENT_DIM // checks.SCALE_BLOCK * 4
FP8_TOKEN_BYTES = FP8_ROPE_OFFSET + ROPE_DIM * 2
PAGE_SIZES = tuple(1 << shift for shift in range(9))
_MAX_EPS = 1.0


class Angles(NamedTuple):
    """The cosines and sines of each token's position, and which columns of its rope part pair."""

    cos: Tensor
    sin: Tensor
    interleaved: bool


class NewTokens(NamedTuple):
    """What is written: the tokens, and what they are changed by first."""

    kv_latent: Tensor
    k_rope: Tensor
    norm_weight: Tensor | None
    norm_eps: float
    angles: Angles | None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All of them by their names."""
        named = {"kv_latent": self.kv_latent, "k_rope": self.k_rope}
        if self.norm_weight is not None:
            named["norm_weight"] = self.norm_weight
        if self.angles is not None:
            named |= {"cos": self.angles.cos, "sin": self.angles.sin}
        return named


def check_angles(cos: Tensor | None, sin: Tensor | None, rope_interleaved: object) -> Angles | None:
    """Both tensors or none."""
    checks.check_flag("rope_interleaved", rope_interleaved)
    if (cos is None) != (sin is None):
        given, missing = ("cos", "sin") if sin is None else ("sin", "cos")
        raise ValueError(f"cos and sin come together, got {given} without {missing}")
    if cos is None or sin is None:
        return None
    cos, sin = checks.check_tensor("cos", cos), checks.check_tensor("sin", sin)
    return Angles(cos, sin, bool(rope_interleaved))


def check_norm_eps(norm_eps: object) -> None:
    if isinstance(norm_eps, bool) or not isinstance(norm_eps, checks.NUMBERS):
        raise ValueError(f"norm_eps must be a number, got {checks.shown(norm_eps)}")
    if not 0 <= norm_eps <= _MAX_EPS:
        raise ValueError(f"norm_eps must be from 0 to {_MAX_EPS:g}, got {checks.shown(norm_eps)}")


def check_latent_pair(name: str, pair: object) -> tuple[Tensor, Tensor]:
    """A pair (kv_latent, k_rope) of tensors."""
    if (
        not isinstance(pair, (tuple, list))
        or len(pair) != 2
        or not all(isinstance(tensor, Tensor) for tensor in pair)
    ):
        got = checks.shown(pair)
        raise ValueError(f"{name} must be a pair (kv_latent, k_rope) of tensors, got {got}")
    return checks.check_tensor(f"{name}[0]", pair[0]), checks.check_tensor(f"{name}[1]", pair[1])


def check_kv_cache(name: str, kv_cache: Tensor, *, real: bool = True) -> bool:
    """All requirements of a cache but its device; ``real`` is False where it has no memory.

    Returns:
        Whether it is FP8, in the layout of 656 bytes a token; else it is BF16.
    """
    checks.check_dtype(name, kv_cache, torch.bfloat16, torch.uint8, torch.float8_e4m3fn)
    fp8: bool = kv_cache.dtype != torch.bfloat16
    columns = FP8_TOKEN_BYTES if fp8 else BF16_TOKEN_COLUMNS
    if kv_cache.dim() != 4 or kv_cache.shape[2:] != (1, columns):
        other = "bfloat16 has 576" if fp8 else "uint8 and float8_e4m3fn have 656"
        without_head = kv_cache.dim() == 3 and kv_cache.size(2) == columns
        fix = f"; pass {name}.unsqueeze(2)" if without_head else ""
        raise ValueError(
            f"{name} of {str(kv_cache.dtype).removeprefix('torch.')} must be [num_pages, "
            f"page_size, 1, {columns}], got {list(kv_cache.shape)}; {other} columns, and all "
            f"query heads share one head of the cache{fix}"
        )
    num_pages, page_size, _, _ = kv_cache.shape
    if page_size not in PAGE_SIZES:
        raise ValueError(
            f"the page size of {name} must be a power of two from 1 to 256, got {page_size}"
        )
    checks.check_size(f"slots (num_pages * page_size) of {name}", num_pages * page_size)
    if num_pages == 0:
        return fp8

    page_stride, token_stride, _, column_stride = kv_cache.stride()
    if column_stride != 1:
        raise ValueError(
            f"{name} must be contiguous in its last dimension, got strides "
            f"{tuple(kv_cache.stride())}; allocate it with torch.empty"
        )
    for what, stride, size in (
        ("page", page_stride, num_pages),
        ("token", token_stride, page_size),
    ):
        stride_bytes = stride * kv_cache.element_size()
        if size > 1 and stride_bytes % checks.ALIGNMENT != 0:
            raise ValueError(
                f"the {what} stride of {name} must be a multiple of {checks.ALIGNMENT} bytes, got "
                f"{stride_bytes}; allocate {what}s padded to 16 bytes and pass a view of them"
            )
    checks.check_distinct_elements(name, kv_cache)
    if real:
        checks.check_address(name, kv_cache)
    return fp8


def check_cache_write(
    new: NewTokens, kv_cache: Tensor, slot_mapping: Tensor, *, real: bool = True
) -> None:
    """All requirements of mla_cache_write; ``real`` as above."""
    inputs = new.tensors | {"slot_mapping": slot_mapping}
    checks.check_same_device(**inputs, kv_cache=kv_cache)
    _check_token_types({"kv_latent": new.kv_latent, "k_rope": new.k_rope}, slot_mapping)
    for name in ("norm_weight", "cos", "sin"):
        if name in inputs:
            checks.check_dtype(name, inputs[name], torch.float32, torch.bfloat16)
    if new.angles is not None and new.angles.cos.dtype != new.angles.sin.dtype:
        raise ValueError(
            f"cos and sin must have one dtype, got {new.angles.cos.dtype} and "
            f"{new.angles.sin.dtype}; convert sin with sin.to({new.angles.cos.dtype})"
        )
    _check_token_shapes(new.kv_latent, new.k_rope, slot_mapping)
    if new.norm_weight is not None:
        checks.check_rank("norm_weight", new.norm_weight, 1)
        checks.check_sizes("norm_weight", new.norm_weight, (LATENT_DIM,), "[512]")
        _check_contiguous("norm_weight", new.norm_weight)
    rows = {"kv_latent": new.kv_latent, "k_rope": new.k_rope}
    if new.angles is not None:
        num_tokens = new.kv_latent.size(0)
        for name, tensor in (("cos", new.angles.cos), ("sin", new.angles.sin)):
            checks.check_rank(name, tensor, 2)
            checks.check_shape(name, tensor, (num_tokens, ROPE_DIM // 2), "[num_tokens, 32]")
            rows[name] = tensor
    check_kv_cache("kv_cache", kv_cache, real=real)
    for name, tensor in rows.items():
        checks.check_rows(name, tensor)
    check_norm_eps(new.norm_eps)
    if real:
        _check_addresses(rows)
        if new.norm_weight is not None:
            checks.check_address("norm_weight", new.norm_weight)
        check_no_overlap("kv_cache", kv_cache, inputs)


def check_cache_read(
    kv_cache: Tensor,
    slot_mapping: Tensor,
    out: tuple[Tensor, Tensor] | None,
    *,
    real: bool = True,
) -> None:
    """All requirements of mla_cache_read; ``real`` as above."""
    outputs = {} if out is None else {"out[0]": out[0], "out[1]": out[1]}
    inputs = {"kv_cache": kv_cache, "slot_mapping": slot_mapping}
    checks.check_same_device(**inputs, **outputs)
    _check_token_types(outputs, slot_mapping)
    if out is None:
        _check_slot_mapping(slot_mapping)
    else:
        _check_token_shapes(out[0], out[1], slot_mapping, of="out")
    check_kv_cache("kv_cache", kv_cache, real=real)
    for name, tensor in outputs.items():
        checks.check_rows(name, tensor)
    if real:
        _check_addresses(outputs)
    if real and out is not None:
        check_no_overlap("out[0]", out[0], {**inputs, "out[1]": out[1]})
        check_no_overlap("out[1]", out[1], inputs)


def _check_token_types(tokens: Mapping[str, Tensor], slot_mapping: Tensor) -> None:
    for name, tensor in tokens.items():
        checks.check_dtype(name, tensor, torch.bfloat16)
    checks.check_dtype("slot_mapping", slot_mapping, torch.int32, torch.int64)


def _check_slot_mapping(slot_mapping: Tensor) -> None:
    checks.check_rank("slot_mapping", slot_mapping, 1)
    checks.check_size("num_tokens", slot_mapping.size(0))
    _check_contiguous("slot_mapping", slot_mapping)


def _check_token_shapes(
    kv_latent: Tensor, k_rope: Tensor, slot_mapping: Tensor, of: str = ""
) -> None:
    latent_name, rope_name = ("out[0]", "out[1]") if of else ("kv_latent", "k_rope")
    checks.check_rank(latent_name, kv_latent, 2)
    checks.check_rank(rope_name, k_rope, 2)
    _check_slot_mapping(slot_mapping)
    num_tokens = slot_mapping.size(0) if of else kv_latent.size(0)
    checks.check_shape(latent_name, kv_latent, (num_tokens, LATENT_DIM), "[num_tokens, 512]")
    checks.check_shape(rope_name, k_rope, (num_tokens, ROPE_DIM), "[num_tokens, 64]")
    checks.check_sizes("slot_mapping", slot_mapping, (num_tokens,), "[num_tokens]")


def _check_contiguous(name: str, vector: Tensor) -> None:
    if vector.size(0) > 1 and vector.stride(0) != 1:
        raise ValueError(
            f"{name} must be contiguous, got stride {vector.stride(0)}; pass {name}.contiguous()"
        )


def _check_addresses(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        checks.check_address(name, tensor)


def check_slots(slot_mapping: Tensor, num_slots: int) -> None:
    """The values, where the host can read them."""
    wrong = (slot_mapping < -1) | (slot_mapping >= num_slots)
    if bool(wrong.any()):
        token = int(wrong.nonzero()[0])
        raise ValueError(
            f"slot_mapping of token {token} must be from -1 to {num_slots - 1}, got "
            f"{int(slot_mapping[token])}"
        )
