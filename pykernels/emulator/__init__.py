"""A PTX emulator for sm_90a: runs the PTX that ``ptxas`` assembles for the GPU, on any CPU.

It executes what the GPU executes (warps, CTAs, clusters, TMA, mbarriers, WGMMA), bit for bit where
the hardware's arithmetic is known, and reports races, bad addresses, uninitialised reads, misused
barriers and deadlocks.
"""

from pykernels.emulator.emulator import Emulator, Launch
from pykernels.emulator.errors import EmulationError, PtxError
from pykernels.emulator.explore import Exploration, Failure, explore
from pykernels.emulator.facts import GpuFact, gpu_facts
from pykernels.emulator.module import Kernel, Module, Parameter
from pykernels.emulator.report import (
    Counters,
    EmulationReport,
    Finding,
    MemoryTraffic,
    Report,
    Site,
)
from pykernels.emulator.tensor_map import TensorMap, TensorMapFields
from pykernels.emulator.trace import Trace, TraceStep

__all__ = [
    "Counters",
    "EmulationError",
    "EmulationReport",
    "Emulator",
    "Exploration",
    "Failure",
    "Finding",
    "GpuFact",
    "Kernel",
    "Launch",
    "MemoryTraffic",
    "Module",
    "Parameter",
    "PtxError",
    "Report",
    "Site",
    "TensorMap",
    "TensorMapFields",
    "Trace",
    "TraceStep",
    "explore",
    "gpu_facts",
]
