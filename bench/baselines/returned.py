"""A call of a library that allocates its results: the last ones are kept for the comparison."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import Tensor

from . import MlaOperands, Prepared, Unavailable

Results = tuple[Tensor, Tensor]  # out and lse


@dataclasses.dataclass
class Returned:
    """``function`` returns ``out`` and ``lse``."""

    function: Callable[[], Results]
    kept: Results | None = None

    def call(self) -> None:
        self.kept = self.function()

    def results(self) -> Results:
        assert self.kept is not None, "no call yet"
        return self.kept

    def prepared(self, operands: MlaOperands) -> Prepared:
        """Called once: it says only then whether it takes the shape.

        Raises:
            Unavailable: it does not.
        """
        try:
            self.call()
        except (RuntimeError, AssertionError, TypeError, ValueError) as error:
            raise Unavailable(f"{type(error).__name__}: {error}") from error
        return Prepared(self.call, operands.out, results=self.results)
