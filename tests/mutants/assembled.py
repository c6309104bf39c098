"""What the build says of a mutant: ptxas asks for more than PTX does."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from kernel_build import assembler, toolkit
from kernel_build.compile import PTXAS_FLAGS
from kernel_build.errors import BuildError


def complaint(ptx: str) -> str | None:
    """The first thing in ptxas's log that makes the build fail, or None."""
    ptxas = toolkit.find_ptxas(toolkit.find_binaries(toolkit.find_nvcc()))
    with TemporaryDirectory() as folder:
        source = Path(folder) / "mutant.ptx"
        source.write_text(ptx)
        try:
            log = toolkit.run([str(ptxas), *PTXAS_FLAGS, str(source), "-o", f"{folder}/cubin"])
            assembler.registers(log)
        except BuildError as error:
            return str(error).splitlines()[1]
    return None
