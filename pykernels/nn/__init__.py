"""Modules on top of the ops."""

from pykernels.nn.checkpoint import check_state_dict
from pykernels.nn.latent_cache import CacheFullError, PagedLatentCache
from pykernels.nn.linear import Fp8Linear
from pykernels.nn.mla import MlaAttention
from pykernels.nn.mla_config import MlaConfig
from pykernels.nn.mla_steps import DecodeStep, PrefillStep
from pykernels.nn.rotary import RotaryEmbedding, YarnScaling

__all__ = [
    "CacheFullError",
    "DecodeStep",
    "Fp8Linear",
    "MlaAttention",
    "MlaConfig",
    "PagedLatentCache",
    "PrefillStep",
    "RotaryEmbedding",
    "YarnScaling",
    "check_state_dict",
]
