"""The options of ``python -m pykernels bench``; imports nothing that takes time."""

from __future__ import annotations

import argparse
from pathlib import Path


def add(parser: argparse.ArgumentParser) -> None:
    """Adds a command for each op."""
    ops = parser.add_subparsers(dest="op", required=True)
    gemm = ops.add_parser("gemm", help="fp8_gemm_nt", description="The dense FP8 GEMM.")
    gemm.add_argument("--m", type=_sizes, required=True, help="rows of a, or a list: 1,16,64,256")
    gemm.add_argument("--n", type=int, required=True, help="rows of b, a multiple of 8")
    gemm.add_argument("--k", type=int, required=True, help="columns, a multiple of 16")
    gemm.add_argument("--num-sms", type=int, help="how many SMs the kernel may take")
    gemm.add_argument("--batch-invariant", action="store_true", help="bits that m does not change")
    gemm.add_argument("--device", help="whose constants the model takes: H100, H200, H20, ...")
    gemm.add_argument("--json", type=Path, metavar="FILE", help="write everything to a file")
    gemm.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the times (over m)")


def _sizes(text: str) -> list[int]:
    sizes = [int(part) for part in text.split(",")]
    if min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"sizes of at least 1 are needed, got {text}")
    return sizes
