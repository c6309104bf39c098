"""The router of an MoE layer: which experts a token goes to, and with which weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pykernels import checks
from pykernels.moe.group import MAX_TOPK

SCORING = ("sigmoid", "softmax")
_LEAST_SUM = 1e-20  # added to the sum that weights are divided by


class Gate(nn.Module):
    """The ``num_topk`` experts of each token, by scores in FP32.

    With ``"sigmoid"`` as in DeepSeek-V3: an expert's score is the sigmoid of its logit. For the
    choice, ``e_score_correction_bias`` is added; experts form ``n_group`` groups in their order,
    and only those of the ``topk_group`` groups count whose two best experts have the greatest sum.
    Weights are scores without the bias. With ``"softmax"`` scores are the softmax of the logits,
    without bias and groups.

    Of equal scores the lower index goes first, so the choice is deterministic. NaN counts as the
    greatest score: a token with NaN goes to the first experts with NaN as weights, and no other
    token sees it.

    Inference only: parameters are buffers. ``weight [num_experts, hidden]`` and
    ``e_score_correction_bias [num_experts]`` are ``float32``.
    """

    weight: Tensor
    e_score_correction_bias: Tensor | None

    def __init__(
        self,
        hidden: int,
        num_experts: int,
        num_topk: int,
        *,
        n_group: int = 1,
        topk_group: int = 1,
        norm_topk_prob: bool = True,
        routed_scaling_factor: float = 1.0,
        scoring_func: str = "sigmoid",
        device: torch.device | str | None = None,
    ) -> None:
        """Makes a gate of zeros, for a state dict to be loaded.

        Args:
            hidden: columns of a token.
            num_experts: of all ranks, a multiple of ``n_group``.
            num_topk: experts of a token, at most 32.
            n_group: groups of two experts or more; 1 for none.
            topk_group: groups that a token's experts come from.
            norm_topk_prob: divides a token's weights by their sum.
            routed_scaling_factor: what weights are multiplied with.
            scoring_func: ``"sigmoid"`` or ``"softmax"``.
            device: of the buffers.

        Raises:
            ValueError: an argument is not as above.
        """
        super().__init__()
        checks.check_integer("hidden of Gate", hidden, 1, checks.MAX_SIZE)
        checks.check_integer("num_experts of Gate", num_experts, 1, checks.MAX_SIZE)
        _check_groups(num_experts, num_topk, n_group, topk_group, scoring_func)
        self.num_topk = num_topk
        self.n_group = n_group
        self.topk_group = topk_group
        self.norm_topk_prob = norm_topk_prob
        self.routed_scaling_factor = routed_scaling_factor
        self.scoring_func = scoring_func
        weight = torch.zeros(num_experts, hidden, dtype=torch.float32, device=device)
        self.register_buffer("weight", weight)
        bias = torch.zeros_like(weight[:, 0]) if scoring_func == "sigmoid" else None
        self.register_buffer("e_score_correction_bias", bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Routes tokens.

        Args:
            x: ``[num_tokens, hidden]``, any floating type.

        Returns:
            topk_idx ``[num_tokens, num_topk]``, ``int64``, the best expert first; topk_weights
            ``[num_tokens, num_topk]``, ``float32``.
        """
        logits = functional.linear(x.float(), self.weight)
        scores = logits.sigmoid() if self.scoring_func == "sigmoid" else logits.softmax(dim=-1)
        topk_idx = best(self._scores_for_choice(scores), self.num_topk)
        weights = scores.gather(1, topk_idx)
        if self.norm_topk_prob:
            weights = weights / (weights.sum(dim=1, keepdim=True) + _LEAST_SUM)
        return topk_idx, weights * self.routed_scaling_factor

    def _scores_for_choice(self, scores: Tensor) -> Tensor:
        if self.e_score_correction_bias is not None:
            scores = scores + self.e_score_correction_bias
        if self.n_group == 1:
            return scores
        grouped = scores.unflatten(1, (self.n_group, -1))
        group_scores = grouped.topk(2, dim=2).values.sum(dim=2)
        kept = torch.zeros_like(group_scores, dtype=torch.bool)
        kept = kept.scatter(1, best(group_scores, self.topk_group), True)
        masked: Tensor = grouped.masked_fill(~kept[:, :, None], -torch.inf)
        return masked.flatten(1)

    def extra_repr(self) -> str:
        num_experts, hidden = self.weight.shape
        return (
            f"hidden={hidden}, num_experts={num_experts}, num_topk={self.num_topk}, "
            f"n_group={self.n_group}, topk_group={self.topk_group}, {self.scoring_func}"
        )


def best(scores: Tensor, count: int) -> Tensor:
    """``[..., count]``, ``int64``: the greatest of the last dimension, equal ones by their index.

    A stable sort: which of equal values ``torch.topk`` takes is not defined.
    """
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    return order[..., :count].contiguous()


def _check_groups(
    num_experts: int, num_topk: int, n_group: int, topk_group: int, scoring_func: str
) -> None:
    if scoring_func not in SCORING:
        raise ValueError(
            f"scoring_func of Gate must be 'sigmoid' or 'softmax', got {scoring_func!r}"
        )
    checks.check_integer("n_group of Gate", n_group, 1, num_experts)
    checks.check_integer("topk_group of Gate", topk_group, 1, n_group)
    if n_group > 1 and scoring_func == "softmax":
        raise ValueError(
            f"n_group of Gate must be 1 with softmax scores, got {n_group}; groups are scored by "
            "the sum of their two best experts, which is DeepSeek-V3's rule for sigmoid scores"
        )
    if num_experts % n_group != 0:
        raise ValueError(
            f"num_experts of Gate must be a multiple of n_group = {n_group}, got {num_experts}"
        )
    per_group = num_experts // n_group
    if n_group > 1 and per_group < 2:
        raise ValueError(
            f"a group of Gate must have at least 2 experts, got {num_experts} experts in {n_group} "
            "groups"
        )
    most = min(MAX_TOPK, topk_group * per_group)
    checks.check_integer("num_topk of Gate", num_topk, 1, most)
