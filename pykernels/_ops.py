"""Registration of the ops in ``torch.ops.pykernels``.

One schema per op and one per ``out=`` overload, through ``torch.library.Library``: cheaper per call
than ``torch.library.custom_op``. CPU and CUDA share one implementation, which asks
:func:`pykernels.device.launch_device` where to run; meta and fake tensors have their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("pykernels", "DEF")
# Layouts are checked: a compiler must hand over the strides that it was traced with.
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order)


def define(
    schema: str, *, implementation: Callable[..., Any], fake: Callable[..., Any]
) -> torch._ops.OpOverload:
    """Defines one overload and returns it.

    Args:
        schema: the overload's schema, for example
            ``"scale.out(Tensor x, *, Tensor(a!) out) -> ()"``.
        implementation: takes CPU and CUDA tensors.
        fake: takes fake and meta tensors; checks as the implementation does.
    """
    _LIBRARY.define(schema, tags=_TAGS)
    name = schema.partition("(")[0]
    _LIBRARY.impl(name, implementation, "CPU")
    _LIBRARY.impl(name, implementation, "CUDA")
    torch.library.register_fake(f"pykernels::{name}", fake, lib=_LIBRARY)
    op_name, _, overload = name.partition(".")
    packet = getattr(torch.ops.pykernels, op_name)
    found: torch._ops.OpOverload = getattr(packet, overload or "default")
    return found
