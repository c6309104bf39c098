"""The gated MLP of DeepSeek-style models in FP8: dense layers, and shared experts of MoE layers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pykernels import checks
from pykernels.nn import moe_checkpoint
from pykernels.nn.linear import Fp8Linear
from pykernels.nn.moe_checkpoint import SCALES, Conversion, Pair
from pykernels.quantize import quantize_1x128
from pykernels.silu_mul_quantize import silu_mul_quantize_1x128

_SCALES = "weight_scale_inv"
_COLUMNS = 16  # hidden is a multiple: rows of FP8 values are 16 bytes apart


class Fp8Mlp(nn.Module):
    """``down(silu(gate(x)) * up(x))``: two FP8 products, and between them SwiGLU fused with a cast.

    ``gate_up_proj`` stacks the rows of gate, then those of up. Inference only. State dicts are
    loaded in this form, or as checkpoints have them: ``gate_proj.weight``, ``up_proj.weight``,
    ``down_proj.weight`` in FP8, with ``weight_scale_inv`` beside each, or in BF16, FP16 or FP32,
    which are cast.
    """

    def __init__(
        self,
        hidden: int,
        intermediate: int,
        *,
        scale_fmt: str = "fp32",
        device: torch.device | str | None = None,
    ) -> None:
        """Makes an MLP of zeros, for a state dict to be loaded.

        Args:
            hidden: columns of a token, a multiple of 16.
            intermediate: rows of gate and of up, a multiple of 128.
            scale_fmt: ``"fp32"`` or ``"ue8m0"``: of all casts, of weights and of activations.
            device: of the weights.

        Raises:
            ValueError: an argument is not as above.
        """
        super().__init__()
        check_sizes("Fp8Mlp", hidden, intermediate)
        checks.check_scale_format(scale_fmt)
        self.hidden = hidden
        self.intermediate = intermediate
        self.scale_fmt = scale_fmt
        nn.Module.register_load_state_dict_pre_hook(self, moe_checkpoint.convert_state)
        up_shape, down_shape = (2 * intermediate, hidden), (hidden, intermediate)
        self.gate_up_proj = Fp8Linear(*moe_checkpoint.empty_pair(*up_shape, device=device))
        self.down_proj = Fp8Linear(*moe_checkpoint.empty_pair(*down_shape, device=device))

    @classmethod
    def from_float(cls, mlp: nn.Module, *, scale_fmt: str = "fp32") -> Fp8Mlp:
        """Casts the weights of an MLP with Linears ``gate_proj``, ``up_proj`` and ``down_proj``."""
        weights = mlp.state_dict()
        intermediate, hidden = weights["gate_proj.weight"].shape
        device = weights["gate_proj.weight"].device
        made = cls(hidden, intermediate, scale_fmt=scale_fmt, device=device)
        made.load_state_dict(weights)
        return made

    def forward(self, x: Tensor) -> Tensor:
        """Takes ``[..., hidden]`` in bfloat16, float16 or float32, and returns the same."""
        rows = quantize_1x128(x.flatten(0, -2), scale_fmt=self.scale_fmt)
        return self.forward_fp8(rows, x.dtype).view(x.shape)

    def forward_fp8(self, rows: Pair, dtype: torch.dtype) -> Tensor:
        """``[num_tokens, hidden]`` of rows that are already FP8, rounded to ``dtype``."""
        inner_dtype = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
        gate_up = self.gate_up_proj.multiply(rows, inner_dtype)
        activated = silu_mul_quantize_1x128(gate_up, scale_fmt=self.scale_fmt)
        return self.down_proj.multiply(activated, dtype)

    def convert(self, conversion: Conversion, prefix: str) -> None:
        """Brings what begins with the prefix into the form of this module."""
        up = f"{prefix}gate_up_proj"
        if f"{up}.weight" in conversion.state:
            pair = self._take(conversion, up, self.gate_up_proj)
        else:
            pair = conversion.gather(
                _pair(self.gate_up_proj),
                lambda pair: halves(pair, f"{prefix}gate_proj", f"{prefix}up_proj"),
            )
        down = f"{prefix}down_proj"
        found = {up: pair, down: self._take(conversion, down, self.down_proj)}
        for name, each in found.items():
            if each is not None:
                conversion.state |= {f"{name}.weight": each[0], f"{name}.{_SCALES}": each[1]}

    def _take(self, conversion: Conversion, name: str, linear: Fp8Linear) -> Pair | None:
        """Under this module's names, or under those of checkpoints."""
        weight, scales = f"{name}.weight", f"{name}.{_SCALES}"
        if scales not in conversion.state:
            scales = weight + SCALES
        if weight not in conversion.state:
            return None
        return conversion.take(name, weight, scales, tuple(linear.weight.shape))

    def extra_repr(self) -> str:
        return f"hidden={self.hidden}, intermediate={self.intermediate}"


def check_sizes(module: str, hidden: int, intermediate: int) -> None:
    """What the products and the scales of gate and up ask for."""
    for name, size, multiple, why in (
        ("hidden", hidden, _COLUMNS, "rows of FP8 values are multiples of 16 bytes"),
        ("intermediate", intermediate, checks.SCALE_BLOCK, "gate and up share no 128x128 block"),
    ):
        checks.check_integer(f"{name} of {module}", size, 1, checks.MAX_SIZE)
        checks.check_multiple(f"{name} of {module}", size, multiple, why)


def halves(pair: Pair, gate: str, up: str) -> Iterator[tuple[str, Pair]]:
    """Where in a stacked weight gate and up go, by their names."""
    values, scales = (each.chunk(2) for each in pair)
    for half, name in enumerate((gate, up)):
        yield name, (values[half], scales[half])


def _pair(linear: Fp8Linear) -> Pair:
    return linear.weight, getattr(linear, _SCALES)
