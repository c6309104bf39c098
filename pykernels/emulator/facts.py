"""What the emulator assumes about the hardware where its documents leave it open."""

from __future__ import annotations

from dataclasses import dataclass

from pykernels import _C


@dataclass(frozen=True)
class GpuFact:
    """A behaviour of the hardware that the emulator assumes.

    Attributes:
        name: Short, as in the notes of reports.
        statement: What is assumed.
        test: Id of the test that a GPU has passed, empty if unverified.
        result: The file of ``bench/results/`` that records it, empty if unverified.
    """

    name: str
    statement: str
    test: str
    result: str

    @property
    def status(self) -> str:
        """``"confirmed"`` or ``"unverified"``."""
        return "confirmed" if self.test and self.result else "unverified"


gpu_facts = tuple(GpuFact(*values) for values in _C.emulator.gpu_facts())
"""All assumptions. A kernel that relies on an unverified one gets a note in its report."""
