"""Tensors as tuples, where the extension takes a TensorView."""

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
        (4096, (4, 256), (272, 1)),
        (4096, [4, 256], (272, 1), X[5]),
        (4096, (4, 256), (272,), X[5]),
        (4096, (4, 256.0), (272, 1), X[5]),
        (-1, (4, 256), (272, 1), X[5]),
        (4096, (4, 2**63), (272, 1), X[5]),
        (4096, (1,) * 6, (1,) * 6, X[5]),
        (4096, (4, 256), (272, 1), None),
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
        ((4096, (4, -256), (272, 1), X[5]), "got size -256 and stride 1 in dimension 1"),
        ((4096, (4, 256), (272, 1), "bfloat17"), "bfloat17"),
    ],
)
def test_wrong_values_are_explained(matrix: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        launch(matrix, Q, SCALES)


def test_tensors_of_any_rank() -> None:
    """Their strides as they are, but for those of dimensions of size 1."""
    for sizes, strides, expected in (
        ((), (), ()),
        ((3,), (2,), (2,)),
        ((4, 256), (272, 1), (272, 1)),
        ((2, 1, 3, 40), (500, 7, 48, 1), (500, 144, 48, 1)),
        ((1, 1, 5), (0, 3, 1), (16, 16, 1)),
        ((1, 3, 1), (9, 20, 9), (64, 20, 1)),
        ((2, 1, 0), (4, 4, 1), (4, 16, 1)),
    ):
        view = native().as_tensor_view((4096, sizes, strides, "float32"))
        assert (view.address, view.sizes, view.strides, view.dtype) == (
            4096,
            sizes,
            expected,
            "float32",
        )
    whole = _C.TensorView(4096, (1, 2), (5, 1), "int32")
    assert native().as_tensor_view(whole).strides == (5, 1)
    assert (
        launch((4096, (4, 256), (272, 1), X[5]), Q, SCALES).arguments
        == launch(X, Q, SCALES).arguments
    )
