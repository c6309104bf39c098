"""Writing the cache of multi-head latent attention, and reading it: public functions and ops.

A cached token is its latent part, 512 values from which both keys and values come, and its rope
part, 64 values that carry the position (DeepSeek-V2, arXiv 2405.04434). The kernels (csrc/mla) and
the torch implementation agree bit for bit, but for the bits of a NaN.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pykernels import checks, mla_cache_checks, quantize
from pykernels._ops import define
from pykernels.device import launch_device
from pykernels.mla_cache_checks import (
    FP8_ROPE_OFFSET,
    FP8_SCALE_OFFSET,
    FP8_TOKEN_BYTES,
    LATENT_DIM,
    ROPE_DIM,
    Angles,
    NewTokens,
)
from pykernels.native import native, tensor_parts, tensor_view

_LANE_COLUMNS = 16  # of a row: one lane of the kernel sums their squares


def mla_cache_write(
    kv_latent: Tensor,
    k_rope: Tensor,
    kv_cache: Tensor,
    slot_mapping: Tensor,
    *,
    norm_weight: Tensor | None = None,
    norm_eps: float = 1e-6,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    rope_interleaved: bool = True,
) -> None:
    """Write new tokens into their slots of the cache: RMSNorm, rotary embedding, FP8 cast in one.

    The latent part, with ``norm_weight``: ``y = x / sqrt(mean(x^2) + norm_eps) * norm_weight`` in
    FP32, rounded once, to what is stored. The rope part, with ``cos`` and ``sin``: columns in
    pairs ``(a, b)`` become ``(a * cos - b * sin, b * cos + a * sin)`` in FP32, rounded to BF16.
    Without these, both are stored as they are.

    An FP8 cache stores the latent part (normalised, where it is) as
    :func:`pykernels.quantize_1x128` casts a FP32 row: 512 bytes of e4m3, then four FP32 scales, one
    for 128 columns, then the rope part in BF16: 656 bytes a token.

    Args:
        kv_latent: ``[num_tokens, 512]``, ``bfloat16``.
        k_rope: ``[num_tokens, 64]``, ``bfloat16``; both may be columns of one projection.
        kv_cache: ``[num_pages, page_size, 1, 576]``, ``bfloat16``, or ``[num_pages, page_size, 1,
            656]``, ``uint8`` or ``float8_e4m3fn``; a page size of 1, 2, 4, ... 256. Other slots
            stay as they are.
        slot_mapping: ``[num_tokens]``, ``int32`` or ``int64``: each token's slot, ``page *
            page_size + its place in the page``, or -1 for a token that is left out.
        norm_weight: ``[512]``, ``bfloat16`` or ``float32``; None for no RMSNorm.
        norm_eps: from 0 to 1.
        cos: ``[num_tokens, 32]``, ``float32`` or ``bfloat16``, of each token's position; None for
            no rotation.
        sin: as ``cos``, both or none.
        rope_interleaved: whether columns ``2i`` and ``2i + 1`` are a pair, as DeepSeek's weights
            order them; else ``i`` and ``i + 32``.

    All tensors start at a multiple of 16 bytes, and so do their rows, the pages and the tokens in
    them; last dimensions are contiguous. Where two tokens have the same slot, it holds parts of
    either afterwards.

    Raises:
        ValueError: a shape, dtype, stride, alignment, device or option is not as above, or a tensor
            requires grad; nothing has been written. So does a slot below -1 or behind the last one;
            on a GPU :func:`pykernels.check_errors` raises that one, and this token alone is left
            out.
        RuntimeError: the GPU or its driver cannot run the kernel.

    Reference: :func:`pykernels.reference.mla_cache_write`.
    """
    new = _new_tokens(kv_latent, k_rope, norm_weight, norm_eps, cos, sin, rope_interleaved)
    _check_write_tensors(new, kv_cache, slot_mapping)
    _WRITE(
        kv_latent,
        k_rope,
        kv_cache,
        slot_mapping,
        norm_weight,
        float(norm_eps),
        cos,
        sin,
        bool(rope_interleaved),
    )


def mla_cache_read(
    kv_cache: Tensor, slot_mapping: Tensor, *, out: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Read the tokens of slots: the inverse of :func:`pykernels.mla_cache_write`.

    The latent part of an FP8 cache is ``e4m3 value * scale`` in FP32, rounded to BF16; all else
    is copied.

    Args:
        kv_cache: as :func:`pykernels.mla_cache_write` takes it.
        slot_mapping: ``[num_tokens]``, ``int32`` or ``int64``: slots, any number of times each; -1
            for a token of zeros.
        out: ``(kv_latent, k_rope)`` to write into, rows and their starts at multiples of 16 bytes,
            or None to allocate. They share no memory with the inputs or each other.

    Returns:
        kv_latent ``[num_tokens, 512]`` and k_rope ``[num_tokens, 64]``, ``bfloat16``; ``out`` where
        given.

    Raises:
        ValueError: a shape, dtype, stride, alignment or device is not as above; nothing has been
            written. So does a slot below -1 or behind the last one; on a GPU
            :func:`pykernels.check_errors` raises that one, and this token's values are NaN.
        RuntimeError: the GPU or its driver cannot run the kernel.

    Reference: :func:`pykernels.reference.mla_cache_read`.
    """
    pair = _check_read_tensors(kv_cache, slot_mapping, out)
    if pair is None:
        kv_latent, k_rope = _READ(kv_cache, slot_mapping)
        return kv_latent, k_rope
    kv_latent, k_rope = pair
    _READ_OUT(kv_cache, slot_mapping, kv_latent=kv_latent, k_rope=k_rope)
    return kv_latent, k_rope


@checks.checks_call(mla_cache_write)
def _check_write_call(
    kv_latent: Tensor,
    k_rope: Tensor,
    kv_cache: Tensor,
    slot_mapping: Tensor,
    *,
    norm_weight: Tensor | None = None,
    norm_eps: float = 1e-6,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    rope_interleaved: bool = True,
) -> Tensor:
    new = _new_tokens(kv_latent, k_rope, norm_weight, norm_eps, cos, sin, rope_interleaved)
    _check_write_tensors(new, kv_cache, slot_mapping)
    real = checks.has_memory(kv_cache)
    mla_cache_checks.check_cache_write(new, kv_cache, slot_mapping, real=real)
    _check_slots_in_torch(kv_cache, slot_mapping)
    return kv_latent


@checks.checks_call(mla_cache_read)
def _check_read_call(
    kv_cache: Tensor, slot_mapping: Tensor, *, out: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    pair = _check_read_tensors(kv_cache, slot_mapping, out)
    real = checks.has_memory(kv_cache)
    mla_cache_checks.check_cache_read(kv_cache, slot_mapping, pair, real=real)
    _check_slots_in_torch(kv_cache, slot_mapping)
    return kv_cache


def _new_tokens(
    kv_latent: Tensor,
    k_rope: Tensor,
    norm_weight: Tensor | None,
    norm_eps: float,
    cos: Tensor | None,
    sin: Tensor | None,
    rope_interleaved: bool,
) -> NewTokens:
    angles = mla_cache_checks.check_angles(cos, sin, rope_interleaved)
    return NewTokens(kv_latent, k_rope, norm_weight, norm_eps, angles)


def _check_write_tensors(new: NewTokens, kv_cache: Tensor, slot_mapping: Tensor) -> None:
    """The checks of what the op itself does not see."""
    tensors = new.tensors | {"kv_cache": kv_cache, "slot_mapping": slot_mapping}
    for name, tensor in tensors.items():
        checks.check_tensor(name, tensor)
    checks.check_no_gradient("mla_cache_write", tensors)
    mla_cache_checks.check_norm_eps(new.norm_eps)


def _check_read_tensors(
    kv_cache: Tensor, slot_mapping: Tensor, out: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor] | None:
    """The pair to write into, after the checks of what the op itself does not see."""
    tensors = {"kv_cache": kv_cache, "slot_mapping": slot_mapping}
    for name, tensor in tensors.items():
        checks.check_tensor(name, tensor)
    pair = None if out is None else mla_cache_checks.check_latent_pair("out", out)
    if pair is not None:
        tensors |= {"out[0]": pair[0], "out[1]": pair[1]}
    checks.check_no_gradient("mla_cache_read", tensors)
    return pair


def _check_slots_in_torch(kv_cache: Tensor, slot_mapping: Tensor) -> None:
    """As the call itself does, where no kernel looks at them."""
    readable = checks.has_memory(slot_mapping) and slot_mapping.device.type == "cpu"
    if readable and launch_device(slot_mapping) is None:
        mla_cache_checks.check_slots(slot_mapping, _num_slots(kv_cache))


def _num_slots(kv_cache: Tensor) -> int:
    return kv_cache.size(0) * kv_cache.size(1)


def _write(new: NewTokens, kv_cache: Tensor, slot_mapping: Tensor) -> None:
    """Runs on whatever computes for these tensors; the arguments have been checked."""
    device = launch_device(new.kv_latent)
    if new.kv_latent.size(0) == 0:
        return
    if device is None:
        write_in_torch(new, kv_cache, slot_mapping)
        return
    arguments: list[Any] = [tensor_view(new.kv_latent), tensor_view(new.k_rope)]
    arguments += map(tensor_parts, (kv_cache, slot_mapping))
    arguments += None if new.norm_weight is None else tensor_parts(new.norm_weight), new.norm_eps
    if new.angles is not None:
        cos, sin, interleaved = new.angles
        arguments += tensor_view(cos), tensor_view(sin), interleaved
    native().mla_cache_write(device, *arguments)


def _read(kv_cache: Tensor, slot_mapping: Tensor, kv_latent: Tensor, k_rope: Tensor) -> None:
    """As :func:`_write`."""
    device = launch_device(kv_cache)
    if slot_mapping.size(0) == 0:
        return
    if device is None:
        read_in_torch(kv_cache, slot_mapping, kv_latent, k_rope)
        return
    views = tensor_parts(kv_cache), tensor_parts(slot_mapping)
    native().mla_cache_read(device, *views, tensor_view(kv_latent), tensor_view(k_rope))


def write_in_torch(new: NewTokens, kv_cache: Tensor, slot_mapping: Tensor) -> None:
    """The kernel's arithmetic in torch, with the same bits.

    Raises:
        ValueError: a slot is wrong; nothing has been written.
    """
    mla_cache_checks.check_slots(slot_mapping, _num_slots(kv_cache))
    kept = slot_mapping >= 0
    page, place = _positions(slot_mapping[kept], kv_cache)
    latent, rope = new.kv_latent[kept], new.k_rope[kept]
    if new.norm_weight is not None:
        latent = _normalised(latent.float(), new.norm_weight.float(), new.norm_eps)
    if new.angles is not None:
        cos, sin, interleaved = new.angles
        rope = rotated(rope.float(), Angles(cos[kept].float(), sin[kept].float(), interleaved))
    rope = rope.bfloat16()
    if kv_cache.dtype == torch.bfloat16:
        kv_cache[page, place, 0] = torch.cat([latent.bfloat16(), rope], dim=1)
        return
    tokens = kv_cache.new_empty((latent.size(0), FP8_TOKEN_BYTES), dtype=torch.uint8)
    q = tokens[:, :FP8_SCALE_OFFSET].view(torch.float8_e4m3fn)
    num_scales = LATENT_DIM // checks.SCALE_BLOCK
    scales = kv_cache.new_empty((latent.size(0), num_scales), dtype=torch.float32)
    quantize.compute_in_torch(latent, "fp32", 1, q, scales)
    tokens[:, FP8_SCALE_OFFSET:FP8_ROPE_OFFSET] = scales.view(torch.uint8)
    tokens[:, FP8_ROPE_OFFSET:] = rope.contiguous().view(torch.uint8)
    kv_cache.view(torch.uint8)[page, place, 0] = tokens


def read_in_torch(
    kv_cache: Tensor, slot_mapping: Tensor, kv_latent: Tensor, k_rope: Tensor
) -> None:
    """As :func:`write_in_torch`."""
    mla_cache_checks.check_slots(slot_mapping, _num_slots(kv_cache))
    kept = slot_mapping >= 0
    page, place = _positions(slot_mapping[kept], kv_cache)
    if kv_cache.dtype == torch.bfloat16:
        tokens = kv_cache[page, place, 0]
        latent, rope = tokens[:, :LATENT_DIM], tokens[:, LATENT_DIM:]
    else:
        tokens = kv_cache.view(torch.uint8)[page, place, 0]
        q, scales, rope = (
            part.contiguous()
            for part in tokens.tensor_split((FP8_SCALE_OFFSET, FP8_ROPE_OFFSET), dim=1)
        )
        factors = scales.view(torch.float32).repeat_interleave(checks.SCALE_BLOCK, dim=1)
        latent = (q.view(torch.float8_e4m3fn).float() * factors).bfloat16()
        rope = rope.view(torch.bfloat16)
    for out, values in ((kv_latent, latent), (k_rope, rope)):
        out.zero_()
        out[kept] = values


def _positions(slots: Tensor, kv_cache: Tensor) -> tuple[Tensor, Tensor]:
    """Pages, and places in them."""
    slots = slots.long()
    return slots // kv_cache.size(1), slots % kv_cache.size(1)


def _normalised(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Sums squares in the kernel's order: in each lane, then over half the lanes at a time."""
    squares = x.square().view(x.size(0), -1, _LANE_COLUMNS)
    sums = squares[:, :, 0]
    for column in range(1, _LANE_COLUMNS):
        sums = sums + squares[:, :, column]
    while sums.size(1) > 1:
        lower, upper = sums.chunk(2, dim=1)
        sums = lower + upper
    mean = sums * (1 / LATENT_DIM) + torch.tensor(eps, dtype=torch.float32)
    root = mean.double().sqrt().float()  # rounded correctly, as torch's square root is not
    factor = 1 / root
    return x * factor * weight


def rotated(x: Tensor, angles: Angles) -> Tensor:
    """``[..., 64]``: pairs of columns turned by their angles ``[..., 32]``, in FP32."""
    pairs = x.unflatten(-1, (-1, 2)) if angles.interleaved else x.unflatten(-1, (2, -1)).mT
    a, b = pairs.unbind(dim=-1)
    turned = torch.stack([a * angles.cos - b * angles.sin, b * angles.cos + a * angles.sin], dim=-1)
    return (turned if angles.interleaved else turned.mT).flatten(-2)


def _empty_tokens(slot_mapping: Tensor) -> tuple[Tensor, Tensor]:
    num_tokens = slot_mapping.size(0)
    kv_latent, k_rope = (
        torch.empty((num_tokens, columns), dtype=torch.bfloat16, device=slot_mapping.device)
        for columns in (LATENT_DIM, ROPE_DIM)
    )
    return kv_latent, k_rope


def _define_write(real: bool) -> Any:
    """For tensors with memory, or for fake ones."""

    def write(
        kv_latent: Tensor,
        k_rope: Tensor,
        kv_cache: Tensor,
        slot_mapping: Tensor,
        norm_weight: Tensor | None,
        norm_eps: float,
        cos: Tensor | None,
        sin: Tensor | None,
        rope_interleaved: bool,
    ) -> None:
        new = _new_tokens(kv_latent, k_rope, norm_weight, norm_eps, cos, sin, rope_interleaved)
        mla_cache_checks.check_cache_write(new, kv_cache, slot_mapping, real=real)
        if real:
            _write(new, kv_cache, slot_mapping)

    return write


def _define_read(real: bool) -> tuple[Any, Any]:
    """Both overloads, as above."""

    def allocate(kv_cache: Tensor, slot_mapping: Tensor) -> tuple[Tensor, Tensor]:
        mla_cache_checks.check_cache_read(kv_cache, slot_mapping, None, real=real)
        kv_latent, k_rope = _empty_tokens(slot_mapping)
        if real:
            _read(kv_cache, slot_mapping, kv_latent, k_rope)
        return kv_latent, k_rope

    def write(kv_cache: Tensor, slot_mapping: Tensor, *, kv_latent: Tensor, k_rope: Tensor) -> None:
        pair = kv_latent, k_rope
        mla_cache_checks.check_cache_read(kv_cache, slot_mapping, pair, real=real)
        if real:
            _read(kv_cache, slot_mapping, *pair)

    return allocate, write


_WRITE = define(
    "mla_cache_write(Tensor kv_latent, Tensor k_rope, Tensor(a!) kv_cache, Tensor slot_mapping, "
    "Tensor? norm_weight, float norm_eps, Tensor? cos, Tensor? sin, bool rope_interleaved) -> ()",
    implementation=_define_write(real=True),
    fake=_define_write(real=False),
)
_allocate, _write_out = _define_read(real=True)
_fake_allocate, _fake_write_out = _define_read(real=False)
_READ = define(
    "mla_cache_read(Tensor kv_cache, Tensor slot_mapping) -> (Tensor, Tensor)",
    implementation=_allocate,
    fake=_fake_allocate,
)
_READ_OUT = define(
    "mla_cache_read.out(Tensor kv_cache, Tensor slot_mapping, *, Tensor(a!) kv_latent, "
    "Tensor(b!) k_rope) -> ()",
    implementation=_write_out,
    fake=_fake_write_out,
)
