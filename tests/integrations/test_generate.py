"""``generate`` of accelerated models over the paged latent cache."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from pykernels.integrations.transformers import LatentCache, accelerate_model
from tests.integrations.models import deepseek_v3, in_fp8, logits, token_ids

PROMPTS = token_ids(2, 6, seed=3)
MASK = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
NEW = 8
TIE = 0.4  # logits have a deviation of 1; other roundings change the worst of 512 by half of this


@functools.cache
def model() -> Any:
    made = deepseek_v3()
    accelerate_model(made, page_size=4)
    return made


def generate(prompts: Tensor, **options: Any) -> Tensor:
    found: Tensor = model().generate(
        prompts, **({"max_new_tokens": NEW, "do_sample": False} | options)
    )
    return found[:, prompts.size(1) :]


def test_the_tokens_of_the_fp8_model() -> None:
    """Wherever its choice is further from the next than FP8 is from FP32."""
    tokens = generate(PROMPTS, attention_mask=MASK)
    plain = deepseek_v3()
    exact, in_torch = copy.deepcopy(plain).float(), in_fp8(plain)
    num_decided = 0
    for row, new in enumerate(tokens):
        ids = torch.cat([PROMPTS[row, MASK[row].bool()], new])[None]
        wanted, fp32 = (
            logits(each, ids, use_cache=False)[0, -NEW - 1 : -1] for each in (in_torch, exact)
        )
        best = wanted.topk(2).values
        decided = best[:, 0] - best[:, 1] > (wanted - fp32).abs().amax(dim=1)
        num_decided += int(decided.sum())
        assert torch.equal(new[decided], wanted.argmax(dim=1)[decided])
    assert num_decided >= NEW // 2


def assert_greedy(prompts: Tensor, mask: Tensor, new: Tensor) -> None:
    """Each token is the best after those before it, computed anew, or as good but for roundings."""
    for prompt, is_token, tokens in zip(prompts, mask.bool(), new, strict=True):
        ids = torch.cat([prompt[is_token], tokens])[None]
        found = logits(model(), ids, use_cache=False)[0, -len(tokens) - 1 : -1]
        chosen = found.gather(1, tokens[:, None])[:, 0]
        assert bool((found.amax(dim=1) - chosen < TIE).all())


@pytest.mark.parametrize("use_cache", [False, True], ids=["no_cache", "cache"])
def test_prompts_of_different_lengths(use_cache: bool) -> None:
    assert_greedy(PROMPTS, MASK, generate(PROMPTS, attention_mask=MASK, use_cache=use_cache))


def test_samples() -> None:
    torch.manual_seed(0)
    options = {"do_sample": True, "top_k": 5, "num_return_sequences": 3, "output_logits": True}
    found = model().generate(
        PROMPTS, attention_mask=MASK, max_new_tokens=4, return_dict_in_generate=True, **options
    )
    assert found.sequences.shape == (6, 10)
    assert isinstance(found.cache, LatentCache)
    for step, each in enumerate(found.logits):
        chosen = each.gather(1, found.sequences[:, 6 + step, None])
        assert bool((chosen >= each.topk(5).values[:, -1:]).all())
    assert len({tuple(row.tolist()) for row in found.sequences}) > 2


def test_a_prompt_in_chunks() -> None:
    assert_greedy(PROMPTS, MASK, generate(PROMPTS, attention_mask=MASK, prefill_chunk_size=4))


def test_beams() -> None:
    """The cache follows the beams: their scores are those of their tokens, computed anew."""
    options = {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.0}
    found = model().generate(
        PROMPTS,
        attention_mask=MASK,
        max_new_tokens=NEW,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    assert len({tuple(row) for row in found.beam_indices.tolist()}) > 1
    for row, sequence in enumerate(found.sequences):
        is_token = torch.cat([MASK[row // 2], torch.ones(NEW)]).bool()
        ids = sequence[is_token][None]
        likely = logits(model(), ids, use_cache=False)[0, -NEW - 1 : -1].log_softmax(dim=1)
        score = likely.gather(1, ids[0, -NEW:, None]).sum()
        assert abs(score - found.sequences_scores[row]) < TIE * NEW / 2


def test_a_cache_of_the_callers() -> None:
    """Kept between calls; with room for little, to which pages are added."""
    everything = torch.ones_like(PROMPTS)
    cache = LatentCache(model().config, 2, num_pages=1, page_size=4)
    options = {"max_new_tokens": 4, "do_sample": False, "cache": cache}
    first = model().generate(PROMPTS, **options)
    assert cache.get_seq_length() == 9
    again = model().generate(first, **options)
    assert_greedy(PROMPTS, everything, again[:, 6:])
    cache.reset()
    assert (cache.get_seq_length(), cache.pages.lengths) == (0, (0, 0))
    assert torch.equal(model().generate(PROMPTS, **options), first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache_implementation": "static"}, "got StaticCache"),
        ({"cache_implementation": "offloaded"}, "got DynamicCache"),
        ({"cache": DynamicCache()}, "got DynamicCache"),
        ({"prompt_lookup_num_tokens": 2}, "requires a cache that can be cropped"),
        ({"return_dict_in_generate": True, "output_attentions": True}, "output_attentions must be"),
        ({"max_new_tokens": 2, "cache": LatentCache(deepseek_v3().config, 3)}, "for a batch of 3"),
    ],
    ids=["static", "offloaded", "dynamic", "lookup", "attentions", "batch"],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(PROMPTS[:1], **options)
