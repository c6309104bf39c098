"""Whether two tensors of one storage share a byte, against the bytes themselves."""

from __future__ import annotations

import itertools

import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pykernels.overlap import check_no_overlap

STORAGE_BYTES = 4096


@st.composite
def views(draw: st.DrawFn, storage: Tensor) -> Tensor:
    """A tensor of up to three dimensions, its strides in any order, 0 and odd ones among them."""
    dtype = draw(st.sampled_from([torch.uint8, torch.bfloat16, torch.float32]))
    rank = draw(st.integers(0, 3))
    shape = draw(st.lists(st.integers(0, 5), min_size=rank, max_size=rank))
    strides = draw(
        st.lists(st.sampled_from([0, 1, 2, 4, 8, 16, 20, 40]), min_size=rank, max_size=rank)
    )
    start = draw(st.integers(0, 63))
    return storage.view(dtype).as_strided(shape, strides, start)


def bytes_of(tensor: Tensor) -> set[int]:
    found = set()
    for index in itertools.product(*map(range, tensor.shape)):
        element = tensor.storage_offset()
        element += sum(i * step for i, step in zip(index, tensor.stride(), strict=True))
        size = tensor.element_size()
        found.update(range(element * size, (element + 1) * size))
    return found


def overlap(written: Tensor, other: Tensor) -> bool:
    try:
        check_no_overlap("out", written, {"other": other})
    except ValueError:
        return True
    return False


@settings(max_examples=1000, deadline=None)
@given(st.data())
def test_no_shared_byte_is_missed(data: st.DataObject) -> None:
    storage = torch.zeros(STORAGE_BYTES, dtype=torch.uint8)
    written, other = data.draw(views(storage)), data.draw(views(storage))
    shared = bool(bytes_of(written) & bytes_of(other))
    found = overlap(written, other)
    event(f"shared {shared}, found {found}")
    assert found or not shared
    assert found == overlap(other, written)
    assert not overlap(written, torch.zeros(64))


@settings(max_examples=500, deadline=None)
@given(
    pitch=st.integers(8, 24),
    rows=st.integers(1, 5),
    groups=st.integers(1, 3),
    written=st.tuples(st.integers(0, 8), st.integers(1, 8)),
    other=st.tuples(st.integers(0, 40), st.integers(1, 8), st.integers(1, 5)),
)
def test_rows_of_one_pitch_are_told_exactly(
    pitch: int,
    rows: int,
    groups: int,
    written: tuple[int, int],
    other: tuple[int, int, int],
) -> None:
    """Also of groups that follow one another in the same pitch, beside a matrix."""
    storage = torch.zeros(STORAGE_BYTES, dtype=torch.uint8)
    start, width = written
    x = storage.as_strided((groups, rows, width), (rows * pitch, pitch, 1), start)
    start, width, rows = other
    y = storage.as_strided((rows, width), (pitch, 1), start)
    assert overlap(x, y) == bool(bytes_of(x) & bytes_of(y))


def test_scales_that_repeat_are_where_they_are() -> None:
    """A group's factors for all groups, between the rows of the output."""
    buffer = torch.zeros(6, 20)
    out = buffer[:, :16].view(2, 3, 16)
    assert not overlap(out, buffer[:3, 16:19].expand(2, 3, 3))
    assert overlap(out, buffer[:3, 15:18].expand(2, 3, 3))
