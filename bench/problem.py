"""What a bench is about: an op and the sizes of one call, whatever the op.

Each op has a class of its own (:mod:`.gemm_bench`, :mod:`.grouped_bench`, :mod:`.cast_bench`,
:mod:`.mla_bench`, :mod:`.moe_bench`); the parts of a bench that do not depend on the op take a
:class:`Problem`.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import torch

import pykernels
from pykernels.config import Candidate
from pykernels.emulator import Counters, Report
from pykernels.native import native

from .baselines import Baseline, OperandsT, Prepared

ProblemT = TypeVar("ProblemT", bound="Problem[Any]")


@dataclasses.dataclass(frozen=True)
class Options:
    """How the op is called, and for which GPU it is modelled (None: the one at hand)."""

    num_sms: int | None = None
    batch_invariant: bool = False
    device: str | None = None


class Problem(ABC, Generic[OperandsT]):
    """One call of an op. ``str()`` of it is its name in tables and files."""

    @property
    @abstractmethod
    def op(self) -> Callable[..., Any]:
        """The public function."""

    @property
    @abstractmethod
    def sizes(self) -> Mapping[str, int]:
        """As ``explain_config`` takes them."""

    @property
    @abstractmethod
    def flops(self) -> float:
        """Multiplications and additions of tensor cores that the result needs."""

    @property
    def operand_bytes(self) -> int:
        """Of the values that tensor cores multiply: BF16 takes them twice the time of FP8."""
        return 1

    @property
    @abstractmethod
    def bytes_read(self) -> int:
        """Operands and scales that the result needs, each once."""

    @property
    @abstractmethod
    def bytes_written(self) -> int:
        """The output, once."""

    @property
    def num_bytes(self) -> int:
        return self.bytes_read + self.bytes_written

    @property
    def link_us(self) -> float:
        """Of the busiest link between GPUs, at least, by the datasheet; 0 without one."""
        return 0.0

    @property
    def emulation_work(self) -> float:
        """How long emulating a launch takes, in multiply-adds of tensor cores."""
        return self.flops / 2

    def row(self) -> dict[str, Any]:
        """What a row of a result says of the call."""
        return {"op": self.op.__name__, "shape": str(self), **self.sizes}

    def rates(self, us: float) -> dict[str, float]:
        """What a measured row says beside TFLOPS and GB/s."""
        return {}

    def details(self, options: Options) -> dict[str, Any]:
        """What a row without a GPU says beside listing, counts and model."""
        return {}

    @abstractmethod
    def smaller(self: ProblemT) -> ProblemT | None:
        """About half of it, of the same kind; None where less would say nothing."""

    @abstractmethod
    def emulated_operands(self, seed: int = 0) -> OperandsT:
        """Random operands on the CPU, with scales of all magnitudes, and an output."""

    @abstractmethod
    def gpu_operands(self, seed: int) -> OperandsT:
        """Random operands on the GPU: zeros would draw less power and so run faster."""

    def own_output(self, operands: OperandsT) -> OperandsT:
        """The same operands with another output, so that each contender's rotates as ours does."""
        return operands._replace(out=torch.empty_like(operands.out))

    def candidates(self, options: Options) -> list[Candidate]:
        """Kernels with their schedules that could run the call, the one that runs first."""
        return pykernels.explain_config(
            self.op,
            device=options.device,
            num_sms=options.num_sms,
            batch_invariant=options.batch_invariant,
            **self.sizes,
        )

    def emulate(self, candidate: Candidate, options: Options) -> Counters:
        """What one launch of a candidate does in the emulator, without checks.

        Raises:
            EmulationError: the launch cannot go on.
        """
        device = native().EmulatedDevice(checks=())
        self.launch(device, candidate, options, self.emulated_operands())
        ((_, values),) = device.reports
        return Report.from_native(values).counters

    @abstractmethod
    def launch(
        self, device: Any, candidate: Candidate, options: Options, operands: OperandsT
    ) -> None:
        """Launches a candidate on a GPU or in the emulator, through the binding."""

    @abstractmethod
    def prepare_op(self, options: Options, operands: OperandsT) -> Prepared:
        """A call of the public op."""

    @abstractmethod
    def check(self, operands: OperandsT, prepared: Prepared) -> None:
        """Asserts one result against torch, row by row."""

    def variants(self, options: Options) -> list[Baseline[OperandsT]]:
        """The op called in other ways, which take turns with it as baselines do."""
        return []

    @abstractmethod
    def baselines(self) -> list[Baseline[OperandsT]]:
        """What the op is compared with."""


def random_fp8(generator: torch.Generator, *sizes: int) -> torch.Tensor:
    """Normal values in e4m3 on the generator's device."""
    values = torch.randn(*sizes, generator=generator, device=generator.device) * 40
    return values.to(torch.float8_e4m3fn)


def random_scales(generator: torch.Generator, *sizes: int) -> torch.Tensor:
    """From 0.5 to 1.5."""
    return torch.rand(*sizes, generator=generator, device=generator.device) + 0.5


def halved(size: int, multiple: int) -> int:
    """Half of a size, rounded up to a multiple."""
    return -(-size // (2 * multiple)) * multiple
