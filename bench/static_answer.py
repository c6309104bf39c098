"""What can be said of a call without a GPU: machine code, emulator counts, model."""

from __future__ import annotations

import importlib.util
import math
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pykernels.config import Candidate
from pykernels.native import KERNELS_DIR, kernel_metadata

from . import counts, listing, peers
from .candidates import named, rank, roofline
from .problem import Options, Problem

_NUM_MODELLED = 5  # candidates of the ranking that are shown


def static_row(problem: Problem[Any], options: Options) -> dict[str, Any]:
    """The chosen kernel's listing, counts and modelled time, each under its own key."""
    ranked = rank(problem, options)
    chosen = ranked[0]
    counted = counts.count(problem, chosen, options)
    modelled = bool(chosen.cost)
    peer = peers.bound(chosen.config) if modelled else None
    return {
        **problem.row(),
        "num_sms": options.num_sms,
        "batch_invariant": options.batch_invariant,
        **named(chosen),
        **roofline(problem, options),
        "minimum_bytes": problem.num_bytes,
        "flops": problem.flops,
        "listing": listing_row(chosen.kernel),
        "bounding_peer": None if peer is None else peer.name,
        "emulator": counted.row(),
        **counted.problem.details(options),
        "model": [_model_row(c) for c in ranked[:_NUM_MODELLED]] if modelled else [],
    }


def listing_row(kernel: str) -> dict[str, Any]:
    """Figures of a kernel's machine code.

    Raises:
        RuntimeError: nvdisasm is missing.
    """
    metadata = {str(entry["name"]): entry for entry in kernel_metadata()}[kernel]
    figures = listing.read_listing(KERNELS_DIR / f"{kernel}.cubin")
    return {
        **cubin_figures(figures),
        "threads": metadata["threads"],
        "compiled_with": f"ptxas {metadata['ptxas']}",
    }


def cubin_figures(figures: listing.Listing) -> dict[str, Any]:
    """A listing as plain values: the main loop's, or of a kernel that has none all instructions."""
    loop = figures.main_loop
    row: dict[str, Any] = {
        "name": figures.name,
        "registers": figures.registers,
        "setmaxnreg": sorted(set(figures.setmaxnreg)),
        "local_accesses": figures.local_accesses,
    }
    if loop is None:
        row["instructions"] = figures.instructions
    else:
        row |= {
            "main_loop": loop.instructions,
            "wgmma": loop.num_matrix,
            "matrix": _matrix(loop),
            "ffma": loop.ffma,
            "other_per_wgmma": round(loop.other_per_matrix, 2),
        }
        if math.isfinite(loop.issue_share):  # not of mma.sync, which has no rate of its own
            row["issue_share"] = round(loop.issue_share, 4)
    return row


def _matrix(loop: listing.MainLoop) -> str:
    """As the peers' file says it: ``16 MMA 64x128``."""
    tiles = Counter[str]()
    for opcode, number in loop.matrix.items():
        shape = opcode.split(".")[1]
        tiles[shape.rpartition("x")[0] or shape] += number
    return " + ".join(f"{number} MMA {tile}" for tile, number in tiles.most_common())


def compiled_baselines(kind: str) -> list[dict[str, Any]]:
    """Listings of the baselines at hand: CUTLASS where built, Triton where installed.

    Args:
        kind: ``gemm``, ``grouped``, ``mla``, or the name of a cast.
    """
    from .baselines import build, cast, triton_launch, triton_mla_launch

    if kind == "silu_mul_quantize_1x128":
        return _of_triton(cast.write_cubin)
    if kind == "mla":
        tiles = triton_mla_launch.SMALL, triton_mla_launch.LARGE
        write_mla = [
            partial(triton_mla_launch.write_cubin, tile=tile, fp8=fp8)
            for tile in tiles
            for fp8 in (False, True)
        ]
        return [row for one in write_mla for row in _of_triton(one)]
    if kind not in ("gemm", "grouped"):
        return []
    grouped = kind == "grouped"
    variants = [variant for variant in build.VARIANTS if variant.grouped == grouped]
    found = [build.find(variant, ".cubin") for variant in variants]
    rows = [foreign_row(cubin) for cubin in found if cubin is not None]
    kernel = triton_launch.GROUPED_KERNEL if grouped else triton_launch.KERNEL
    write = partial(triton_launch.write_cubin, tile=triton_launch.LARGE, kernel=kernel)
    return rows + _of_triton(write)


def _of_triton(write_cubin: Callable[[Path], Path]) -> list[dict[str, Any]]:
    """The listing of what is written into a folder; none where Triton is not installed."""
    if importlib.util.find_spec("triton") is None:
        return []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [foreign_row(write_cubin(Path(folder)))]


def foreign_row(cubin: Path) -> dict[str, Any]:
    """The listing of a cubin that holds one kernel of any name, named as the file."""
    row = cubin_figures(listing.read_listing(cubin, any_name=True))
    return row | {"name": row["name"].partition("-")[0]}


def _model_row(candidate: Candidate) -> dict[str, Any]:
    return named(candidate) | dict(candidate.cost)
