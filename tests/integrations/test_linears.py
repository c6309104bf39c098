"""Linears of other models: which are replaced, which are left and why."""

from __future__ import annotations

import re

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn

from pykernels.integrations.transformers import accelerate_model
from pykernels.nn import Fp8Linear
from tests.integrations.models import deepseek_v3, llama, logits, token_ids
from tests.nn.mla_models import error

IDS = token_ids(2, 7)


class Lora(nn.Module):
    """As adapters wrap a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer = nn.Linear(64, 64)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(64, 16, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Linear4bit(nn.Linear):
    """As bitsandbytes has it."""


class Mixed(nn.Module):
    """A Linear of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, 64)
        self.good = nn.Linear(64, 32)
        self.odd_columns = nn.Linear(40, 32)
        self.odd_rows = nn.Linear(64, 10)
        self.tied = nn.Linear(64, 32, bias=False)
        self.tied.weight = self.embedding.weight
        self.in_float64 = nn.Linear(64, 32).double()
        self.quantised = Linear4bit(64, 32)
        self.adapter = Lora()
        self.hooked = nn.Linear(64, 32)
        self.hooked.register_forward_hook(lambda *_: None)
        self.twice = nn.ModuleList([nn.Linear(64, 64)] * 2)
        self.lm_head = nn.Linear(64, 32)


def test_llama() -> None:
    model = llama()
    before, tokens = logits(model, IDS), model.generate(IDS, max_new_tokens=3, do_sample=False)
    with accelerate_model(model) as acceleration:
        assert len(acceleration.replaced) == 2 * 7
        assert {each.after for each in acceleration.replaced} == {"Fp8Linear"}
        assert [each.name for each in acceleration.left] == ["lm_head"]
        assert 0.01 < error(logits(model, IDS), before) < 0.1
        assert torch._dynamo.explain(model)(IDS).graph_break_count == 0
        assert model.generate(IDS, max_new_tokens=3, do_sample=False).shape == tokens.shape
    assert torch.equal(logits(model, IDS), before)
    assert torch.equal(model.generate(IDS, max_new_tokens=3, do_sample=False), tokens)


def test_what_is_left_and_why() -> None:
    model = Mixed()
    acceleration = accelerate_model(model)
    assert [each.name for each in acceleration.replaced] == ["good"]
    assert {each.name: each.reason for each in acceleration.left} == {
        "odd_columns": "in_features must be a multiple of 16, got 40",
        "odd_rows": "out_features must be a multiple of 8, got 10",
        "tied": "shares its weight with another module",
        "in_float64": "its weight is float64",
        "quantised": "is a Linear4bit, not a torch.nn.Linear",
        "adapter.base_layer": "is part of a LoRA adapter",
        "adapter.lora_A.default": "is part of a LoRA adapter",
        "hooked": "has hooks, which its successor would not call",
        "twice.0": "is in the model at several places",
        "lm_head": "makes the logits; name it in include",
    }


@pytest.mark.parametrize(
    ("include", "exclude", "replaced"),
    [
        ("*.layers.1.mlp", (), ["gate_proj", "up_proj", "down_proj"]),
        (["*.layers.0", "lm_head"], "*.mlp", ["q_proj", "k_proj", "v_proj", "o_proj", "lm_head"]),
        (None, ["*_proj", "nothing"], None),
        (["*.k_proj", "*.q_proj"], "model.layers.0*", ["q_proj", "k_proj"]),
    ],
)
def test_include_and_exclude(
    include: str | list[str] | None, exclude: str | list[str], replaced: list[str] | None
) -> None:
    model = llama()
    if replaced is None:
        with pytest.raises(ValueError, match=r"(?s)has no module to replace.*q_proj: in exclude"):
            accelerate_model(model, include=include, exclude=exclude)
        return
    acceleration = accelerate_model(model, include=include, exclude=exclude)
    assert [each.name.rpartition(".")[2] for each in acceleration.replaced] == replaced
    found = [name for name, each in model.named_modules() if isinstance(each, Fp8Linear)]
    assert found == [each.name for each in acceleration.replaced]


def test_tied_embeddings_stay() -> None:
    model = llama(tie_word_embeddings=True)
    acceleration = accelerate_model(model, include=["*_proj", "lm_head"])
    assert ("lm_head", "Linear", "shares its weight with another module") in acceleration.left
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_parts_of_deepseek() -> None:
    """Linears inside of an attention that stays; the attention of transformers around them."""
    model = deepseek_v3(num_hidden_layers=1)
    before = logits(model, IDS)
    acceleration = accelerate_model(model, include=["*.q_a_proj", "*.mlp"])
    assert [(each.name, each.after) for each in acceleration.replaced] == [
        ("model.layers.0.self_attn.q_a_proj", "Fp8Linear"),
        ("model.layers.0.mlp", "Fp8Mlp"),
    ]
    assert 0.005 < error(logits(model, IDS), before) < 0.15
    assert model.generate(IDS, max_new_tokens=2).shape == (2, 9)


def test_the_report() -> None:
    text = str(accelerate_model(llama(num_hidden_layers=3)))
    assert "model.layers.*.self_attn.q_proj │ Linear │ Fp8Linear │        3 │" in text
    assert "│ lm_head │ Linear │ makes the logits; name it in include │        1 │" in text
    assert re.search(r"\nparameters and buffers: \d\.\d MiB before, \d\.\d MiB now$", text)
