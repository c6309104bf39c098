"""Modules on top of the ops."""

from pykernels.nn.checkpoint import check_state_dict
from pykernels.nn.gate import Gate
from pykernels.nn.latent_cache import CacheFullError, PagedLatentCache
from pykernels.nn.linear import Fp8Linear
from pykernels.nn.mla import MlaAttention
from pykernels.nn.mla_config import MlaConfig
from pykernels.nn.mla_steps import DecodeStep, PrefillStep
from pykernels.nn.mlp import Fp8Mlp
from pykernels.nn.moe import MoeLayer, forward_local_ranks
from pykernels.nn.rotary import RotaryEmbedding, YarnScaling

__all__ = [
    "CacheFullError",
    "DecodeStep",
    "Fp8Linear",
    "Fp8Mlp",
    "Gate",
    "MlaAttention",
    "MlaConfig",
    "MoeLayer",
    "PagedLatentCache",
    "PrefillStep",
    "RotaryEmbedding",
    "YarnScaling",
    "check_state_dict",
    "forward_local_ranks",
]
