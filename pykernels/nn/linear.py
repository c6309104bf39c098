"""A Linear for inference whose product is computed in FP8 with fine-grained scales."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pykernels.gemm import fp8_gemm_nt
from pykernels.quantize import quantize_1x128, quantize_128x128


class Fp8Linear(nn.Module):
    """``x @ weight.T + bias``: weights cast once in 128x128 blocks, activations per call in 1x128.

    Inference only: parameters are buffers, and inputs that require grad are refused by the ops.
    Sums are FP32; the result has the input's dtype. ``in_features`` must be a multiple of 16,
    ``out_features`` of 8.
    """

    weight: Tensor
    weight_scales: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, weight_scales: Tensor, bias: Tensor | None = None) -> None:
        """Takes a weight that is already FP8.

        Args:
            weight: ``[out_features, in_features]``, ``float8_e4m3fn``.
            weight_scales: ``[ceil(out_features / 128), ceil(in_features / 128)]``, ``float32``.
            bias: ``[out_features]``, added by torch, or None.
        """
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scales", weight_scales)
        self.register_buffer("bias", bias)

    @classmethod
    def from_linear(cls, linear: nn.Linear, *, scale_fmt: str = "fp32") -> Fp8Linear:
        """Casts the weight of a ``torch.nn.Linear``; shares its bias."""
        weight, scales = quantize_128x128(linear.weight.detach(), scale_fmt=scale_fmt)
        bias = None if linear.bias is None else linear.bias.detach()
        return cls(weight, scales, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Takes ``[..., in_features]`` in bfloat16, float16 or float32."""
        activations = quantize_1x128(x.flatten(0, -2))
        return self.finish(self.multiply(activations, x.dtype), x)

    def multiply(self, activations: tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensor:
        """The product alone, of activations that are already FP8, rounded once to ``dtype``.

        The kernels write bfloat16 and float32; float16 is converted from float32.
        """
        out_dtype = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
        weight = (self.weight, self.weight_scales)
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
