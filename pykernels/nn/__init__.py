"""Modules on top of the ops."""

from pykernels.nn.linear import Fp8Linear

__all__ = ["Fp8Linear"]
