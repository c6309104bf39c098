"""The GEMM kernels as the cost model takes them: by their configs."""

from __future__ import annotations

from typing import Any

from pykernels.native import kernel_metadata, native
from tests.gemm_kernels import KERNELS

WEIGHTS = ((2112, 7168), (24576, 1536), (32768, 512), (7168, 16384), (4096, 7168), (7168, 2048))
BFLOAT16_BYTES = 2
GROUPED: dict[str, dict[str, int]] = {
    str(kernel["name"]): kernel["config"]
    for kernel in kernel_metadata()
    if kernel["family"] == "grouped_fp8_gemm_nt"
}


def config(
    block_m: int, block_n: int, *, cluster: int = 1, swap_ab: bool = False
) -> dict[str, dict[str, int]]:
    """One kernel: its name and config."""
    name = f"swap_m{block_m}n{block_n}" if swap_ab else f"m{block_m}n{block_n}c{cluster}"
    fields = {"block_m": block_m, "block_n": block_n, "cluster": cluster}
    fields |= {"swap_ab": int(swap_ab), "grouped": 0}
    return {f"fp8_gemm_nt_{name}": fields}


def gpu(name: str = "H200", **constants: float) -> Any:
    """A GPU's constants, some of them replaced."""
    return native().find_gpu_model(name).replaced(constants)


def explain(shape: tuple[int, int, int], on: Any, **options: Any) -> list[Any]:
    """The ranking over the family."""
    options = {"configs": KERNELS} | options
    ranked: list[Any] = native().explain_fp8_gemm_nt(*shape, BFLOAT16_BYTES, on, **options)
    return ranked


def explain_groups(
    num_groups: int, shape: tuple[int, int, int], on: Any, **options: Any
) -> list[Any]:
    """The ranking over the grouped kernels: of so many products of one shape."""
    return explain(shape, on, **{"configs": GROUPED, "num_groups": num_groups} | options)


def choose(shape: tuple[int, int, int], on: Any, **options: Any) -> Any:
    """The choice among the family."""
    options = {"configs": KERNELS} | options
    return native().choose_fp8_gemm_nt(*shape, BFLOAT16_BYTES, on, **options)


def cost(
    shape: tuple[int, int, int],
    kernel: dict[str, dict[str, int]],
    schedule: tuple[int, int, int] = (1, 1, 1),
    on: Any = None,
    **options: Any,
) -> dict[str, float]:
    """The model's figures for one candidate."""
    ranked = explain(shape, on or gpu(), configs=kernel, **options)
    (found,) = [candidate for candidate in ranked if tuple(candidate.schedule) == schedule]
    figures: dict[str, float] = found.cost
    return figures
