"""Runs a changed copy of a GEMM kernel's PTX with the very launch that the op would make."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pykernels.emulator import Emulator, Launch, Module, Report
from pykernels.native import native, tensor_view
from pykernels.testing import gemm_operands

if TYPE_CHECKING:
    from pykernels import _C

Schedule = tuple[int, int, int]  # cluster_m, cluster_n, split_k


@dataclass
class GemmLaunch:
    """One product's tensors, and the launch of one kernel of the family on them."""

    kernel: str
    a: tuple[Tensor, Tensor]
    b: tuple[Tensor, Tensor]
    out: Tensor
    num_sms: int
    schedule: Schedule | None = None

    @classmethod
    def make(
        cls,
        kernel: str,
        sizes: tuple[int, int, int],
        num_sms: int = 132,
        dtype: torch.dtype = torch.bfloat16,
        schedule: Schedule | None = None,
    ) -> GemmLaunch:
        m, n, k = sizes
        a, b = gemm_operands(m, n, k)
        return cls(kernel, a, b, torch.empty(m, n, dtype=dtype), num_sms, schedule)

    def ptx(self) -> str:
        return Path(self._info().ptx_path).read_text()

    def _info(self) -> _C.KernelInfo:
        (info,) = (k for k in native().registered_kernels() if k.name == self.kernel)
        return info

    def run(self, module: Module, **options: object) -> Report:
        """Poisons the output and runs the only kernel of the module."""
        self.out.fill_(float("nan"))
        device = native().EmulatedDevice(num_sms=self.num_sms)
        tensors = [*self.a, *self.b, self.out]
        views = [tensor_view(tensor) for tensor in tensors]
        launch = native().make_fp8_gemm_nt_launch(
            device, *views, self.num_sms, self.kernel, self.schedule
        )
        emulator = Emulator(num_sms=self.num_sms, **options)  # type: ignore[arg-type]
        for tensor in tensors:
            emulator.register(tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor)
        (kernel,) = module.kernels
        return emulator.launch_concurrent(
            [
                Launch(
                    module[kernel],
                    launch.grid,
                    launch.block,
                    [launch.arguments],
                    cluster=launch.cluster,
                    dynamic_smem_bytes=launch.dynamic_shared_bytes,
                    programmatic_dependent=launch.programmatic_dependent,
                    registers=self._info().registers,
                )
            ]
        )
