"""Fixtures of the MoE tests."""

from tests.moe.played_gpu import make_played

__all__ = ["make_played"]
