"""The paged cache: whose pages, slots and lengths are whose, whatever comes and goes."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor

from pykernels import mla_cache_read, mla_cache_write
from pykernels.nn import CacheFullError, DecodeStep, PagedLatentCache, PrefillStep

Sequences = list[list[float]]


def make(num_pages: int = 12, **options: Any) -> PagedLatentCache:
    sizes = {"max_batch": 4, "max_seqlen": 40, "page_size": 4}
    cache = PagedLatentCache(1, num_pages, **(sizes | options))
    for layer in cache.layers:
        layer.view(torch.uint8).fill_(0xFF)
    return cache


def write(step: PrefillStep | DecodeStep, values: list[float]) -> None:
    """Tokens that hold a number each."""
    latent = torch.tensor(values).bfloat16()[:, None].expand(-1, 512).contiguous()
    mla_cache_write(latent, latent[:, :64].contiguous(), step.layers[0], step.slot_mapping)


def contents(cache: PagedLatentCache) -> Sequences:
    """By what the device knows: table and lengths."""
    found = []
    for table, length in zip(cache.block_table.tolist(), cache.cache_seqlens.tolist(), strict=True):
        size = cache.page_size
        slots = [table[i // size] * size + i % size for i in range(length)]
        latent, _ = mla_cache_read(cache.layers[0], torch.tensor(slots, dtype=torch.int64))
        found.append(latent[:, 0].tolist())
    return found


def state(cache: PagedLatentCache) -> tuple[Any, ...]:
    device = cache.block_table.tolist(), cache.cache_seqlens.tolist()
    return *device, cache.lengths, cache.num_free_pages


def test_append() -> None:
    cache = make()
    step = cache.append([5, 0, 2])
    assert step.query_lens == step.kv_lens == (5, 2)
    assert step.positions.tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert torch.equal(step.context_slots, step.slot_mapping)
    write(step, [1, 2, 3, 4, 5, 11, 12])
    step = cache.append([1, 3, 3, 1])
    assert step.positions.tolist() == [5, 0, 1, 2, 2, 3, 4, 0]
    assert (step.query_lens, step.kv_lens) == ((1, 3, 3, 1), (6, 3, 5, 1))
    write(step, [6, 21, 22, 23, 13, 14, 15, 31])
    expected: Sequences = [[1, 2, 3, 4, 5, 6], [21, 22, 23], [11, 12, 13, 14, 15], [31]]
    assert contents(cache) == expected
    latent, _ = mla_cache_read(cache.layers[0], step.context_slots)
    assert latent[:, 0].tolist() == [value for sequence in expected for value in sequence]
    assert cache.num_free_pages == 12 - 2 - 1 - 2 - 1
    assert cache.append([]).num_tokens == 0


@pytest.mark.parametrize("seqlen_q", [1, 3])
def test_decode(seqlen_q: int) -> None:
    """Rows without tokens, and those that are left out, get none; lengths are the device's."""
    cache = make()
    write(cache.append([5, 0, 3]), [1, 2, 3, 4, 5, 11, 12, 13])
    step = cache.decode_step(2, seqlen_q=seqlen_q)
    step.reserve()
    assert cache.cache_seqlens.tolist() == [5, 0, 3, 0]
    step.advance()
    assert cache.cache_seqlens.tolist() == [5 + seqlen_q, 0, 3 + seqlen_q, 0]
    assert tuple(cache.cache_seqlens.tolist()) == cache.lengths
    assert step.positions.view(4, -1)[::2].tolist() == [
        list(range(length, length + seqlen_q)) for length in (5, 3)
    ]
    assert step.slot_mapping.view(4, -1)[1::2].tolist() == [[-1] * seqlen_q] * 2
    write(step, [50 + i for i in range(4 * seqlen_q)])
    step.reserve([False, True, True, False])
    step.advance()
    write(step, [70 + i for i in range(4 * seqlen_q)])
    new = range(seqlen_q)
    assert contents(cache) == [
        [1, 2, 3, 4, 5, *(50 + i for i in new)],
        [70 + seqlen_q + i for i in new],
        [11, 12, 13, *(50 + 2 * seqlen_q + i for i in new), *(70 + 2 * seqlen_q + i for i in new)],
        [],
    ]
    assert step.plan.requests[:, 0].tolist() == list(cache.lengths)


@pytest.mark.parametrize("seqlen", [8, 40])
def test_a_step_without_pages_is_an_error(seqlen: int) -> None:
    """Where the next token needs a page that nobody has reserved, it goes nowhere."""
    cache = make(num_pages=20)
    cache.append([4, 4, 4, 4])
    cache.free([0, 3])
    cache.reorder([1, 2])
    write(cache.append([seqlen - 6, 0]), [1.0] * (seqlen - 6))
    step = cache.decode_step(1)
    for _ in range(2):
        step.reserve([True, False, False, False])
        step.advance()
        write(step, [2, 3, 4, 5])
    before, found = cache.layers[0].clone(), contents(cache)
    step.advance()  # the third token begins a page
    assert step.slot_mapping.tolist() == [-2, -1, -1, -1]
    with pytest.raises(ValueError, match="slot_mapping of token 0 must be from -1 to 79, got -2"):
        write(step, [2, 3, 4, 5])
    assert torch.equal(cache.layers[0].view(torch.int16), before.view(torch.int16))
    assert found[0][-2:] == [2, 2]


def test_free_and_reorder() -> None:
    cache = make()
    write(cache.append([5, 6, 2, 1]), [1, 2, 3, 4, 5, 11, 12, 13, 14, 15, 16, 21, 22, 31])
    cache.free([1, 3])
    assert contents(cache) == [[1, 2, 3, 4, 5], [], [21, 22], []]
    assert cache.num_free_pages == 12 - 2 - 1
    write(cache.append([0, 1]), [41])
    assert contents(cache) == [[1, 2, 3, 4, 5], [41], [21, 22], []]
    cache.reorder([2, 0])
    assert contents(cache) == [[21, 22], [1, 2, 3, 4, 5], [], []]
    assert [int((row >= 0).sum()) for row in cache.block_table] == [1, 2, 0, 0]
    assert cache.lengths == (2, 5, 0, 0)
    assert cache.num_free_pages == 12 - 1 - 2
    write(cache.append([1, 0, 1]), [23, 51])
    assert contents(cache) == [[21, 22, 23], [1, 2, 3, 4, 5], [51], []]
    cache.free(range(4))
    assert cache.num_free_pages == 12
    assert bool((cache.block_table == -1).all())


def test_select_copies_rows() -> None:
    cache = make()
    write(cache.append([5, 6, 2, 1]), [1, 2, 3, 4, 5, 11, 12, 13, 14, 15, 16, 21, 22, 31])
    cache.select([2, 0, 2, 2])
    assert contents(cache) == [[21, 22], [1, 2, 3, 4, 5], [21, 22], [21, 22]]
    assert cache.lengths == (2, 5, 2, 2)
    assert cache.cache_seqlens.tolist() == [2, 5, 2, 2]
    assert cache.num_free_pages == 12 - 2 - 3
    write(cache.append([1, 1, 1, 1]), [23, 6, 24, 25])  # each into pages of its own
    assert contents(cache) == [[21, 22, 23], [1, 2, 3, 4, 5, 6], [21, 22, 24], [21, 22, 25]]
    cache.select([1])
    assert contents(cache) == [[1, 2, 3, 4, 5, 6], [], [], []]
    assert cache.num_free_pages == 12 - 2


def test_grow() -> None:
    cache = make(num_pages=2)
    step = cache.decode_step(1)
    write(cache.append([4, 3]), [1, 2, 3, 4, 11, 12, 13])
    with pytest.raises(CacheFullError):
        step.reserve()
    cache.grow(4)
    assert cache.num_free_pages == 2
    step.reserve()
    step.advance()
    write(step, [5, 14, 0, 0])
    assert contents(cache)[:2] == [[1, 2, 3, 4, 5], [11, 12, 13, 14]]
    assert cache.num_free_pages == 1


def test_any_sequence_of_calls() -> None:
    """Against lists of Python."""
    rng = random.Random(0)
    cache, expected, value = make(num_pages=14), [[] for _ in range(4)], 0
    step = cache.decode_step(1)
    num_full = 0
    for _ in range(200):
        before = state(cache)
        call = rng.choice(["append", "append", "decode", "decode", "decode", "free", "reorder"])
        new: Sequences = [[] for _ in range(4)]
        try:
            if call == "free":
                rows = rng.sample(range(4), rng.randint(0, 2))
                cache.free(rows)
                expected = [[] if row in rows else each for row, each in enumerate(expected)]
            elif call == "reorder":
                rows = rng.sample(range(4), 3)
                cache.reorder(rows)
                expected = [*(expected[row] for row in rows), []]
            else:
                room = [min(40 - len(each), 9) for each in expected]
                counts = [rng.randint(0, most) for most in room]
                if call == "decode":
                    counts = [int(0 < len(each) < 40) for each in expected]
                for row, count in enumerate(counts):
                    new[row] = [float((value := value + 1) % 250) for _ in range(count)]
                if call == "append":
                    write(cache.append(counts), list(chain(*new)))
                else:
                    step.reserve([count > 0 for count in counts])
                    step.advance()
                    write(step, [each[0] if each else 251.0 for each in new])
        except CacheFullError:
            num_full += 1
            assert state(cache) == before
            new = [[] for _ in range(4)]
        expected = [old + more for old, more in zip(expected, new, strict=True)]
        assert contents(cache) == expected
        assert tuple(cache.cache_seqlens.tolist()) == cache.lengths
        used = sum(-(-len(each) // 4) for each in expected)
        assert cache.num_free_pages == 14 - used
    assert num_full > 5


def full(cache: PagedLatentCache) -> None:
    cache.append([40, 8, 0, 0])


WRONG: dict[str, tuple[Callable[[PagedLatentCache], Any], type[Exception], str]] = {
    "append beyond the pages": (
        lambda cache: cache.append([0, 1, 1]),
        CacheFullError,
        "the cache has 0 free pages of 4 tokens, and this step needs 2; free sequences, or make it "
        "with more num_pages",
    ),
    "decode beyond the pages": (
        lambda cache: cache.decode_step(1).reserve([False, True, False, False]),
        CacheFullError,
        "0 free pages of 4 tokens, and this step needs 1;",
    ),
    "a sequence beyond max_seqlen": (
        lambda cache: cache.append([1]),
        ValueError,
        "a sequence has at most max_seqlen = 40 tokens, and row 0 would have 41",
    ),
    "decode beyond max_seqlen": (
        lambda cache: cache.decode_step(1).reserve(),
        ValueError,
        "row 0 would have 41",
    ),
    "rows": (
        lambda cache: cache.append([0] * 5),
        ValueError,
        "a step has at most max_batch = 4, got 5",
    ),
    "a negative number": (
        lambda cache: cache.append([0, -1]),
        ValueError,
        "new tokens of row 1 must be at least 0, got -1",
    ),
    "entries of active": (
        lambda cache: cache.decode_step(1, batch=2).reserve([True]),
        ValueError,
        "active must have an entry for each of 2, got 1",
    ),
    "rows of decode": (lambda cache: cache.decode_step(1, batch=5), ValueError, "batch must be at"),
    "heads of decode": (lambda cache: cache.decode_step(129), ValueError, "num_heads must be at"),
    "a row to free": (lambda cache: cache.free([1, 4]), ValueError, "a row must be at most 3"),
    "a row to free twice": (lambda cache: cache.free([1, 1]), ValueError, "rows must differ"),
    "a row to select": (lambda cache: cache.select([0, 4]), ValueError, "a row must be at most 3"),
    "rows to select": (lambda cache: cache.select([0] * 5), ValueError, "max_batch = 4"),
    "copies of rows": (lambda cache: cache.select([0] * 4), CacheFullError, "copies of rows need"),
    "fewer pages": (lambda cache: cache.grow(3), ValueError, "num_pages must be at least"),
    "a row twice": (lambda cache: cache.reorder([0, 0]), ValueError, "rows must differ"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_calls_change_nothing(what: str) -> None:
    call, error, message = WRONG[what]
    cache = make()
    full(cache)
    before = state(cache)
    with pytest.raises(error, match=message):
        call(cache)
    assert state(cache) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"page_size": 24}, "page_size must be a power of two from 1 to 256, got 24"),
        ({"dtype": torch.float16}, "dtype must be bfloat16 or float8_e4m3fn, got torch.float16"),
        ({"max_batch": 0}, "max_batch must be at least 1, got 0"),
        ({"num_pages": 0}, "num_pages must be at least 1, got 0"),
    ],
)
def test_wrong_sizes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_dtypes() -> None:
    fp8: Tensor = make(dtype=torch.float8_e4m3fn).layers[0]
    assert (fp8.dtype, fp8.size(-1)) == (torch.uint8, 656)
    assert (make().layers[0].dtype, make().layers[0].size(-1)) == (torch.bfloat16, 576)
