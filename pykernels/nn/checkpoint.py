"""FP8 weights in checkpoints: what a weight and its scales must be, told before anything is loaded.

The public block-scaled format of DeepSeek-V3 has ``weight`` in ``float8_e4m3fn`` and, beside it,
``weight_scale_inv`` in ``float32``: one factor for each block of 128x128 values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pykernels.checks import SCALE_BLOCK, ceil_div

FP8 = torch.float8_e4m3fn
SCALES = "weight_scale_inv"
FLOATS = (torch.bfloat16, torch.float16, torch.float32)


def check_state_dict(model: nn.Module, state_dict: Mapping[str, Any]) -> None:
    """Raise what ``model.load_state_dict(state_dict)`` would raise of FP8 weights and their scales.

    torch loads one module after the other: where one has an error, the others are loaded all the
    same. After this check none has such an error. Nothing is changed. Missing and unexpected names
    are torch's to report.

    Raises:
        RuntimeError: weights or scales are wrong; the message names all of them, with the
            requirement of each.
    """
    problems = module_problems(model, state_dict)
    if problems:
        lines = "".join(f"\n\t{problem}" for problem in problems)
        raise RuntimeError(f"the state dict does not fit {type(model).__name__}:{lines}")


def module_problems(model: nn.Module, state_dict: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What is wrong of all parts of a model, each of which says what it would refuse."""
    return [
        problem
        for name, module in model.named_modules(prefix=prefix.removesuffix("."))
        if hasattr(module, "checkpoint_problems")
        for problem in module.checkpoint_problems(state_dict, f"{name}." if name else "")
    ]


class CheckedModule(nn.Module):
    """A module that loads other forms of its state than its own, or nothing and an error."""

    def checkpoint_problems(self, state_dict: Mapping[str, Any], prefix: str) -> list[str]:
        """What ``load_state_dict`` would refuse; see :func:`check_state_dict`."""
        raise NotImplementedError

    def converted(self, state_dict: dict[str, Any], prefix: str) -> dict[str, Any]:
        """A state dict without problems in the module's own form; a copy if it is changed."""
        raise NotImplementedError

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        *_, error_msgs = arguments
        if problems := self.checkpoint_problems(state_dict, prefix):
            error_msgs += problems
            return
        super()._load_from_state_dict(self.converted(state_dict, prefix), prefix, *arguments)


def scales_shape(*shape: int) -> tuple[int, ...]:
    """``[..., ceil(n / 128), ceil(k / 128)]`` of a weight ``[..., n, k]``."""
    *leading, n, k = shape
    return *leading, ceil_div(n, SCALE_BLOCK), ceil_div(k, SCALE_BLOCK)


def weight_problems(
    state_dict: Mapping[str, Any], prefix: str, shape: tuple[int, int], bias: bool = False
) -> list[str]:
    """What is wrong of a weight of this shape, its scales and its bias in a checkpoint.

    Args:
        state_dict: the checkpoint.
        prefix: what stands before ``weight`` in its names.
        shape: ``(out_features, in_features)``.
        bias: whether the module has one.
    """
    weight, scales = state_dict.get(f"{prefix}weight"), state_dict.get(f"{prefix}{SCALES}")
    problems = []
    if weight is not None:
        problems += _shape_problems(f"{prefix}weight", weight, shape)
    if weight is None and scales is not None:
        problems.append(f"{prefix}{SCALES} needs {prefix}weight, of which the checkpoint has none")
    elif weight is not None and weight.dtype == FP8:
        problems += _scales_problems(prefix, scales, scales_shape(*shape))
    elif weight is not None and weight.dtype not in FLOATS:
        problems.append(
            f"{prefix}weight must be {_name(FP8)} with {SCALES}, or "
            f"{', '.join(map(_name, FLOATS))}, got {_name(weight.dtype)}"
        )
    elif scales is not None and weight is not None:
        problems.append(
            f"{prefix}{SCALES} goes with a weight in {_name(FP8)}, got one in {_name(weight.dtype)}"
        )
    if bias and (found := state_dict.get(f"{prefix}bias")) is not None:
        problems += _shape_problems(f"{prefix}bias", found, shape[:1])
    return problems


def _scales_problems(prefix: str, scales: Tensor | None, shape: tuple[int, ...]) -> list[str]:
    name = f"{prefix}{SCALES}"
    block = f"{SCALE_BLOCK}x{SCALE_BLOCK}"
    needed = f"{prefix}weight is {_name(FP8)} and needs {name}"
    if scales is None:
        return [
            f"{needed}, float32 {list(shape)}, one factor for each block of {block}; the "
            "checkpoint has none"
        ]
    if scales.dtype != torch.float32:
        return [f"{needed} in float32, got {_name(scales.dtype)}"]
    if tuple(scales.shape) != shape:
        return [
            f"{needed} of shape {list(shape)}, one factor for each block of {block}, got "
            f"{list(scales.shape)}"
        ]
    return []


def _shape_problems(name: str, tensor: Tensor, shape: tuple[int, ...]) -> list[str]:
    if tuple(tensor.shape) == shape:
        return []
    return [f"{name} must have shape {list(shape)}, got {list(tensor.shape)}"]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def dequantized(weight: Tensor, scales: Tensor) -> Tensor:
    """``weight * scale`` in FP32, ``[out_features, in_features]``."""
    rows, columns = weight.shape
    factors = scales.repeat_interleave(SCALE_BLOCK, dim=0)[:rows]
    return weight.float() * factors.repeat_interleave(SCALE_BLOCK, dim=1)[:, :columns]


def keeping_dtype(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """What ``Module._apply`` is given, such that it moves tensors and converts none."""

    def moved(tensor: Tensor) -> Tensor:
        result = fn(tensor)
        return result if result.dtype == tensor.dtype else tensor.to(result.device)

    return moved
