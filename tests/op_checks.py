"""What the tests of ops in torch share: checks of torch, and a mode that sees the ops' calls."""

from __future__ import annotations

from typing import Any

import torch
import torch._inductor.config
from torch.utils._python_dispatch import TorchDispatchMode

# test_schema compares inputs before and after by torch.allclose, which torch lacks for FP8 on CPUs,
# so it is left out where an argument is FP8, and nowhere else.
CHECKS = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")

one_thread = torch._inductor.config.patch(compile_threads=1)  # inductor without a pool of workers


class Recorder(TorchDispatchMode):
    """The arguments of the ops of this package, with the schema's defaults."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[dict[str, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "pykernels":
            given = dict(zip((each.name for each in func._schema.arguments), args, strict=False))
            defaults = {
                each.name: each.default_value
                for each in func._schema.arguments
                if each.has_default_value()
            }
            call = defaults | given | (kwargs or {})
            if call.get("out_dtype") == 15:  # as the schema has it
                call["out_dtype"] = torch.bfloat16
            self.calls.append({k: v for k, v in call.items() if k not in ("a", "sfa", "b", "sfb")})
        return func(*args, **(kwargs or {}))
