"""Which modules of a model are replaced by what, and why others are not. Changes nothing."""

from __future__ import annotations

import collections
import dataclasses
import fnmatch
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as deepseek

from pykernels import moe
from pykernels.integrations.transformers import builders
from pykernels.nn.linear import FEATURE_MULTIPLES

_LINEARS = ("Linear", "FP8Linear")  # of torch; of transformers' FP8 checkpoints
_FP8_BLOCK = (128, 128)


class Replaced(NamedTuple):
    """A module that was replaced.

    Attributes:
        name: in the model.
        before: its class.
        after: that of what stands there now.
    """

    name: str
    before: str
    after: str


class Left(NamedTuple):
    """A Linear, or a layer of DeepSeek-V3, that stays as it is.

    Attributes:
        name: in the model.
        kind: its class.
        reason: why.
    """

    name: str
    kind: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Options:
    """What :func:`accelerate_model` was asked for."""

    include: Sequence[str] | None
    exclude: Sequence[str]
    scale_fmt: str
    buffer: moe.Buffer | None
    low_latency_buffer: moe.Buffer | None

    def names(self, name: str, patterns: Sequence[str]) -> bool:
        """Whether a pattern matches the module, or one that it is in."""
        parts = name.split(".")
        outer = (".".join(parts[: count + 1]) for count in range(len(parts)))
        return any(fnmatch.fnmatchcase(each, pattern) for each in outer for pattern in patterns)

    def reason(self, name: str) -> str | None:
        """Why a module is not to be replaced."""
        if self.include is not None and not self.names(name, self.include):
            return "not in include"
        return "in exclude" if self.names(name, self.exclude) else None


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A module to replace, and how its successor is made."""

    name: str
    module: nn.Module
    build: Callable[[], nn.Module]


class Survey:
    """All modules of a model, outer ones first."""

    def __init__(self, model: nn.Module, options: Options) -> None:
        self.candidates: list[Candidate] = []
        self.left: list[Left] = []
        self._options = options
        self._output = _output_embeddings(model)
        names = [id(each) for _, each in model.named_modules(remove_duplicate=False)]
        self._num_places = collections.Counter(names)
        self._users = collections.Counter(
            id(parameter)
            for module in model.modules()
            for parameter in module._parameters.values()
            if parameter is not None
        )
        self._walk(model, "")

    def _walk(self, module: nn.Module, name: str) -> None:
        for child_name, child in module.named_children():
            path = f"{name}.{child_name}" if name else child_name
            build = self._builder(child)
            if build is None:
                self._walk(child, path)
                continue
            reason = self._reason(child, path, module)
            if reason is None:
                self.candidates.append(Candidate(path, child, build))
                continue
            self.left.append(Left(path, type(child).__name__, reason))
            if self._options.reason(path) is not None:
                self._walk(child, path)  # parts of it may be asked for

    def _builder(self, module: nn.Module) -> Callable[[], nn.Module] | None:
        options = self._options
        if type(module) is deepseek.DeepseekV3Attention:
            return lambda: builders.attention(module, options.scale_fmt)
        if type(module) is deepseek.DeepseekV3MoE:
            buffers = options.buffer, options.low_latency_buffer
            return lambda: builders.moe_layer(module, options.scale_fmt, *buffers)
        if type(module) is deepseek.DeepseekV3MLP:
            return lambda: builders.mlp(module, options.scale_fmt)
        if isinstance(module, nn.Linear):
            return lambda: builders.linear(module, options.scale_fmt)
        return None

    def _reason(self, module: nn.Module, name: str, parent: nn.Module) -> str | None:
        """Why a module stays as it is."""
        if reason := self._options.reason(name):
            return reason
        if self._num_places[id(module)] > 1:
            return "is in the model at several places"
        if module._forward_hooks or module._forward_pre_hooks or hasattr(module, "_hf_hook"):
            return "has hooks, which its successor would not call"
        if isinstance(module, nn.Linear):
            return self._reason_of_linear(module, name, parent)
        return None

    def _reason_of_linear(self, linear: nn.Linear, name: str, parent: nn.Module) -> str | None:
        if type(linear).__name__ not in _LINEARS:
            return f"is a {type(linear).__name__}, not a torch.nn.Linear"
        if hasattr(parent, "base_layer") or "lora_" in name:
            return "is part of a LoRA adapter"
        if linear is self._output and self._options.include is None:
            return "makes the logits; name it in include"
        if self._users[id(linear.weight)] > 1:
            return "shares its weight with another module"
        block = getattr(linear, "block_size", _FP8_BLOCK)
        if block is None or tuple(block) != _FP8_BLOCK:
            return f"is FP8 with scales for blocks of {block}, not 128x128"
        for size, multiple in FEATURE_MULTIPLES.items():
            if getattr(linear, size) % multiple != 0:
                return f"{size} must be a multiple of {multiple}, got {getattr(linear, size)}"
        if linear.weight.dtype == torch.float64 or not linear.weight.is_floating_point():
            return f"its weight is {str(linear.weight.dtype).removeprefix('torch.')}"
        return None


def deepseek_models(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Those modules that call attention layers of DeepSeek-V3."""
    for name, module in model.named_modules():
        if isinstance(module, deepseek.DeepseekV3Model):
            yield name, module


def _output_embeddings(model: Any) -> nn.Module | None:
    get = getattr(model, "get_output_embeddings", None)
    found: nn.Module | None = get() if get is not None else getattr(model, "lm_head", None)
    return found
