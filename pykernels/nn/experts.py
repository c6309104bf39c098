"""The experts of one rank in FP8: two grouped products, and SwiGLU with a cast between them."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pykernels.grouped_gemm import grouped_fp8_gemm_nt, grouped_fp8_gemm_nt_masked
from pykernels.nn import moe_checkpoint
from pykernels.nn.mlp import halves
from pykernels.nn.moe_checkpoint import SCALES, Conversion, Pair, Part
from pykernels.silu_mul_quantize import silu_mul_quantize_1x128

_STACKS = ("gate_up_proj", "down_proj")


class Experts(nn.Module):
    """Weights of some of an MoE layer's experts, stacked as the grouped products take them.

    ``gate_up_proj [num_local_experts, 2 * intermediate, hidden]`` stacks each expert's rows of
    gate, then those of up; ``down_proj [num_local_experts, hidden, intermediate]``. Beside each its
    scales, ``gate_up_proj_scale_inv`` and ``down_proj_scale_inv``, one for each 128x128 block.
    """

    gate_up_proj: Tensor
    gate_up_proj_scale_inv: Tensor
    down_proj: Tensor
    down_proj_scale_inv: Tensor

    def __init__(
        self,
        hidden: int,
        intermediate: int,
        part: Part,
        *,
        scale_fmt: str = "fp32",
        device: torch.device | str | None = None,
    ) -> None:
        """Makes experts of zeros.

        Args:
            hidden: columns of a token, a multiple of 16.
            intermediate: rows of gate and of up, a multiple of 128.
            part: which of the layer's experts.
            scale_fmt: of the cast between the products.
            device: of the weights.
        """
        super().__init__()
        self.part = part
        self.scale_fmt = scale_fmt
        count = part.end - part.begin
        shapes = (count, 2 * intermediate, hidden), (count, hidden, intermediate)
        for name, shape in zip(_STACKS, shapes, strict=True):
            values, scales = moe_checkpoint.empty_pair(*shape, device=device)
            self.register_buffer(name, values)
            self.register_buffer(name + SCALES, scales)

    def forward(self, rows: Pair, group_offsets: Tensor, expected_m: int | None = None) -> Tensor:
        """Results of rows that are grouped by expert.

        Args:
            rows: ``[m, hidden]`` and ``[m, ceil(hidden / 128)]``, as a dispatch hands them over.
            group_offsets: ``[num_local_experts + 1]``, ``int32``.
            expected_m: rows that an expert is expected to have.

        Returns:
            ``[m, hidden]``, ``bfloat16``; rows of no expert are not initialised.
        """
        gate_up = grouped_fp8_gemm_nt(
            rows, self._pair("gate_up_proj"), group_offsets, expected_m=expected_m
        )
        activated = silu_mul_quantize_1x128(
            gate_up, group_offsets=group_offsets, scale_fmt=self.scale_fmt
        )
        return grouped_fp8_gemm_nt(
            activated, self._pair("down_proj"), group_offsets, expected_m=expected_m
        )

    def forward_masked(self, rows: Pair, masked_m: Tensor, expected_m: int | None = None) -> Tensor:
        """Results of rows in a fixed room for each expert.

        Args:
            rows: ``[num_local_experts, max_m, hidden]`` and ``[num_local_experts, max_m,
                ceil(hidden / 128)]``, as a low-latency dispatch hands them over.
            masked_m: ``[num_local_experts]``, ``int32``: how many rows each expert has.
            expected_m: rows that an expert is expected to have.

        Returns:
            ``[num_local_experts, max_m, hidden]``, ``bfloat16``; rows from ``masked_m`` on are not
            initialised.
        """
        gate_up = grouped_fp8_gemm_nt_masked(
            rows, self._pair("gate_up_proj"), masked_m, expected_m=expected_m
        )
        activated = silu_mul_quantize_1x128(gate_up, masked_m=masked_m, scale_fmt=self.scale_fmt)
        return grouped_fp8_gemm_nt_masked(
            activated, self._pair("down_proj"), masked_m, expected_m=expected_m
        )

    def convert(self, conversion: Conversion, prefix: str) -> None:
        """Brings what begins with the prefix into the form of this module.

        Other ranks' experts are passed over.
        """
        others = {str(e) for e in range(self.part.whole)} - {str(e) for e in self._numbers}
        for name in [name for name in conversion.state if name.startswith(prefix)]:
            if name.removeprefix(prefix).partition(".")[0] in others:
                del conversion.state[name]
        for name in _STACKS:
            own = prefix + name
            current = self._pair(name)
            if own in conversion.state:
                shape = tuple(current[0].shape)
                pair = conversion.take(
                    prefix.removesuffix("."), own, own + SCALES, shape, self.part
                )
            else:
                pieces = self._ups if name == "gate_up_proj" else self._downs
                pair = conversion.gather(current, functools.partial(pieces, prefix))
            if pair is not None:
                conversion.state |= {own: pair[0], own + SCALES: pair[1]}

    def _ups(self, prefix: str, pair: Pair) -> Iterator[tuple[str, Pair]]:
        for expert, values, scales in zip(self._numbers, *pair, strict=True):
            name = f"{prefix}{expert}"
            yield from halves((values, scales), f"{name}.gate_proj", f"{name}.up_proj")

    def _downs(self, prefix: str, pair: Pair) -> Iterator[tuple[str, Pair]]:
        for expert, values, scales in zip(self._numbers, *pair, strict=True):
            yield f"{prefix}{expert}.down_proj", (values, scales)

    @property
    def _numbers(self) -> range:
        return range(self.part.begin, self.part.end)

    def _pair(self, name: str) -> Pair:
        return getattr(self, name), getattr(self, name + SCALES)

    def extra_repr(self) -> str:
        count, hidden, intermediate = self.down_proj.shape
        return f"num_local_experts={count}, hidden={hidden}, intermediate={intermediate}"
