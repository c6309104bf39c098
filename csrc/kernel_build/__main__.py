"""Commands for CMake and for people: ``PYTHONPATH=csrc python -m kernel_build --help``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from kernel_build import compile as kernel_compile
from kernel_build import manifest, toolkit
from kernel_build.errors import BuildError


def main() -> int:
    """Run one command; return the exit status."""
    arguments = _parser().parse_args()
    try:
        _run(arguments)
    except BuildError as error:
        print(f"kernel_build: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kernel_build", description=__doc__)
    repository = Path(__file__).resolve().parent.parent.parent
    parser.add_argument("--repository", type=Path, default=repository)
    parser.add_argument("--generated", type=Path, default=repository / "build" / "generated")
    parser.add_argument("--output", type=Path, default=repository / "build" / "kernels")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("nvcc", help="print which nvcc a build takes")
    commands.add_parser("generate", help="write the sources; print the kernels' names")
    compile_one = commands.add_parser("compile", help="compile one generated source")
    compile_one.add_argument("name")
    compile_one.add_argument("--depfile", type=Path, required=True)
    copy = commands.add_parser("copy", help="take prebuilt kernels instead of compiling")
    copy.add_argument("source", type=Path)
    return parser


def _run(arguments: argparse.Namespace) -> None:
    if arguments.command == "nvcc":
        print(toolkit.find_nvcc())
        return
    folders = kernel_compile.Folders(arguments.repository, arguments.generated, arguments.output)
    kernels = manifest.load(arguments.repository / "csrc" / "manifest.json")
    if arguments.command == "generate":
        kernel_compile.generate(kernels, folders)
        kernel_compile.remove_stale(kernels, folders)
        print(";".join(kernel.name for kernel in kernels), end="")
    elif arguments.command == "compile":
        kernel = manifest.select(kernels, arguments.name)
        kernel_compile.compile_kernel(kernel, folders, arguments.depfile)
    else:
        kernel_compile.copy_prebuilt(kernels, arguments.source, folders)


if __name__ == "__main__":
    sys.exit(main())
