"""What can be said of a call without a GPU: machine code, emulator counts, model."""

from __future__ import annotations

import importlib.util
import tempfile
import warnings
from collections import Counter
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
    peer = peers.bound(chosen.config)
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
        "model": [_model_row(candidate) for candidate in ranked[:_NUM_MODELLED]],
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
    """A listing as plain values."""
    loop = figures.main_loop
    row: dict[str, Any] = {
        "name": figures.name,
        "registers": figures.registers,
        "setmaxnreg": sorted(set(figures.setmaxnreg)),
        "local_accesses": figures.local_accesses,
    }
    if loop is not None:
        row |= {
            "main_loop": loop.instructions,
            "wgmma": loop.num_matrix,
            "matrix": _matrix(loop),
            "ffma": loop.ffma,
            "other_per_wgmma": round(loop.other_per_matrix, 2),
            "issue_share": round(loop.issue_share, 4),
        }
    return row


def _matrix(loop: listing.MainLoop) -> str:
    """As the peers' file says it: ``16 MMA 64x128``."""
    tiles = Counter[str]()
    for opcode, number in loop.matrix.items():
        tiles[opcode.split(".")[1].rpartition("x")[0]] += number
    return " + ".join(f"{number} MMA {tile}" for tile, number in tiles.most_common())


def compiled_baselines(*, grouped: bool = False) -> list[dict[str, Any]]:
    """Listings of the baselines at hand: CUTLASS where built, Triton where installed."""
    from .baselines import build, triton_launch

    variants = [variant for variant in build.VARIANTS if variant.grouped == grouped]
    found = [build.find(variant, ".cubin") for variant in variants]
    rows = [foreign_row(cubin) for cubin in found if cubin is not None]
    if importlib.util.find_spec("triton") is not None:
        kernel = triton_launch.GROUPED_KERNEL if grouped else triton_launch.KERNEL
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cubin = triton_launch.write_cubin(Path(folder), triton_launch.LARGE, kernel)
            rows.append(foreign_row(cubin))
    return rows


def foreign_row(cubin: Path) -> dict[str, Any]:
    """The listing of a cubin that holds one kernel of any name, named as the file."""
    row = cubin_figures(listing.read_listing(cubin, any_name=True))
    return row | {"name": row["name"].partition("-")[0]}


def _model_row(candidate: Candidate) -> dict[str, Any]:
    return named(candidate) | dict(candidate.cost)
