"""Matrices as tuples, where the extension takes a TensorView."""

from __future__ import annotations

from typing import Any

import pytest

from pykernels import _C
from pykernels.native import native

X = (4096, 4, 256, 272, 1, "bfloat16")
Q = (65536, 4, 256, 256, 1, "float8_e4m3fn")
SCALES = (131072, 4, 2, 2, 1, "float32")


def launch(*matrices: Any) -> _C.Launch:
    made: _C.Launch = native().make_quantize_launch(*matrices, 1, False)
    return made


def test_tuples_and_views_are_the_same() -> None:
    views = [
        _C.TensorView(address, (rows, columns), (pitch, step), dtype)
        for address, rows, columns, pitch, step, dtype in (X, Q, SCALES)
    ]
    from_views, from_tuples = launch(*views), launch(X, Q, SCALES)
    assert from_tuples.arguments == from_views.arguments
    assert from_tuples.memory == from_views.memory
    assert launch(X, views[1], SCALES).arguments == from_views.arguments


@pytest.mark.parametrize(
    "matrix",
    [
        (),
        X[:5],
        (*X, 0),
        (-1, *X[1:]),
        (2**64, *X[1:]),
        (4096, 2**63, *X[2:]),
        (4096, 4.0, *X[2:]),
        ("4096", *X[1:]),
        (*X[:5], 2),
        (*X[:5], None),
        list(X),
        None,
    ],
    ids=str,
)
def test_other_tuples_are_refused(matrix: Any) -> None:
    with pytest.raises(TypeError, match="incompatible function arguments"):
        launch(matrix, Q, SCALES)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ((4096, -4, *X[2:]), "must not be negative, got size -4 and stride 272 in dimension 0"),
        ((4096, 4, 256, 272, -1, X[5]), "got size 256 and stride -1 in dimension 1"),
        ((*X[:5], "bfloat17"), "bfloat17"),
    ],
)
def test_wrong_values_are_explained(matrix: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        launch(matrix, Q, SCALES)
