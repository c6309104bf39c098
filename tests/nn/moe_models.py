"""MoE layers that the tests compare with: Hugging Face's, and one in FP8 out of plain torch ops."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE

from pykernels.nn import MoeLayer
from pykernels.testing import row_errors

HIDDEN, INTERMEDIATE = 256, 128
# A row of a layer beside that of the model below: other last bits of sums change some BF16 and e4m3
# roundings; where they change the greatest of 128 values, the scale and with it all 128 roundings.
# The emulator's tensor cores, which keep 13 fraction bits, change more of them than torch's sums.
MOST_ROWS, MOST_EMULATED_ROWS, EVERY_ROW = 5e-3, 2e-2, 5e-2


@dataclasses.dataclass(frozen=True)
class Model:
    """A layer with random weights."""

    what: str
    hidden: int = HIDDEN
    intermediate: int = INTERMEDIATE
    num_experts: int = 16
    num_topk: int = 4
    n_group: int = 4
    topk_group: int = 2
    num_shared_experts: int = 1
    norm_topk_prob: bool = True
    favourites: tuple[int, ...] = ()  # experts that the bias prefers to all others
    scale_fmt: str = "fp32"
    seed: int = 0

    def __str__(self) -> str:
        return self.what

    @property
    def config(self) -> DeepseekV3Config:
        return DeepseekV3Config(
            hidden_size=self.hidden,
            moe_intermediate_size=self.intermediate,
            n_routed_experts=self.num_experts,
            num_experts_per_tok=self.num_topk,
            n_group=self.n_group,
            topk_group=self.topk_group,
            n_shared_experts=self.num_shared_experts,
            norm_topk_prob=self.norm_topk_prob,
            experts_implementation="eager",
        )

    @functools.cache  # noqa: B019
    def make(self) -> DeepseekV3MoE:
        """Hugging Face's, in FP32; weights have the values of BF16, as checkpoints do."""
        generator = torch.Generator().manual_seed(self.seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Linears without columns
            layer = DeepseekV3MoE(self.config)
        with torch.no_grad():
            for parameter in layer.parameters():
                values = torch.randn(parameter.shape, generator=generator)
                parameter.copy_((values / max(1, parameter.size(-1)) ** 0.5).bfloat16())
            bias = layer.gate.e_score_correction_bias
            bias.copy_(0.05 * torch.randn(bias.shape, generator=generator))
            for expert in self.favourites:
                bias[expert] += 10
        return layer.requires_grad_(False)

    def layer(self, **options: Any) -> MoeLayer:
        return MoeLayer.from_float(self.make(), scale_fmt=self.scale_fmt, **options)

    def layers(self, num_ranks: int) -> list[MoeLayer]:
        return [self.layer(rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)]

    def x(self, *shape: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(1 + seed)
        return torch.randn(*shape, self.hidden, generator=generator).bfloat16()

    def routing(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """By Hugging Face's router: experts ``[num_tokens, num_topk]`` and weights."""
        _, weights, idx = self.make().gate(x.float())
        return idx, weights


DEEPSEEK = Model("deepseek")
NO_SHARED = Model("no_shared", num_shared_experts=0, n_group=1, topk_group=1, num_experts=8)
ODD = Model("odd_hidden", hidden=272, num_shared_experts=2, num_topk=3, norm_topk_prob=False)
ONE_EXPERT = Model("one_expert", num_topk=1, n_group=1, topk_group=1, favourites=(9,))
ONE_RANK = Model("one_rank", n_group=1, topk_group=1, num_topk=2, favourites=(4, 6))
POWERS_OF_TWO = Model("powers_of_two", scale_fmt="ue8m0")
MODELS = [DEEPSEEK, NO_SHARED, ODD, ONE_EXPERT, ONE_RANK, POWERS_OF_TWO]


def exact(model: Model, x: Tensor) -> Tensor:
    """Hugging Face's layer in FP32."""
    result: Tensor = model.make()(x.float())
    return result


# ---- in FP8, out of plain torch ops ----


def cast_and_back(x: Tensor, block_rows: int, scale_fmt: str = "fp32") -> Tensor:
    """What is left of the values, in float64, after a cast with scales of blocks of 128 columns."""
    rows, columns = x.shape
    padding = -columns % 128, -rows % block_rows
    padded = functional.pad(x.float(), (0, padding[0], 0, padding[1]))
    blocks = padded.unflatten(1, (-1, 128)).unflatten(0, (-1, block_rows))
    amax = blocks.abs().amax(dim=(1, 3), keepdim=True)
    scale = torch.where(amax == 0, 1, amax / 448)
    if scale_fmt == "ue8m0":
        scale = scale.log2().ceil().exp2()
    values = (blocks / scale).to(torch.float8_e4m3fn).double() * scale.double()
    return values.flatten(2, 3).flatten(0, 1)[:rows, :columns]


def mlp_in_fp8(
    rows: Tensor, weights: Sequence[Tensor], dtype: torch.dtype, scale_fmt: str = "fp32"
) -> Tensor:
    """Of rows that have been cast; intermediate results are rounded to ``dtype``."""
    gate, up, down = (cast_and_back(each, 128, scale_fmt) for each in weights)
    inner, other = ((rows @ each.T).to(dtype).float() for each in (gate, up))
    return (cast_and_back(functional.silu(inner) * other, 1, scale_fmt) @ down.T).to(dtype)


def in_fp8(model: Model, x: Tensor, num_ranks: int = 1) -> Tensor:
    """The layer, quantised as :class:`MoeLayer` quantises; sums are float64."""
    return layer_in_fp8(model.make(), x, num_ranks, model.scale_fmt)


def layer_in_fp8(
    layer: DeepseekV3MoE, x: Tensor, num_ranks: int = 1, scale_fmt: str = "fp32"
) -> Tensor:
    flat = x.flatten(0, -2)
    rows = cast_and_back(flat, 1, scale_fmt)
    _, weights, idx = layer.gate(flat.float())
    num_experts = layer.gate.num_experts
    sums = torch.zeros(num_ranks, *flat.shape, dtype=torch.float64)
    for expert in range(num_experts):
        token, k = (idx == expert).nonzero(as_tuple=True)
        parts = *layer.experts.gate_up_proj[expert].chunk(2), layer.experts.down_proj[expert]
        y = mlp_in_fp8(rows[token], parts, torch.bfloat16, scale_fmt)
        rank = expert // (num_experts // num_ranks)
        sums[rank].index_add_(0, token, weights[token, k, None].double() * y.double())
    total = sums.bfloat16().double().sum(0).bfloat16()
    result = total.to(x.dtype).double()
    if layer.config.n_shared_experts:
        shared = layer.shared_experts
        parts = [each.weight for each in (shared.gate_proj, shared.up_proj, shared.down_proj)]
        dtype = torch.bfloat16 if x.dtype == torch.bfloat16 else torch.float32
        result += mlp_in_fp8(rows, parts, dtype, scale_fmt).to(x.dtype).double()
    return result.view(x.shape)


def assert_as_fp8(
    found: Tensor, model: Model, x: Tensor, num_ranks: int = 1, *, emulated: bool = False
) -> None:
    """Within what FP8 costs: as far from the exact layer as the model above, and close to it."""
    assert found.shape == x.shape
    assert found.dtype == x.dtype
    if x.numel() == 0:
        return
    wanted, plain = in_fp8(model, x, num_ranks), exact(model, x)
    assert error(wanted, plain) < 0.08
    assert error(found, plain) <= 1.05 * error(wanted, plain)
    errors = row_errors(found.flatten(0, -2), wanted.flatten(0, -2))
    assert float(errors.median()) <= (MOST_EMULATED_ROWS if emulated else MOST_ROWS)
    assert float(errors.max()) <= EVERY_ROW


def error(found: Tensor, wanted: Tensor) -> float:
    """Relative, of all rows together."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


_LINEARS = ("proj.weight", "proj_with_mqa.weight")


def public_state(layer: nn.Module, *, fp8: bool) -> dict[str, Tensor]:
    """Weights by the names of checkpoints, in BF16 or in FP8 with scales."""
    state = {}
    for name, value in layer.state_dict().items():
        if name.startswith("experts."):
            for expert, weight in enumerate(value):
                parts = {"down_proj": weight}
                if name == "experts.gate_up_proj":
                    gate, up = weight.chunk(2)
                    parts = {"gate_proj": gate, "up_proj": up}
                for part, values in parts.items():
                    state[f"experts.{expert}.{part}.weight"] = values.bfloat16()
        else:
            state[name] = value.bfloat16() if name.endswith(_LINEARS) else value
    return {new: each for name in state for new, each in _stored(name, state[name], fp8)}


def _stored(name: str, value: Tensor, fp8: bool) -> list[tuple[str, Tensor]]:
    if not fp8 or not name.endswith(_LINEARS):
        return [(name, value)]
    n, k = value.shape
    blocks = functional.pad(value.float(), (0, -k % 128, 0, -n % 128))
    blocks = blocks.unflatten(1, (-1, 128)).unflatten(0, (-1, 128))
    scale = blocks.abs().amax(dim=(1, 3)) / 448
    q = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
    values = q.view(torch.uint8).flatten(2, 3).flatten(0, 1)[:n, :k].view(torch.float8_e4m3fn)
    return [(name, values), (f"{name}_scale_inv", scale)]
