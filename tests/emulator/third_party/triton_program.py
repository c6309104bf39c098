"""Compiles Triton kernels to PTX and runs them in the emulator."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pykernels.emulator import Emulator, Kernel, Module, Report


@dataclass(frozen=True)
class Program:
    """A kernel that takes pointers and numbers, as Triton's compiler leaves it."""

    kernel: Kernel
    text: str
    shared_bytes: int

    def launch(self, grid: tuple[int, ...], *arguments: object, **options: Any) -> Report:
        """Run it without findings; the report."""
        report = Emulator(**options).launch(
            self.kernel,
            grid,
            (self.kernel.required_threads,),
            [*arguments, None, None],  # the scratch memory that these kernels do not use
            dynamic_smem_bytes=self.shared_bytes,
        )
        report.raise_if_findings()
        return report


def compile_program(
    function: Any, signature: Mapping[str, str], constants: Mapping[str, Any], **options: int
) -> Program:
    """Compile for sm_90a.

    Args:
        function: The ``triton.jit`` function.
        signature: Triton's types of its arguments, in their order.
        constants: Its ``constexpr`` arguments.
        options: ``num_warps``, ``num_stages``.
    """
    from triton import compile as triton_compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(
        function,
        signature={**signature, **dict.fromkeys(constants, "constexpr")},
        constexprs=dict(constants),
        # As Triton's launcher finds for torch's tensors: pointers are multiples of 16 bytes.
        attrs={
            (i,): [["tt.divisibility", 16]]
            for i, kind in enumerate(signature.values())
            if kind.startswith("*")
        },
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = triton_compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    text = compiled.asm["ptx"]
    kernel = Module.from_ptx(text)[compiled.metadata.name]
    return Program(kernel, text, compiled.metadata.shared)


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """A copy at a multiple of 16 bytes."""
    storage = torch.empty(tensor.numel() * tensor.element_size() + 16, dtype=torch.uint8)
    start = -storage.data_ptr() % 16
    view = storage[start : start + tensor.numel() * tensor.element_size()].view(tensor.dtype)
    return view.view(tensor.shape).copy_(tensor)
