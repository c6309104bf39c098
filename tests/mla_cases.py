"""Cases of MLA decode that the tests of torch, emulator and GPU share, and their tolerance.

Caches are poisoned: NaN in all slots and pages that no request uses, and numbers of pages that do
not exist behind those that a request needs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

import pykernels
from pykernels import reference
from pykernels.testing import Pair, assert_rows_close
from tests.cases import ceil_div

LATENT, ROPE = 512, 64
TOKEN_BYTES = {False: 2 * (LATENT + ROPE), True: 656}  # by whether it is FP8
SCALE_OFFSET, ROPE_OFFSET = 512, 528
SOFTMAX_SCALE = 192**-0.5
NO_PAGES = (-1, 2**31 - 1, -(2**31), 10**6)

# FP32 sums of 576 and of as many products as there are tokens, and torch's exp.
TORCH_FLOOR, TORCH_LSE = 1e-5, 1e-5
# The kernels multiply values by weights rounded to BF16, and divide by their sum before that: 2^-9
# of a row that one token dominates, unless its weight is a power of two. Scores are FP32 sums of
# exact products of BF16, exponentials are approximate.
KERNEL_FLOOR, KERNEL_LSE = 2.0**-9, 1e-4


@dataclasses.dataclass(frozen=True)
class Operands:
    """What a call takes."""

    q: Any  # a tensor; in some calls the pair
    kv_cache: Tensor
    block_table: Tensor
    cache_seqlens: Tensor
    causal: bool = True

    def call(self, **named: Any) -> Pair:
        result: Pair = pykernels.mla_decode(
            self.q,
            self.kv_cache,
            self.block_table,
            self.cache_seqlens,
            softmax_scale=SOFTMAX_SCALE,
            causal=self.causal,
            **named,
        )
        return result

    def exact(self) -> Pair:
        return reference.mla_decode(
            self.q,
            self.kv_cache,
            self.block_table,
            self.cache_seqlens,
            softmax_scale=SOFTMAX_SCALE,
            causal=self.causal,
        )

    def plan(self, **options: Any) -> pykernels.MlaPlan:
        """One for these sizes, updated for these lengths."""
        batch, seqlen_q, num_heads, _ = self.q.shape
        max_seqlen = self.block_table.size(1) * self.kv_cache.size(1)
        plan = pykernels.mla_decode_plan(
            batch,
            seqlen_q,
            num_heads,
            max_seqlen=max_seqlen,
            device="cpu",
            **options,
        )
        pykernels.mla_update_plan(plan, self.cache_seqlens)
        return plan

    def poisoned_outputs(self) -> Pair:
        batch, seqlen_q, num_heads, _ = self.q.shape
        out = torch.full((batch, seqlen_q, num_heads, LATENT), 7.0, dtype=torch.bfloat16)
        return out, torch.full((batch, num_heads, seqlen_q), 7.0)

    def requests(self, *chosen: int) -> Operands:
        """The same cache with some of the requests."""
        rows = list(chosen)
        return dataclasses.replace(
            self,
            q=self.q[rows],
            block_table=self.block_table[rows],
            cache_seqlens=self.cache_seqlens[rows],
        )


@dataclasses.dataclass(frozen=True)
class MlaCase:
    """The tokens of each request, sizes, and what they exercise."""

    lengths: tuple[int, ...]
    num_heads: int
    what: str
    seqlen_q: int = 1
    page_size: int = 64
    fp8: bool = False
    causal: bool = True
    shares_pages: bool = False  # requests begin with the whole pages of the first one

    def __str__(self) -> str:
        cache = "fp8" if self.fp8 else "bf16"
        sizes = f"{len(self.lengths)}x{self.seqlen_q}x{self.num_heads}-p{self.page_size}-{cache}"
        return f"{sizes}-{self.what.replace(' ', '_')}"

    @property
    def max_pages(self) -> int:
        """Of a request, and two more that the table could name."""
        return ceil_div(max(self.lengths, default=0), self.page_size) + 2

    def operands(self, seed: int = 0) -> Operands:
        """Random values, the same for equal cases and seeds."""
        generator = torch.Generator().manual_seed(
            seed + 31 * sum(self.lengths) + 1009 * self.num_heads + self.page_size
        )
        counts = [ceil_div(length, self.page_size) for length in self.lengths]
        num_pages = sum(counts) + 3
        shuffled = torch.randperm(num_pages, generator=generator, dtype=torch.int32)
        # Rows of the table lie further apart than they are wide.
        batch = len(counts)
        table = torch.empty(batch, self.max_pages + 3, dtype=torch.int32)[:, : self.max_pages]
        cache = poisoned_cache(num_pages, self.page_size, self.fp8)
        taken = 0
        for request, (length, count) in enumerate(zip(self.lengths, counts, strict=True)):
            table[request] = torch.tensor(NO_PAGES, dtype=torch.int32).repeat(
                ceil_div(self.max_pages, len(NO_PAGES))
            )[: self.max_pages]
            table[request, :count] = shuffled[taken : taken + count]
            taken += count
            if self.shares_pages and request > 0:
                common = min(length, self.lengths[0]) // self.page_size
                table[request, :common] = table[0, :common]
            write_tokens(cache, table[request], range(length), generator)
        shape = (batch, self.seqlen_q, self.num_heads, LATENT + ROPE)
        q = torch.randn(shape, generator=generator).bfloat16()
        lengths = torch.tensor(self.lengths, dtype=torch.int32)
        return Operands(q, cache, table, lengths, self.causal)


def poisoned_cache(num_pages: int, page_size: int, fp8: bool) -> Tensor:
    """NaN whatever reads it: values and scale factors of all bits set."""
    shape = (num_pages, page_size, 1, TOKEN_BYTES[fp8])
    content = torch.full(shape, 0xFF, dtype=torch.uint8)
    return content if fp8 else content.view(torch.bfloat16)


def write_tokens(
    cache: Tensor, pages: Tensor, positions: Iterable[int], generator: torch.Generator
) -> None:
    """Random tokens whose magnitudes differ, and in FP8 those of the blocks of 128 values."""
    page_size = cache.size(1)
    for position in positions:
        latent = torch.randn(LATENT, generator=generator)
        latent *= torch.exp(torch.rand(1, generator=generator) * 2 - 1)
        rope = torch.randn(ROPE, generator=generator).bfloat16()
        slot = cache[int(pages[position // page_size]), position % page_size, 0]
        if cache.dtype == torch.bfloat16:
            slot[:LATENT] = latent.bfloat16()
            slot[LATENT:] = rope
            continue
        blocks = latent.view(-1, 128)
        scales = blocks.abs().amax(dim=1) / 448
        values = (blocks / scales[:, None]).to(torch.float8_e4m3fn)
        slot[:SCALE_OFFSET] = values.view(torch.uint8).flatten()
        slot[SCALE_OFFSET:ROPE_OFFSET] = scales.view(torch.uint8)
        slot[ROPE_OFFSET:] = rope.view(torch.uint8)


def dequantised(cache: Tensor) -> Tensor:
    """An FP8 cache in BF16, value by value; NaN where it was NaN."""
    content = cache.view(torch.uint8)
    values = content[..., :SCALE_OFFSET].view(torch.float8_e4m3fn).float()
    scales = content[..., SCALE_OFFSET:ROPE_OFFSET].contiguous().view(torch.float32)
    latent = (values * scales.repeat_interleave(128, dim=-1)).bfloat16()
    rope = content[..., ROPE_OFFSET:].contiguous().view(torch.bfloat16)
    return torch.cat([latent, rope], dim=-1)


def assert_close(
    actual: Pair, exact: Pair, floor: float = TORCH_FLOOR, lse_error: float = TORCH_LSE
) -> None:
    """Rows of out within the tolerance of :mod:`pykernels.testing`, lse within an absolute one.

    A row that sees nothing is exactly 0 and -inf.
    """
    out, lse = actual
    assert out.dtype == torch.bfloat16
    assert lse.dtype == torch.float32
    assert lse.shape == exact[1].shape
    assert_rows_close(out.flatten(0, 2), exact[0].flatten(0, 2), floor)
    empty = exact[1] == -torch.inf
    assert torch.equal(lse == -torch.inf, empty)
    difference = (lse.double() - exact[1])[~empty].abs()
    assert bool((difference <= lse_error).all()), f"lse is off by {float(difference.max())}"


def _edges(page_size: int, fp8: bool = False) -> MlaCase:
    p = page_size
    lengths = (0, 1, p - 1, p, p + 1) if p > 1 else (0, 1, 2, 3, 17)
    return MlaCase(lengths, 5, "around a page", page_size=p, fp8=fp8)


BF16_CASES = [
    *(_edges(page_size) for page_size in (1, 2, 8, 16, 64, 256)),
    *(MlaCase((70, 3), heads, "heads") for heads in (1, 2, 8, 16, 33, 64, 128)),
    MlaCase((0, 1, 2, 5, 63, 64, 65, 130), 16, "two tokens", seqlen_q=2),
    MlaCase((0, 1, 2, 3, 4, 5, 66, 129), 5, "four tokens", seqlen_q=4, page_size=16),
    MlaCase((0, 1, 70), 5, "two tokens that see all", seqlen_q=2, causal=False),
    MlaCase((40, 65), 64, "two tiles of rows", seqlen_q=2),
    MlaCase((40, 65), 128, "four tiles of rows", seqlen_q=2, page_size=256),
    MlaCase((200, 130, 64, 10), 8, "shared pages", page_size=16, shares_pages=True),
    MlaCase((700,), 16, "one long request"),
    MlaCase((1, 700, 0, 3), 2, "one long among short", page_size=16),
    MlaCase(tuple(7 * i % 67 for i in range(40)), 1, "many requests", page_size=16),
    MlaCase((0, 0, 0), 16, "no tokens at all"),
]
FP8_CASES = [
    *(_edges(page_size, fp8=True) for page_size in (1, 16, 64, 256)),
    *(MlaCase((70, 3), heads, "heads", fp8=True) for heads in (1, 16, 64, 128)),
    MlaCase((0, 1, 2, 63, 64, 65), 5, "two tokens", seqlen_q=2, fp8=True),
    MlaCase((1, 3, 4, 66), 2, "four tokens", seqlen_q=4, page_size=16, fp8=True),
    MlaCase((200, 130, 10), 8, "shared pages", page_size=16, shares_pages=True, fp8=True),
    MlaCase((500, 2), 16, "one long request", fp8=True),
]
CASES = BF16_CASES + FP8_CASES
