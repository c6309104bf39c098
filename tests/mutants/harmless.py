"""Mutants that are no fault: what they took away, another instruction gives as well."""

from __future__ import annotations

from dataclasses import dataclass

from tests.mutants.mutate import Mutant


@dataclass(frozen=True)
class Harmless:
    """Mutants of one source line and change.

    Attributes:
        kernels: Of these kernels, by name.
        source: File and line in CUDA.
        opcode: How the opcode begins.
        change: As `Mutant.change`.
        because: The other instruction that gives the ordering.
        copies: Which copies of the line in the PTX, by `Mutant.copy`; None for all.
    """

    kernels: tuple[str, ...]
    source: str
    opcode: str
    change: str
    because: str
    copies: tuple[int, ...] | None = None

    def covers(self, kernel: str, mutant: Mutant) -> bool:
        return (
            kernel in self.kernels
            and mutant.source == self.source
            and mutant.opcode.startswith(self.opcode)
            and mutant.change == self.change
            and (self.copies is None or mutant.copy in self.copies)
        )


HARMLESS: tuple[Harmless, ...] = ()


def reason(kernel: str, mutant: Mutant) -> str | None:
    """Why the mutant is listed, or None."""
    return next((entry.because for entry in HARMLESS if entry.covers(kernel, mutant)), None)
