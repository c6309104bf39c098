"""A Linear for inference whose product is computed in FP8 with fine-grained scales."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pykernels import checks
from pykernels.gemm import fp8_gemm_nt
from pykernels.nn.checkpoint import (
    FP8,
    SCALES,
    CheckedModule,
    keeping_dtype,
    scales_shape,
    weight_problems,
)
from pykernels.quantize import quantize_1x128, quantize_128x128

FEATURE_MULTIPLES = {"in_features": 16, "out_features": 8}  # what the GEMM takes


class Fp8Linear(CheckedModule):
    """``x @ weight.T + bias``: weights cast once in 128x128 blocks, activations per call in 1x128.

    Inference only: parameters are buffers, and inputs that require grad are refused by the ops.
    Sums are FP32; the result has the input's dtype. ``in_features`` must be a multiple of 16,
    ``out_features`` of 8.

    ``load_state_dict`` takes ``weight`` in ``float8_e4m3fn`` with ``weight_scale_inv`` beside it,
    ``float32``, a factor for each block of 128x128: a state of this module, or a public checkpoint
    in this format. It also takes ``weight`` alone, in ``bfloat16``, ``float16`` or ``float32``, and
    casts it as ``scale_fmt`` says. An FP8 weight without scales, or anything of another shape or
    dtype, is an error of ``load_state_dict`` that names tensor and requirement; this module then
    stays as it was.

    ``to``, ``bfloat16`` and the like move the weight and its scales, and leave their dtypes.
    """

    weight: Tensor
    weight_scale_inv: Tensor
    bias: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        weight_scale_inv: Tensor,
        bias: Tensor | None = None,
        *,
        scale_fmt: str = "fp32",
    ) -> None:
        """Takes a weight that is already FP8.

        Args:
            weight: ``[out_features, in_features]``, ``float8_e4m3fn``.
            weight_scale_inv: ``[ceil(out_features / 128), ceil(in_features / 128)]``, ``float32``:
                what the values of a block are multiplied by.
            bias: ``[out_features]``, added by torch, or None.
            scale_fmt: ``"fp32"`` or ``"ue8m0"``: how ``load_state_dict`` casts other weights.

        Raises:
            ValueError: a size or the format is not as above.
        """
        super().__init__()
        checks.check_scale_format(scale_fmt)
        self.out_features, self.in_features = weight.shape
        for name, multiple in FEATURE_MULTIPLES.items():
            if getattr(self, name) % multiple != 0:
                raise ValueError(
                    f"Fp8Linear: {name} must be a multiple of {multiple}, got {getattr(self, name)}"
                )
        self.scale_fmt = scale_fmt
        self.register_buffer("weight", weight)
        self.register_buffer(SCALES, weight_scale_inv)
        self.register_buffer("bias", bias)

    @classmethod
    def from_float(cls, linear: nn.Linear, *, scale_fmt: str = "fp32") -> Fp8Linear:
        """Casts the weight of a ``torch.nn.Linear``; shares its bias.

        Args:
            linear: with a weight in ``bfloat16``, ``float16`` or ``float32``; stays as it is.
            scale_fmt: ``"fp32"``, or ``"ue8m0"`` for scales that are powers of two.
        """
        weight, scales = quantize_128x128(linear.weight.detach(), scale_fmt=scale_fmt)
        bias = None if linear.bias is None else linear.bias.detach()
        return cls(weight, scales, bias, scale_fmt=scale_fmt)

    from_linear = from_float  # its former name

    @classmethod
    def empty(
        cls,
        in_features: int,
        out_features: int,
        *,
        bias: bool = False,
        scale_fmt: str = "fp32",
        device: torch.device | str | None = None,
    ) -> Fp8Linear:
        """A module to load a checkpoint into. Until then its results are NaN.

        Args:
            in_features: a multiple of 16.
            out_features: a multiple of 8.
            bias: whether it has one, in ``float32``.
            scale_fmt: how a weight that is not FP8 is cast: ``"fp32"`` or ``"ue8m0"``.
            device: of its tensors; ``"meta"`` for none as yet, to be loaded with ``assign=True``.

        Raises:
            ValueError: a size or the format is not as above.
        """
        values = torch.zeros(out_features, in_features, dtype=torch.uint8, device=device)
        blocks = scales_shape(out_features, in_features)
        scales = torch.full(blocks, torch.nan, dtype=torch.float32, device=device)
        return cls(
            values.view(FP8),
            scales,
            torch.zeros(out_features, dtype=torch.float32, device=device) if bias else None,
            scale_fmt=scale_fmt,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Takes ``[..., in_features]`` in bfloat16, float16 or float32."""
        activations = quantize_1x128(x.flatten(0, -2))
        return self.finish(self.multiply(activations, x.dtype), x)

    def multiply(self, activations: tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensor:
        """The product alone, of activations that are already FP8, rounded once to ``dtype``.

        The kernels write bfloat16 and float32; float16 is converted from float32.
        """
        out_dtype = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
        weight = (self.weight, self.weight_scale_inv)
        return fp8_gemm_nt(activations, weight, out_dtype=out_dtype).to(dtype)

    def finish(self, product: Tensor, x: Tensor) -> Tensor:
        """Adds the bias and gives the product the leading dimensions of ``x``."""
        if self.bias is not None:
            product = product + self.bias.to(product.dtype)
        return product.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )

    def checkpoint_problems(self, state_dict: Mapping[str, Any], prefix: str) -> list[str]:
        """What ``load_state_dict`` would refuse; see :func:`pykernels.nn.check_state_dict`."""
        shape = self.out_features, self.in_features
        return weight_problems(state_dict, prefix, shape, bias=self.bias is not None)

    def converted(self, state_dict: dict[str, Any], prefix: str) -> dict[str, Any]:
        """With the weight cast to FP8."""
        weight = state_dict.get(f"{prefix}weight")
        if weight is None or weight.dtype == FP8:
            return state_dict
        target = weight.device if self.weight.is_meta else self.weight.device
        weight = weight.detach().to(target).contiguous()
        values, scales = quantize_128x128(weight, scale_fmt=self.scale_fmt)
        return state_dict | {f"{prefix}weight": values, f"{prefix}{SCALES}": scales}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Fp8Linear:
        """Conversions move all to the device, and leave the dtypes."""
        super()._apply(keeping_dtype(fn), recurse)  # type: ignore[no-untyped-call]
        return self
