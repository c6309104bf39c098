"""The mixture-of-experts layer of DeepSeek-V3 in FP8, on one rank or expert-parallel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pykernels import checks, moe
from pykernels.nn import moe_checkpoint
from pykernels.nn.experts import Experts
from pykernels.nn.gate import Gate
from pykernels.nn.mlp import Fp8Mlp, check_sizes
from pykernels.nn.moe_checkpoint import Conversion, Part
from pykernels.nn.moe_ranks import Tokens, check_buffer, is_local, routed, routed_low_latency
from pykernels.nn.permute import permute, unpermute
from pykernels.quantize import quantize_1x128

_ACTIVATIONS = ("silu", "swish")


class MoeLayer(nn.Module):
    """``combine(experts(dispatch(x)))`` by a :class:`Gate`, and shared experts beside.

    Tokens are cast to FP8 once, for the experts and for the shared experts, and travel so. The
    routed experts' sum is BF16. Inference only: parameters are buffers.

    Of ``num_ranks`` ranks, each holds ``num_experts / num_ranks`` experts, gate and shared experts
    whole, and moves tokens by a :class:`pykernels.moe.Buffer` that the caller owns and must keep
    open (:meth:`make_buffer`, :meth:`use_buffers`). One rank needs none.

    State dicts are loaded in the layer's own form, of this rank, or as checkpoints have them, of
    all experts: ``experts.<i>.gate_proj.weight`` and the like, in FP8 with ``weight_scale_inv``
    beside each, or in BF16, FP16 or FP32, which are cast; ``experts.gate_up_proj`` and
    ``experts.down_proj`` of Hugging Face's stacked experts. Other ranks' experts are passed over.
    What does not fit is an error that names the module, and leaves the layer as it is.

    Attributes:
        gate: the :class:`Gate`.
        experts: those of this rank.
        shared_experts: a :class:`Fp8Mlp`, or None.
        low_latency: how tokens travel where a call does not say; all ranks the same.
        buffer: for calls with ``low_latency=False``, or None.
        low_latency_buffer: for calls with ``low_latency=True``, or None.
        capacity: rows that this rank may receive in a call with ``low_latency=False``, as
            ``dispatch`` takes it; None for the worst case.
    """

    _expert_counts: Tensor

    def __init__(
        self,
        hidden: int,
        intermediate: int,
        gate: Gate,
        *,
        num_shared_experts: int = 0,
        rank: int = 0,
        num_ranks: int = 1,
        scale_fmt: str = "fp32",
        device: torch.device | str | None = None,
    ) -> None:
        """Makes a layer whose experts are zeros, for a state dict to be loaded.

        Args:
            hidden: columns of a token, a multiple of 16.
            intermediate: of each expert, a multiple of 128.
            gate: for tokens of that ``hidden``; its experts are a multiple of ``num_ranks``.
            num_shared_experts: whose MLP is as many times ``intermediate`` wide; 0 for none.
            rank: of this layer.
            num_ranks: that the experts are spread over.
            scale_fmt: ``"fp32"`` or ``"ue8m0"``: of all casts, of weights and of activations.
            device: of the weights.

        Raises:
            ValueError: an argument is not as above.
        """
        super().__init__()
        check_sizes("MoeLayer", hidden, intermediate)
        checks.check_integer(
            "num_shared_experts of MoeLayer", num_shared_experts, 0, checks.MAX_SIZE
        )
        checks.check_scale_format(scale_fmt)
        num_experts, gate_hidden = gate.weight.shape
        if gate_hidden != hidden:
            raise ValueError(
                f"the gate of MoeLayer must take hidden = {hidden} columns, got {gate_hidden}"
            )
        part = _local_experts(num_experts, rank, num_ranks)
        self.hidden = hidden
        self.num_experts = num_experts
        self.rank = rank
        self.num_ranks = num_ranks
        self.scale_fmt = scale_fmt
        self.low_latency = False
        self.buffer: moe.Buffer | None = None
        self.low_latency_buffer: moe.Buffer | None = None
        self.capacity: int | None = None
        self.gate = gate
        options: dict[str, Any] = {"scale_fmt": scale_fmt, "device": device}
        self.experts = Experts(hidden, intermediate, part, **options)
        shared = num_shared_experts * intermediate
        self.shared_experts = Fp8Mlp(hidden, shared, **options) if shared else None
        counts = torch.zeros(part.end - part.begin, dtype=torch.int64, device=device)
        self.register_buffer("_expert_counts", counts, persistent=False)
        nn.Module.register_load_state_dict_pre_hook(self, moe_checkpoint.convert_state)
        nn.Module.register_load_state_dict_post_hook(self, _place_counts)

    @classmethod
    def from_config(cls, config: Any, **options: Any) -> MoeLayer:
        """Makes the layer that a Hugging Face configuration describes, for a state dict.

        Args:
            config: with the names of ``DeepseekV3Config``.
            options: ``rank``, ``num_ranks``, ``scale_fmt`` and ``device``, as above.

        Raises:
            ValueError: the layer has a size or an activation that is not supported.
        """
        if config.hidden_act not in _ACTIVATIONS:
            raise ValueError(f"hidden_act of MoeLayer must be 'silu', got {config.hidden_act!r}")
        gate = Gate(
            config.hidden_size,
            config.n_routed_experts,
            config.num_experts_per_tok,
            n_group=config.n_group or 1,
            topk_group=config.topk_group or 1,
            norm_topk_prob=config.norm_topk_prob,
            routed_scaling_factor=config.routed_scaling_factor,
            scoring_func=getattr(config, "scoring_func", "sigmoid"),
            device=options.get("device"),
        )
        return cls(
            config.hidden_size,
            config.moe_intermediate_size,
            gate,
            num_shared_experts=config.n_shared_experts or 0,
            **options,
        )

    @classmethod
    def from_float(cls, layer: nn.Module, **options: Any) -> MoeLayer:
        """Casts the weights of a Hugging Face ``DeepseekV3MoE``, those of this rank.

        Args:
            layer: with ``config``, and the names of checkpoints in its state dict.
            options: ``rank``, ``num_ranks`` and ``scale_fmt``; ``device``, by default the layer's.

        Raises:
            ValueError: the layer has a size or an activation that is not supported.
        """
        weights = layer.state_dict()
        options.setdefault("device", weights["gate.weight"].device)
        made = cls.from_config(layer.config, **options)
        made.load_state_dict(weights)
        return made

    def make_buffer(
        self, group: Any = None, *, num_max_tokens_per_rank: int, **options: Any
    ) -> moe.Buffer:
        """A :class:`pykernels.moe.Buffer` of this layer's sizes; layers of one model share it.

        Args:
            group: of ``num_ranks`` ranks, as the buffer takes it.
            num_max_tokens_per_rank: tokens of one rank and call at most.
            options: further arguments of the buffer; ``device`` is by default the layer's.
        """
        options.setdefault("device", self.gate.weight.device)
        return moe.Buffer(
            group,
            hidden=self.hidden,
            num_experts=self.num_experts,
            num_topk=self.gate.num_topk,
            num_max_tokens_per_rank=num_max_tokens_per_rank,
            **options,
        )

    def use_buffers(
        self, buffer: moe.Buffer | None, low_latency_buffer: moe.Buffer | None = None
    ) -> None:
        """Takes the buffers that move tokens from now on; the caller keeps them open.

        Args:
            buffer: for prefill.
            low_latency_buffer: for decoding, with a small ``num_max_tokens_per_rank``, since each
                expert has room for as many tokens of each rank; None for the same buffer.

        Raises:
            ValueError: a buffer is not of this layer's sizes and rank.
        """
        low_latency_buffer = buffer if low_latency_buffer is None else low_latency_buffer
        for each in (buffer, low_latency_buffer):
            if each is not None:
                check_buffer(self, each)
        self.buffer, self.low_latency_buffer = buffer, low_latency_buffer

    def forward(self, x: Tensor, *, low_latency: bool | None = None) -> Tensor:
        """Runs the layer on this rank's tokens; of several ranks, all call it together.

        Args:
            x: ``[..., hidden]``, ``bfloat16``, ``float16`` or ``float32``.
            low_latency: whether tokens travel by ``low_latency_dispatch``, each expert with a fixed
                room, for decoding; or by ``dispatch``. None for the attribute. All ranks say the
                same, whatever their numbers of tokens, so that these do not decide.

        Returns:
            As ``x``.

        Raises:
            ValueError: ``x`` is not as above, or there are more tokens than the buffer is for.
            RuntimeError: the layer has no buffer for this, or the buffer refuses work.
        """
        tokens = self._tokens(x)
        buffer, low_latency = self._way(low_latency)
        if buffer is None:
            return self._result(x, self._alone(tokens), self.shared(tokens))
        if is_local(buffer) and self.num_ranks > 1:
            raise RuntimeError(
                "the buffer is of a LocalGroup, whose ranks run together: call "
                "forward_local_ranks with the layers of all ranks"
            )
        steps = routed_low_latency if low_latency else routed
        (found,) = steps([self], [tokens], buffer)
        return self._result(x, *found)

    def expert_counts(self, *, reset: bool = False) -> Tensor:
        """How many tokens of all ranks each of this rank's experts got since the last reset.

        They are counted on the device, where they stay: neither calls nor this wait for it.

        Args:
            reset: whether to count from 0 again.

        Returns:
            ``[num_local_experts]``, ``int64``, a copy.
        """
        counts = self._expert_counts.clone()
        if reset:
            self._expert_counts.zero_()
        return counts

    def count(self, rows: Tensor) -> None:
        """Adds the rows that each expert has got."""
        self._expert_counts.add_(rows)

    def shared(self, tokens: Tokens) -> Tensor | None:
        """What the shared experts add, ``[num_tokens, hidden]``."""
        if self.shared_experts is None:
            return None
        return self.shared_experts.forward_fp8(tokens.rows, tokens.x.dtype)

    def _alone(self, tokens: Tokens) -> Tensor:
        rows, group_offsets, place = permute(tokens.rows, tokens.topk_idx, self.num_experts)
        self.count(group_offsets.diff())
        return unpermute(self.experts(rows, group_offsets), place, tokens.topk_weights)

    def _tokens(self, x: Tensor) -> Tokens:
        if x.size(-1) != self.hidden:
            raise ValueError(
                f"x must have hidden = {self.hidden} columns, got shape {list(x.shape)}"
            )
        flat = x.reshape(-1, self.hidden)
        rows = quantize_1x128(flat, scale_fmt=self.scale_fmt)
        return Tokens(flat, rows, *self.gate(flat))

    def _way(self, low_latency: bool | None) -> tuple[moe.Buffer | None, bool]:
        """The buffer of a call, and whether it is a low-latency one."""
        low_latency = self.low_latency if low_latency is None else low_latency
        buffer = self.low_latency_buffer if low_latency else self.buffer
        if buffer is None and self.num_ranks > 1:
            raise RuntimeError(
                f"MoeLayer of rank {self.rank} of {self.num_ranks} has no buffer to move tokens: "
                "pass one to use_buffers"
            )
        return buffer, low_latency

    def _result(self, x: Tensor, routed_sum: Tensor, shared: Tensor | None) -> Tensor:
        result = routed_sum.to(x.dtype)
        return (result if shared is None else result + shared).view(x.shape)

    def convert(self, conversion: Conversion, prefix: str) -> None:
        """Brings what begins with the prefix into the form of this module."""
        self.experts.convert(conversion, f"{prefix}experts.")
        shared = f"{prefix}shared_experts."
        if self.shared_experts is not None:
            self.shared_experts.convert(conversion, shared)
            return
        for name, tensor in list(conversion.state.items()):
            if name.startswith(shared) and tensor.numel() == 0:  # Linears without columns
                del conversion.state[name]

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, rank={self.rank}, num_ranks={self.num_ranks}"


def forward_local_ranks(
    layers: Sequence[MoeLayer], x: Sequence[Tensor], *, low_latency: bool | None = None
) -> list[Tensor]:
    """Runs the layers of all ranks of a ``LocalGroup``, as :meth:`MoeLayer.forward` runs one.

    For tests, debugging and the emulator.

    Args:
        layers: of each rank, with the same buffer of a ``LocalGroup``.
        x: of each rank, ``[..., hidden]``.
        low_latency: as :meth:`MoeLayer.forward` takes it; None for the first layer's attribute.

    Raises:
        ValueError: there are more or fewer layers or tensors than ranks, or an ``x`` is not as
            above.
        RuntimeError: the layers do not share a buffer of a ``LocalGroup``.
    """
    if not layers or len(layers) != layers[0].num_ranks or len(x) != len(layers):
        raise ValueError(
            "layers and x must have one element for each rank of the layers, got "
            f"{len(layers)} and {len(x)}"
        )
    buffer, low_latency = layers[0]._way(low_latency)
    buffers = [layer._way(low_latency)[0] for layer in layers]
    if buffer is None or not is_local(buffer) or any(each is not buffer for each in buffers):
        raise RuntimeError("layers of all ranks must share a buffer of a LocalGroup")
    if [layer.rank for layer in layers] != list(range(len(layers))):
        raise ValueError(f"layers must be of ranks 0, 1, ..., got {[each.rank for each in layers]}")
    tokens = [layer._tokens(each) for layer, each in zip(layers, x, strict=True)]
    found = (routed_low_latency if low_latency else routed)(layers, tokens, buffer)
    return [
        layer._result(each, *results) for layer, each, results in zip(layers, x, found, strict=True)
    ]


def _place_counts(layer: MoeLayer, incompatible_keys: object) -> None:
    """Where the weights are: a layer without memory gets it with ``assign=True``."""
    counts, device = layer._expert_counts, layer.experts.down_proj.device
    if counts.is_meta:
        layer._expert_counts = torch.zeros_like(counts, device=device)


def _local_experts(num_experts: int, rank: int, num_ranks: int) -> Part:
    checks.check_integer("num_ranks of MoeLayer", num_ranks, 1, num_experts)
    checks.check_integer("rank of MoeLayer", rank, 0, num_ranks - 1)
    if num_experts % num_ranks != 0:
        raise ValueError(
            f"num_experts of MoeLayer must be a multiple of num_ranks = {num_ranks}, got "
            f"{num_experts}"
        )
    count = num_experts // num_ranks
    return Part(rank * count, (rank + 1) * count, num_experts)
