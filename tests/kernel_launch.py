"""Runs a changed copy of a kernel's PTX with the very launch that the op would make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pykernels.emulator import Emulator, Launch, Module, Report
from pykernels.native import native, strided_view, tensor_view
from pykernels.testing import gemm_operands

if TYPE_CHECKING:
    from pykernels import _C

Schedule = tuple[int, int, int]  # cluster_m, cluster_n, split_k


def kernel_info(name: str) -> _C.KernelInfo:
    (info,) = (kernel for kernel in native().registered_kernels() if kernel.name == name)
    return info


def kernel_ptx(name: str) -> str:
    return Path(kernel_info(name).ptx_path).read_text()


def run_launch(
    module: Module, launch: _C.Launch, tensors: Sequence[Tensor], num_sms: int, **options: object
) -> Report:
    """Runs the only kernel of the module in the place of the launch's; it reaches the tensors."""
    emulator = Emulator(num_sms=num_sms, **options)  # type: ignore[arg-type]
    for tensor in tensors:
        emulator.register(tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor)
    (kernel,) = module.kernels
    changed = Launch(
        module[kernel],
        launch.grid,
        launch.block,
        [launch.arguments],
        cluster=launch.cluster,
        dynamic_smem_bytes=launch.dynamic_shared_bytes,
        programmatic_dependent=launch.programmatic_dependent,
        registers=kernel_info(launch.kernel).registers,
    )
    return emulator.launch_concurrent([changed])


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

    @property
    def results(self) -> tuple[Tensor, ...]:
        return (self.out,)

    def ptx(self) -> str:
        return kernel_ptx(self.kernel)

    def run(self, module: Module, **options: object) -> Report:
        """Poisons the output and runs the only kernel of the module."""
        self.out.fill_(float("nan"))
        device = native().EmulatedDevice(num_sms=self.num_sms)
        tensors = [*self.a, *self.b, self.out]
        views = [tensor_view(tensor) for tensor in tensors]
        launch = native().make_fp8_gemm_nt_launch(
            device, *views, self.num_sms, self.kernel, self.schedule
        )
        return run_launch(module, launch, tensors, self.num_sms, **options)


@dataclass
class QuantizeLaunch:
    """A matrix, and the launch that casts it in blocks of `block_m` x 128."""

    x: Tensor
    q: Tensor
    scales: Tensor
    block_m: int
    num_sms: int = 132

    @classmethod
    def make(cls, block_m: int, sizes: tuple[int, int], dtype: torch.dtype) -> QuantizeLaunch:
        m, k = sizes
        x = torch.randn(m, k, generator=torch.Generator().manual_seed(0)).to(dtype)
        q = torch.empty(m, k, dtype=torch.float8_e4m3fn)
        return cls(x, q, torch.empty(-(-m // block_m), -(-k // 128)), block_m)

    @property
    def results(self) -> tuple[Tensor, ...]:
        return (self.q, self.scales)

    def ptx(self) -> str:
        return kernel_ptx(f"quantize_{self.block_m}x128")

    def run(self, module: Module, **options: object) -> Report:
        """Poisons the results and runs the only kernel of the module."""
        self.q.view(torch.uint8).fill_(0x7F)
        self.scales.fill_(float("nan"))
        tensors = [self.x, self.q, self.scales]
        views = [tensor_view(tensor) for tensor in tensors]
        launch = native().make_quantize_launch(*views, self.block_m, False)
        return run_launch(module, launch, tensors, self.num_sms, **options)


@dataclass
class SiluMulLaunch:
    """Rows of groups, and the launch of the fused cast that computes them."""

    x: Tensor
    groups: Tensor
    source: str  # what the groups are: an argument of the op
    q: Tensor
    scales: Tensor
    num_sms: int = 1

    @classmethod
    def make(
        cls, source: str, groups: Tensor, shape: Sequence[int], dtype: torch.dtype
    ) -> SiluMulLaunch:
        *rows, i = shape
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(*rows, 2 * i, generator=generator).to(dtype)
        q = torch.empty(*rows, i, dtype=torch.float8_e4m3fn)
        return cls(x, groups, source, q, torch.empty(*rows, -(-i // 128)))

    @property
    def results(self) -> tuple[Tensor, ...]:
        return (self.q, self.scales)

    def ptx(self) -> str:
        return kernel_ptx("silu_mul_quantize_1x128")

    def run(self, module: Module, **options: object) -> Report:
        """Poisons the results and runs the only kernel of the module."""
        self.q.view(torch.uint8).fill_(0x7F)
        self.scales.fill_(float("nan"))
        tensors = [self.x, self.q, self.scales, self.groups]
        names = ["float8_e4m3fn", "float32", "int32"]
        names.insert(0, str(self.x.dtype).removeprefix("torch."))
        views = [
            native().TensorView(tensor.data_ptr(), tensor.shape, tensor.stride(), name)
            for tensor, name in zip(tensors, names, strict=True)
        ]
        device = native().EmulatedDevice(num_sms=self.num_sms)
        launch = native().make_silu_mul_quantize_launch(
            device, *views[:3], False, views[3], self.source
        )
        return run_launch(module, launch, tensors, self.num_sms, **options)


@dataclass
class MlaCacheLaunch:
    """Tokens and a cache, and the launch that writes them into it or reads them back."""

    kernel: str  # mla_cache_write or mla_cache_read
    kv_latent: Tensor
    k_rope: Tensor
    kv_cache: Tensor
    slot_mapping: Tensor
    norm_weight: Tensor
    cos: Tensor
    sin: Tensor

    @classmethod
    def make(cls, kernel: str, num_tokens: int, kv_cache: Tensor) -> MlaCacheLaunch:
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        slots = torch.randperm(kv_cache.size(0) * kv_cache.size(1), generator=generator)
        tokens = random(num_tokens, 576).bfloat16()
        angles = random(num_tokens, 32)
        return cls(
            kernel,
            tokens[:, :512],
            tokens[:, 512:],
            kv_cache,
            slots[:num_tokens],
            random(512),
            angles.cos(),
            angles.sin(),
        )

    @property
    def results(self) -> tuple[Tensor, ...]:
        if self.kernel == "mla_cache_write":
            return (self.kv_cache,)
        return (self.kv_latent, self.k_rope)

    def ptx(self) -> str:
        return kernel_ptx(self.kernel)

    def run(self, module: Module, **options: object) -> Report:
        """Poisons the results and runs the only kernel of the module."""
        for result in self.results:
            result.fill_(0x55)
        device = native().EmulatedDevice(num_sms=1)
        new = tensor_view(self.kv_latent), tensor_view(self.k_rope)
        stored = strided_view(self.kv_cache), strided_view(self.slot_mapping)
        tensors = [self.kv_latent, self.k_rope, self.kv_cache, self.slot_mapping]
        if self.kernel == "mla_cache_read":
            launch = native().make_mla_cache_read_launch(device, *stored, *new)
            return run_launch(module, launch, tensors, 1, **options)
        angles = tensor_view(self.cos), tensor_view(self.sin)
        weight = strided_view(self.norm_weight)
        launch = native().make_mla_cache_write_launch(device, *new, *stored, weight, 1e-6, *angles)
        tensors += [self.norm_weight, self.cos, self.sin]
        return run_launch(module, launch, tensors, 1, **options)
