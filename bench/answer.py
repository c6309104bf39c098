"""``python -m pykernels bench gemm``, ``grouped``, ``cast``, ``mla`` and ``moe``: is it faster?

With a Hopper GPU the op is measured among the baselines; without one the same command gives the
listing, the emulator's counts and the model, each named as what it is.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pykernels.config import gpu_model

from . import harness, moe_ranks
from .problem import Options, Problem

if TYPE_CHECKING:
    from rich.console import Console

_DEFAULT_DEVICE = "H200"  # modelled where there is no Hopper GPU


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Prints the tables, writes the files, and returns the exit status.

    Raises:
        RuntimeError: a package of the extra ``bench`` is missing, or the kernels are not built.
        ValueError: the device is none that the op takes, or a file cannot be written there; no
            work has been done.
        OSError: writing a file failed nevertheless.
    """
    from . import plot, tables

    _check_place("--json", arguments.json)
    _check_place("--plot", arguments.plot)
    if arguments.plot is not None:
        plot.require(arguments.plot)
    options = Options(arguments.num_sms, arguments.batch_invariant, arguments.device)
    problems = _problems(arguments)
    measured = _has_hopper()
    if arguments.op == "moe" and measured and moe_ranks.join():
        problems = _across_gpus(problems)
        console.quiet = not moe_ranks.is_first()
    if not measured and options.device is None:
        options = dataclasses.replace(options, device=_DEFAULT_DEVICE)
    gpu_model(options.device)  # refused before any work
    compiled = [] if measured else _compiled(getattr(arguments, "cast", arguments.op))
    copy_gbps = harness.copy_bandwidth() if measured else 0.0
    rows = []
    for problem in problems:
        if measured:
            row = _measured_row(problem, options, copy_gbps)
            tables.print_measured(row, console)
        else:
            row = _static_row(problem, options)
            tables.print_static(row, compiled, console)
        rows.append(row)
    tables.print_sweep(rows, console)
    host = _host_path(console) if arguments.op == "gemm" else None
    if console.quiet:
        return 0
    if arguments.json is not None:
        result = {
            "environment": harness.environment(),
            "measured": measured,
            "copy_gbps": copy_gbps or None,
            "rows": rows,
            "baseline_listings": compiled,
            "host_path": host,
        }
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
        console.print(f"written: {arguments.json}")
    if arguments.plot is not None:
        plot.draw(rows, arguments.plot)
        console.print(f"written: {arguments.plot}")
    return 0


def _check_place(option: str, path: Path | None) -> None:
    """Of a file to write at the end."""
    if path is None:
        return
    if path.is_dir():
        raise ValueError(f"{option}: {path} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise ValueError(f"{option}: there is no folder {path.parent}; make it first")


def _has_hopper() -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)


def _problems(arguments: argparse.Namespace) -> list[Problem[Any]]:
    """One for each m; of MLA for each combination of the sizes."""
    if arguments.op == "cast":
        return _casts(arguments)
    if arguments.op == "mla":
        return _decodes(arguments)
    if arguments.op == "moe":
        return _exchanges(arguments)
    from .gemm_bench import Shape
    from .grouped_bench import GroupedShape, routed_rows

    n, k = arguments.n, arguments.k
    if arguments.op == "gemm":
        return [Shape(m, n, k) for m in arguments.m]
    groups = arguments.num_groups
    return [
        GroupedShape(
            routed_rows(m * groups, 1, groups) if arguments.skew else (m,) * groups,
            n,
            k,
            arguments.source,
        )
        for m in arguments.m
    ]


def _casts(arguments: argparse.Namespace) -> list[Problem[Any]]:
    from .cast_bench import QuantizeShape, SiluMulShape

    columns, capacity, num_groups = arguments.columns, arguments.capacity, arguments.num_groups
    if arguments.cast == "silu_mul_quantize_1x128":
        if num_groups is not None and capacity is None:
            raise ValueError("--num-groups needs --capacity, the room for each group's rows")
        return [SiluMulShape(m, columns, capacity, num_groups) for m in arguments.m]
    if capacity is not None or num_groups is not None:
        raise ValueError(f"--capacity and --num-groups: {arguments.cast} has no groups")
    block_rows = 1 if arguments.cast == "quantize_1x128" else 128
    return [QuantizeShape(m, columns, block_rows) for m in arguments.m]


def _decodes(arguments: argparse.Namespace) -> list[Problem[Any]]:
    """All default cases if no size is given, else those given by the first case's others."""
    from . import mla_bench

    names = ("batch", "seqlen_kv", "heads", "seqlen_q", "cache", "page_size")
    given = [getattr(arguments, name) for name in names]
    if all(values is None for values in given) and not arguments.varied:
        return list(mla_bench.cases())
    first = next(mla_bench.cases())
    others = first.batch, first.seqlen_kv, first.num_heads, first.seqlen_q, "bf16", first.page_size
    lists = [values or [other] for values, other in zip(given, others, strict=True)]
    return [
        mla_bench.MlaShape(
            mla_bench.varied(batch, seqlen_kv) if arguments.varied else (seqlen_kv,) * batch,
            num_heads,
            seqlen_q,
            cache == "fp8",
            page_size,
        )
        for batch, seqlen_kv, num_heads, seqlen_q, cache, page_size in itertools.product(*lists)
    ]


def _exchanges(arguments: argparse.Namespace) -> list[Problem[Any]]:
    """All default cases if neither calls nor tokens are given."""
    from . import moe_bench

    if arguments.call is None and arguments.tokens is None:
        return list(moe_bench.cases(tuple(arguments.ranks or moe_bench.RANKS)))
    calls = arguments.call or moe_bench.CALLS
    listed = itertools.product(
        arguments.tokens or [moe_bench.TOKENS],
        arguments.ranks or [max(moe_bench.RANKS)],
        calls,
        arguments.rows or ["bf16", "fp8"],
    )
    return [
        moe_bench.MoeShape(
            call,
            num_ranks,
            num_tokens,
            rows == "fp8",
            arguments.hidden,
            arguments.experts,
            arguments.topk,
        )
        for num_tokens, num_ranks, call, rows in listed
        if rows == "bf16" or call.endswith("dispatch")
    ]


def _across_gpus(problems: list[Problem[Any]]) -> list[Problem[Any]]:
    """Each once, with torchrun's ranks in place of those on one GPU."""
    from . import moe_bench

    shapes = [problem for problem in problems if isinstance(problem, moe_bench.MoeShape)]
    return list(dict.fromkeys(map(moe_bench.across_gpus, shapes)))


def _measured_row(problem: Problem[Any], options: Options, copy_gbps: float) -> dict[str, Any]:
    from . import contest

    return contest.measure(problem, copy_gbps, options=options, every_kernel=True)


def _static_row(problem: Problem[Any], options: Options) -> dict[str, Any]:
    from . import static_answer

    return static_answer.static_row(problem, options)


def _compiled(kind: str) -> list[dict[str, Any]]:
    from . import static_answer

    return static_answer.compiled_baselines(kind)


def _host_path(console: Console) -> Any:
    """The parts of a call on the host."""
    from . import host_path

    return host_path.report(console)
