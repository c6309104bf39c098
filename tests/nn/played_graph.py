"""A CUDA graph in the place of torch's, of steps whose CPU tensors play CUDA tensors.

It records every op that torch dispatches, ops of this package among them, and runs them again with
the same tensors: what a value of the host has decided stays as it was, results lie where they lay.
An op for which the host would wait for the GPU, or which copies from its memory, is an error.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Their results have sizes or are values that the host reads, or come from the host's memory.
HOST_WAITS = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "equal",
    "is_nonzero",
    "repeat_interleave",
    "bincount",
    "unique_dim",
    "_unique2",
    "lift_fresh",
    "lift_fresh_copy",
}
READS = {"tolist", "numpy", "cpu", "item", "__array__"}  # which torch does not dispatch on a CPU


class _NoReads(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert getattr(func, "__name__", "") not in READS, f"{func} waits for the GPU"
        return func(*args, **(kwargs or {}))


class PlayedGraph(TorchDispatchMode):
    """What runs inside is recorded, and run as well."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self._no_reads = _NoReads()

    def __enter__(self) -> PlayedGraph:
        self._no_reads.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._no_reads.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        assert name not in HOST_WAITS, f"{func} waits for the GPU"
        if name in ("index", "index_put", "index_put_"):
            masks = [each for each in tree_leaves(args[1]) if each.dtype == torch.bool]
            assert not masks, f"{func} with a mask waits for the GPU"
        result = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, result))
        return result

    @property
    def names(self) -> list[str]:
        """Of this package's ops."""
        return [str(func) for func, *_ in self.calls if func.namespace == "pykernels"]

    def replay(self) -> None:
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            for place, value in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(place, Tensor) and place.data_ptr() != value.data_ptr():
                    place.copy_(value)
