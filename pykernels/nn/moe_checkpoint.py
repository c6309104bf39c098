"""Weights of a state dict as FP8 with 128x128 scales: from FP8 with its scales, or cast."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from pykernels.nn.checkpoint import FLOATS, scales_shape
from pykernels.quantize import quantize_128x128

Pair: TypeAlias = tuple[Tensor, Tensor]

SCALES = "_scale_inv"  # behind a weight's name: its scales, in the public format


def empty_pair(*shape: int, device: torch.device | str | None = None) -> Pair:
    """Zeros ``[..., n, k]``, ``float8_e4m3fn``, with scales of 1."""
    values = torch.zeros(shape, dtype=torch.float8_e4m3fn, device=device)
    return values, torch.ones(scales_shape(*shape), device=device)


def cast(weight: Tensor, scale_fmt: str) -> Pair:
    """A weight, or a stack of weights, by :func:`pykernels.quantize_128x128`."""
    if weight.dim() == 2:
        return quantize_128x128(torch.empty_like(weight).copy_(weight), scale_fmt=scale_fmt)
    q, scales = zip(*(cast(each, scale_fmt) for each in weight), strict=True)
    return torch.stack(q), torch.stack(scales)


class Part(NamedTuple):
    """Of a stack of ``whole`` weights those from ``begin`` to ``end - 1``."""

    begin: int
    end: int
    whole: int

    def of(self, stack: Tensor) -> Tensor:
        """Of a stack that has only these already, all."""
        is_whole = stack.dim() > 0 and stack.size(0) == self.whole
        return stack[self.begin : self.end] if is_whole else stack


@dataclasses.dataclass
class Conversion:
    """A state dict that is brought into the form of a module, and what was wrong with it.

    Attributes:
        state: is changed: what has been taken is no longer there.
        scale_fmt: of casts.
        device: of what is taken; None for where it is.
        errors: what makes the state dict unfit.
        missing: names that it lacks.
    """

    state: dict[str, Any]
    scale_fmt: str
    device: torch.device | None
    errors: list[str] = dataclasses.field(default_factory=list)
    missing: list[str] = dataclasses.field(default_factory=list)

    def take(
        self,
        module: str,
        name: str,
        scales_name: str,
        shape: tuple[int, ...],
        part: Part | None = None,
    ) -> Pair | None:
        """Takes a weight, or a stack of weights of which only a part may be wanted.

        Args:
            module: whose weight it is, for errors.
            name: of the weight.
            scales_name: of its scales.
            shape: of the weight that is wanted.
            part: which weights of a stack are wanted.

        Returns:
            The pair; None if there is none, or if it is not fit.
        """
        weight = self.state.pop(name, None)
        if weight is None:
            self.missing.append(name)
            return None
        scales = self.state.pop(scales_name, None)
        weight = weight if part is None else part.of(weight)
        short = name.removeprefix(f"{module}.")
        if tuple(weight.shape) != shape:
            wanted = f"{short} must have shape {list(shape)}"
            return self._refuse(module, wanted, list(weight.shape))
        if weight.dtype == torch.float8_e4m3fn:
            scales = scales if scales is None or part is None else part.of(scales)
            blocks = scales_shape(*shape)
            wanted = (
                f"{short} is FP8, so {scales_name.removeprefix(f'{module}.')} must hold a float32 "
                f"scale for each 128x128 block, {list(blocks)}"
            )
            return self._fp8(module, weight, scales, blocks, wanted)
        if weight.dtype not in FLOATS:
            wanted = f"{short} must be float8_e4m3fn, bfloat16, float16 or float32"
            return self._refuse(module, wanted, weight.dtype)
        if scales is not None:
            wanted = f"{short} must be float8_e4m3fn, as it has scales"
            return self._refuse(module, wanted, weight.dtype)
        return cast(self._moved(weight), self.scale_fmt)

    def gather(
        self, current: Pair, pieces: Callable[[Pair], Iterator[tuple[str, Pair]]]
    ) -> Pair | None:
        """A copy of a pair, into which the weights of several modules are taken.

        Args:
            current: keeps the values of what the state dict lacks.
            pieces: the modules' names, and where in a pair their weights go.

        Returns:
            The pair; None if there is none of the weights, which then count as not asked for.
        """
        values, scales = (each.detach() for each in current)
        if values.is_meta and self.state:  # where the checkpoint is
            device = next(tensor.device for tensor in self.state.values())
            values, scales = (torch.zeros_like(each, device=device) for each in (values, scales))
        target = values.clone(), scales.clone()
        missing, found = list(self.missing), False
        for module, piece in pieces(target):
            pair = self.take(
                module, f"{module}.weight", f"{module}.weight{SCALES}", tuple(piece[0].shape)
            )
            if pair is not None:
                found = True
                for place, tensor in zip(piece, pair, strict=True):
                    place.copy_(tensor)
        if not found:
            self.missing = missing
        return target if found else None

    def _fp8(
        self,
        module: str,
        weight: Tensor,
        scales: Tensor | None,
        blocks: tuple[int, ...],
        wanted: str,
    ) -> Pair | None:
        if scales is None:
            return self._refuse(module, wanted, "no scales")
        if tuple(scales.shape) != blocks:
            return self._refuse(module, wanted, list(scales.shape))
        if not scales.dtype.is_floating_point:
            return self._refuse(module, wanted, scales.dtype)
        return self._moved(weight), self._moved(scales).float()

    def _moved(self, tensor: Tensor) -> Tensor:
        return tensor.detach().to(self.device or tensor.device)

    def _refuse(self, module: str, wanted: str, got: object) -> Pair | None:
        """None, which stands for a weight that is not fit."""
        self.errors.append(f"{module}: {wanted}, got {got}")
        return None


class Converts(Protocol):
    """A module that takes other forms of its state dict than its own."""

    scale_fmt: str

    def convert(self, conversion: Conversion, prefix: str) -> None: ...

    def state_dict(self, *, prefix: str) -> dict[str, Any]: ...

    def buffers(self) -> Iterator[Tensor]: ...


def convert_state(
    module: Converts,
    state: dict[str, Any],
    prefix: str,
    local_metadata: dict[str, Any],
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """A hook ahead of loading: the state dict in the module's form, or nothing new at all.

    What is unfit is an error, and the module's own values stand in the place of all that is loaded
    into it, its children included.
    """
    device = next(module.buffers()).device
    conversion = Conversion(state, module.scale_fmt, None if device.type == "meta" else device)
    module.convert(conversion, prefix)
    own = module.state_dict(prefix=prefix)
    for name, tensor in own.items():
        given = state.get(name, tensor)
        if given.shape != tensor.shape:
            wanted, got = list(tensor.shape), list(given.shape)
            conversion.errors.append(f"{name} must have shape {wanted}, got {got}")
    missing_keys += conversion.missing
    if conversion.errors:
        error_msgs += conversion.errors
        for name in [name for name in state if name.startswith(prefix)]:
            del state[name]
        state.update(own)
