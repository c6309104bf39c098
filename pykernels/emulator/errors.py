"""The exceptions of the emulator."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pykernels.emulator.report import Report


class PtxError(ValueError):
    """The PTX is malformed, truncated, or uses a form that the emulator does not know.

    Attributes:
        line: Line of the text, from 1.
        source_line: The text of that line.
    """

    def __init__(self, message: str, line: int, source_line: str) -> None:
        super().__init__(message)
        self.line = line
        self.source_line = source_line

    def __reduce__(self) -> tuple[type[PtxError], tuple[str, int, str]]:
        return type(self), (str(self), self.line, self.source_line)


class EmulationError(RuntimeError):
    """A launch cannot go on: deadlock, trap, access outside any allocation.

    Attributes:
        report: What was found and counted until then.
    """

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report

    def __reduce__(self) -> tuple[type[EmulationError], tuple[str, Report]]:
        return type(self), (str(self), self.report)
