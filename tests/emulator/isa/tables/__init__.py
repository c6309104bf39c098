"""Tables of instruction forms, one a family: a form, inputs, expected results."""

from __future__ import annotations

import functools

from . import (
    atomic,
    compare,
    convert,
    copies,
    floating,
    integer,
    logic,
    matrix,
    memory,
    synchronisation,
    tensor,
    warp,
)
from .row import Row

FAMILIES = {
    "atomic": atomic.rows,
    "compare": compare.rows,
    "convert": convert.rows,
    "copies": copies.rows,
    "floating": floating.rows,
    "integer": integer.rows,
    "logic": logic.rows,
    "matrix": matrix.rows,
    "memory": memory.rows,
    "synchronisation": synchronisation.rows,
    "tensor": tensor.rows,
    "warp": warp.rows,
}


@functools.cache
def family(name: str) -> tuple[Row, ...]:
    """The rows of one table."""
    return tuple(FAMILIES[name]())


def all_rows() -> list[Row]:
    """The rows of all tables."""
    return [row for name in FAMILIES for row in family(name)]
