"""A short BERT forward in torch: the encoder of the demo's sentence-embedding model.

Attribute names are ours; :func:`load` maps them to those of the checkpoint.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class BertConfig(NamedTuple):
    """The fields of a Hugging Face ``config.json`` that the forward needs."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float

    @classmethod
    def from_file(cls, path: Path) -> BertConfig:
        fields: dict[str, Any] = json.loads(path.read_text())
        return cls(**{name: fields[name] for name in cls._fields})


class BertLayer(nn.Module):
    """Self-attention and a feed-forward part, each with residual and LayerNorm behind it."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)
        self.attention_output = nn.Linear(hidden, hidden)
        self.attention_norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.intermediate = nn.Linear(hidden, config.intermediate_size)
        self.output = nn.Linear(config.intermediate_size, hidden)
        self.output_norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Takes ``[batch, seqlen, hidden]`` and a mask ``[batch, seqlen]``, True for tokens."""
        q, k, v = (self._heads(linear(x)) for linear in (self.query, self.key, self.value))
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.size(-1))
        scores = scores.masked_fill(~mask[:, None, None, :], -math.inf)
        context = (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
        x = self.attention_norm(x + self.attention_output(context))
        inner = functional.gelu(self.intermediate(x))
        normed: Tensor = self.output_norm(x + self.output(inner))
        return normed

    def _heads(self, x: Tensor) -> Tensor:
        batch, seqlen, hidden = x.shape
        return x.view(batch, seqlen, self.num_heads, hidden // self.num_heads).transpose(1, 2)


class Bert(nn.Module):
    """Embeddings and layers, without the pooler, which sentence embeddings do not use."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.word = nn.Embedding(config.vocab_size, hidden)
        self.position = nn.Embedding(config.max_position_embeddings, hidden)
        self.token_type = nn.Embedding(config.type_vocab_size, hidden)
        self.norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList(BertLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, token_ids: Tensor, mask: Tensor) -> Tensor:
        """Sentence embeddings ``[batch, hidden]``: the mean over real tokens, of length 1."""
        position = torch.arange(token_ids.size(1), device=token_ids.device)
        x = self.word(token_ids) + self.position(position) + self.token_type.weight[0]
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x, mask)
        weight = mask[:, :, None].to(x.dtype)
        return functional.normalize((x * weight).sum(dim=1) / weight.sum(dim=1), dim=-1)


_EMBEDDING_NAMES = {
    "word": "embeddings.word_embeddings",
    "position": "embeddings.position_embeddings",
    "token_type": "embeddings.token_type_embeddings",
    "norm": "embeddings.LayerNorm",
}
_LAYER_NAMES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
    "output_norm": "output.LayerNorm",
}


def checkpoint_name(parameter: str) -> str:
    """The name in a Hugging Face checkpoint of a parameter of :class:`Bert`."""
    module, _, field = parameter.rpartition(".")
    if module.startswith("layers."):
        _, index, name = module.split(".")
        return f"encoder.layer.{index}.{_LAYER_NAMES[name]}.{field}"
    return f"{_EMBEDDING_NAMES[module]}.{field}"


def load(folder: Path) -> tuple[Bert, list[str]]:
    """Loads ``config.json`` and ``model.safetensors``.

    Returns:
        The model in evaluation mode, and the names in the checkpoint that it does not use.
    """
    from safetensors.torch import load_file

    model = Bert(BertConfig.from_file(folder / "config.json"))
    checkpoint = load_file(folder / "model.safetensors")
    names = {name: checkpoint_name(name) for name in model.state_dict()}
    model.load_state_dict({name: checkpoint[source] for name, source in names.items()})
    return model.eval(), sorted(set(checkpoint) - set(names.values()))
