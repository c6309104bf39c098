"""The command line: ``python -m pykernels demo | doctor | bench | calibrate | ...``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_MIN_WIDTH = 140  # of tables where the output is no terminal


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "emulate-check":
            from pykernels.emulator import load_check

            return load_check.run(options.path, None if options.json else _console())
        console = _console()
        if options.command == "bench":
            from pykernels.bench import answer

            return answer.run(options, console)
        if options.command == "calibrate":
            from pykernels import calibrate

            return calibrate.run(options.results, options.gpu, console)
        if options.command == "moe-stats":
            from pykernels.moe import stats

            return stats.run(options.files, console)
        if options.command == "demo":
            from pykernels import demo

            sentences = options.sentences or demo.SENTENCES
            emulation = {"seed": options.seed, "checks": options.checks}
            return demo.run(sentences, emulation, console)
        from pykernels import doctor

        return doctor.run(console)
    except (RuntimeError, ImportError, ValueError, OSError) as error:
        print(f"pykernels {options.command}: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pykernels",
        description="FP8 kernels for Hopper, and their emulator.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser(
        "demo",
        help="embed sentences with a real model whose Linears run on the kernels",
        description="Embeds sentences with all-MiniLM-L6-v2, every Linear in FP8 on the real "
        "kernels (on the GPU if there is one, else in the emulator), and compares with FP32.",
    )
    demo.add_argument(
        "sentences", nargs="*", help="what to embed; three of its own if none are given"
    )
    demo.add_argument("--seed", type=int, default=0, help="of the emulator")
    demo.add_argument(
        "--checks",
        type=_checks,
        default="all",
        help="the emulator's checks: all, none, or some of memory,init,sync",
    )
    commands.add_parser(
        "doctor",
        help="report GPU, driver, toolkit, kernels and torch, and what will run where",
        description="Reports what this machine has and what will run where.",
    )
    bench = commands.add_parser(
        "bench",
        help="say whether an op is faster for your shape",
        description="Measures an op among other libraries' kernels on the GPU; without one, gives "
        "its machine-code listing, counts of the emulator and the cost model, each named as that.",
    )
    from pykernels.bench import answer_options

    answer_options.add(bench)
    calibrate = commands.add_parser(
        "calibrate",
        help="fit the cost model's constants to measured times",
        description="Fits the constants of the GEMM's cost model to times of bench/validate_gpu.sh "
        "and says where its choice loses against the best measured kernel.",
    )
    calibrate.add_argument("results", type=Path, help="validation.json, bench.json or bench.jsonl")
    calibrate.add_argument("--gpu", help="the GPU's name, where the file does not tell it")
    moe_stats = commands.add_parser(
        "moe-stats",
        help="say which rank the others wait for in MoE dispatch and combine",
        description="Prints how long each rank has waited for each other, and the rank that is "
        "waited for most, from files of pykernels.moe.save_wait_stats, one for each rank.",
    )
    moe_stats.add_argument("files", nargs="+", type=Path, help="a file of each rank")
    emulate_check = commands.add_parser(
        "emulate-check",
        help="say which PTX files the emulator loads and what it refuses",
        description="Loads a PTX file, or every .ptx file in a folder, and lists each statement "
        "that the emulator refuses. Exit status 1 if there is any.",
    )
    emulate_check.add_argument("path", type=Path, help="a file or a folder")
    emulate_check.add_argument("--json", action="store_true", help="print JSON in place of tables")
    return parser


def _checks(text: str) -> str | tuple[str, ...]:
    if text in ("all", "none"):
        return "all" if text == "all" else ()
    return tuple(text.split(","))


def _console() -> Console:
    """Wide enough for the tables where the output goes into a file or pipe."""
    try:
        from rich.console import Console
    except ImportError as error:
        raise RuntimeError(
            "tables need the package rich; install it with `pip install rich`"
        ) from error
    console = Console()
    return console if console.is_terminal else Console(width=_MIN_WIDTH)
