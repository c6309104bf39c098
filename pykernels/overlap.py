"""Whether what a kernel writes lies in memory that it reads: it writes while it still reads."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def check_no_overlap(name: str, written: Tensor, others: Mapping[str, Tensor]) -> None:
    """Raises ValueError if a tensor that is written shares memory with another.

    Rows of two tensors may alternate in one buffer, as values and scales of a packed row do.
    """
    storage = written.untyped_storage().data_ptr()
    for other_name, other in others.items():
        if other.untyped_storage().data_ptr() == storage and _overlap(written, other):
            raise ValueError(
                f"{name} must not share memory with {other_name}, got {name} at "
                f"{written.data_ptr():#x} and {other_name} at {other.data_ptr():#x} of one "
                f"storage; allocate {name} with torch.empty"
            )


def _overlap(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors share a byte: exact for rows of one pitch, else by their extents."""
    if x.numel() == 0 or y.numel() == 0:
        return False
    x_pitch, x_width, x_extent = _row_bytes(x)
    y_pitch, y_width, y_extent = _row_bytes(y)
    distance = y.data_ptr() - x.data_ptr()
    if distance >= x_extent or -distance >= y_extent:
        return False
    pitch = max(x_pitch, y_pitch)
    if (
        pitch == 0
        or _UNEVEN in (x_pitch, y_pitch)
        or (x_pitch > 0 and y_pitch > 0 and x_pitch != y_pitch)
    ):
        return True
    return not x_width <= distance % pitch <= pitch - y_width


_UNEVEN = -1  # in place of a pitch: rows that are not evenly spaced


def _row_bytes(tensor: Tensor) -> tuple[int, int, int]:
    """In bytes: from row to row (0 if it has one), of a row, and of all that the tensor spans.

    Rows run along the dimension of the smallest stride; a lone column is rows of one element.
    """
    size = width = tensor.element_size()
    dims = _merged_dims(tensor)
    extent = (sum(stride * (length - 1) for stride, length in dims) + 1) * size
    if dims and (len(dims) >= 2 or dims[0][0] <= 1):
        stride, length = dims.pop(0)
        width = ((length - 1) * stride + 1) * size
    if len(dims) > 1:
        return _UNEVEN, width, extent
    return (dims[0][0] * size if dims else 0), width, extent


def _merged_dims(tensor: Tensor) -> list[tuple[int, int]]:
    """(stride, length) of dimensions, smallest stride first; those as one that follow evenly."""
    dims: list[tuple[int, int]] = []
    for stride, length in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if length == 1 or stride == 0:  # no other bytes
            continue
        if dims and stride == dims[-1][0] * dims[-1][1]:
            dims[-1] = dims[-1][0], dims[-1][1] * length
        else:
            dims.append((stride, length))
    return dims
