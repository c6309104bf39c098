"""``accelerate_model``: all checks, then all successors, then the exchange; and back."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin

from pykernels import checks, moe
from pykernels.integrations.transformers import builders
from pykernels.integrations.transformers.attention import ModelAttention
from pykernels.integrations.transformers.report import report
from pykernels.integrations.transformers.steps import CacheOptions, prepare, prepare_cache
from pykernels.integrations.transformers.survey import (
    Left,
    Options,
    Replaced,
    Survey,
    deepseek_models,
)
from pykernels.nn.latent_cache import check_format

_PREPARE = "_prepare_cache_for_generation"  # the method of GenerationMixin


def accelerate_model(
    model: nn.Module,
    *,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] = (),
    scale_fmt: str = "fp32",
    cache_dtype: torch.dtype = torch.bfloat16,
    page_size: int = 64,
    buffer: moe.Buffer | None = None,
    low_latency_buffer: moe.Buffer | None = None,
) -> Acceleration:
    """Replaces modules of a Hugging Face model by those of :mod:`pykernels.nn`, in place.

    Of DeepSeek-V3, ``DeepseekV3Attention`` by ``MlaAttention``, ``DeepseekV3MoE`` by ``MoeLayer``,
    ``DeepseekV3MLP`` by ``Fp8Mlp``; in all models, other Linears by ``Fp8Linear``. Linears that
    make the logits, share their weight, belong to an adapter or have sizes that the kernels do not
    take are left, with the reason. Weights are cast, or taken from FP8 with 128x128 scales; those
    on the ``meta`` device stay there, for :func:`load_checkpoint`.

    For inference: call the model inside ``torch.no_grad()``.

    Args:
        model: of ``transformers``, or any other with Linears in it.
        include: patterns of names as :mod:`fnmatch` has them; what they match, and all inside,
            alone is replaced. None for all but the Linear that makes the logits.
        exclude: patterns of what stays as it is.
        scale_fmt: ``"fp32"`` or ``"ue8m0"``: how weights are cast.
        cache_dtype: of the latents, ``bfloat16`` or ``float8_e4m3fn``.
        page_size: tokens in a page of latents.
        buffer: of this rank, for MoE layers that are spread over ranks; stays the caller's.
        low_latency_buffer: for ``MoeLayer.low_latency``; None for ``buffer``.

    Returns:
        What was replaced and what was not, with :meth:`Acceleration.undo`.

    Raises:
        ValueError: an argument is not as above, there is nothing to replace, or a module does not
            fit; the message names it and the requirement. The model is as it was.
    """
    checks.check_scale_format(scale_fmt)
    check_format(page_size, cache_dtype)
    included = None if include is None else _patterns(include)
    survey = Survey(
        model, Options(included, _patterns(exclude), scale_fmt, buffer, low_latency_buffer)
    )
    if not survey.candidates:
        raise ValueError(_nothing_to_replace(model, survey.left))
    made = {each.name: _built(each.name, each.build) for each in survey.candidates}
    owners = _owners(model, made)
    for name, owner in owners.items():
        rotary = f"{name}.rotary_emb".lstrip(".")
        made[rotary] = _built(rotary, functools.partial(builders.rotary_embedding, owner))
    options = CacheOptions(cache_dtype, page_size)
    return Acceleration(model, made, survey.left, list(owners.values()), options)


class Acceleration:
    """What :func:`accelerate_model` did to a model; as a context manager, undone at its end.

    Attributes:
        model: the model.
        replaced: the modules that were replaced.
        left: the Linears and layers that were not, with reasons.
        bytes_before: of the model's parameters and buffers, before.
        bytes_after: and after. What was replaced is kept besides, until :meth:`keep`.
    """

    def __init__(
        self,
        model: nn.Module,
        made: dict[str, nn.Module],
        left: Sequence[Left],
        owners: Sequence[nn.Module],
        options: CacheOptions,
    ) -> None:
        """Exchanges the modules; :func:`accelerate_model` calls it."""
        self.model = model
        self.left = tuple(left)
        self.bytes_before = _num_bytes(model)
        self._made = made
        self._before = {name: model.get_submodule(name) for name in made}
        self.replaced = tuple(
            Replaced(name, type(before).__name__, _public_name(made[name]))
            for name, before in self._before.items()
        )
        for name, module in made.items():
            model.set_submodule(name, module)
        self.bytes_after = _num_bytes(model)
        hook = functools.partial(prepare, options)
        self._hooks = [owner.register_forward_pre_hook(hook, with_kwargs=True) for owner in owners]
        self._generates = bool(owners) and isinstance(model, GenerationMixin)
        if self._generates:
            model.__dict__[_PREPARE] = functools.partial(prepare_cache, model, options)
        self._is_undone = False

    def undo(self) -> None:
        """Puts the very modules back that were there; the second time, does nothing.

        Raises:
            RuntimeError: they were given up by :meth:`keep`, or another module stands in the place
                of one that was put in; nothing has changed.
        """
        if self._is_undone:
            return
        if not self._before:
            raise RuntimeError("undo needs the modules that keep() gave up")
        for name, module in self._made.items():
            if self.model.get_submodule(name) is not module:
                raise RuntimeError(
                    f"undo needs {name} as accelerate_model left it, found another "
                    f"{type(self.model.get_submodule(name)).__name__}"
                )
        for name, before in self._before.items():
            self.model.set_submodule(name, before.train(self._made[name].training))
        for hook in self._hooks:
            hook.remove()
        if self._generates:
            del self.model.__dict__[_PREPARE]
        self._is_undone = True

    def keep(self) -> None:
        """Gives up what was replaced, and with it :meth:`undo`: its memory is free."""
        self._before = {}

    def __enter__(self) -> Acceleration:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._before:
            self.undo()

    def __str__(self) -> str:
        """Tables of what was replaced and what was not, layers of a kind in one line."""
        return report(self.replaced, self.left, self.bytes_before, self.bytes_after)


def _patterns(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _nothing_to_replace(model: nn.Module, left: Sequence[Left]) -> str:
    reasons = "".join(f"\n\t{each.name}: {each.reason}" for each in left)
    return (
        f"{type(model).__name__} has no module to replace, such as a torch.nn.Linear"
        f"{':' if left else ''}{reasons}"
    )


def _built(name: str, build: Callable[[], nn.Module]) -> nn.Module:
    try:
        return build()
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: {error}") from error


def _owners(model: nn.Module, made: dict[str, nn.Module]) -> dict[str, Any]:
    """The models whose attention layers are replaced: all of each, since they share a cache."""
    attentions = {name for name, module in made.items() if isinstance(module, ModelAttention)}
    owners = {}
    for name, owner in deepseek_models(model):
        of_owner = {
            f"{name}.layers.{idx}.self_attn".lstrip(".") for idx in range(len(owner.layers))
        }
        replaced = of_owner & attentions
        if replaced and replaced != of_owner:
            first = min(of_owner - replaced)
            raise ValueError(
                f"{first}: the attention layers of a model share a cache, so all or none of them "
                f"must be replaced, got {len(replaced)} of {len(of_owner)}"
            )
        if replaced:
            owners[name] = owner
            attentions -= of_owner
    if attentions:
        raise ValueError(
            f"{min(attentions)}: an attention layer must be in a DeepseekV3Model, which is called "
            f"as a whole, got {type(model).__name__}"
        )
    return owners


def _public_name(module: nn.Module) -> str:
    public = (each for each in type(module).__mro__ if each.__module__.startswith("pykernels.nn"))
    return next(public).__name__


def _num_bytes(model: nn.Module) -> int:
    tensors = (*model.parameters(), *model.buffers())
    return sum(each.nbytes for each in {id(each): each for each in tensors}.values())
