"""Modules on top of the ops."""

from pykernels.nn.checkpoint import check_state_dict
from pykernels.nn.linear import Fp8Linear

__all__ = ["Fp8Linear", "check_state_dict"]
