"""Stubs of the extension module; a test compares them with the module as built."""  # noqa: N999

import builtins
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

_Dim3 = tuple[int, int, int]
_Words = NDArray[np.uint32]
_Bytes = NDArray[np.uint8]

class KernelInfo:
    @property
    def name(self) -> str: ...
    @property
    def family(self) -> str: ...
    @property
    def config(self) -> dict[str, int]: ...
    @property
    def threads(self) -> int: ...
    @property
    def registers(self) -> int: ...
    @property
    def dynamic_shared_bytes(self) -> int: ...
    @property
    def param_bytes(self) -> int: ...
    @property
    def ptx_path(self) -> str: ...
    @property
    def cubin_path(self) -> str: ...
    @property
    def min_driver_version(self) -> int: ...

def register_kernel(
    *,
    name: str,
    family: str,
    config: Mapping[str, int],
    threads: int,
    registers: int,
    dynamic_shared_bytes: int,
    param_bytes: int,
    ptx_path: str,
    cubin_path: str,
    ptxas: str = "13.0",
) -> None: ...
def registered_kernels() -> list[KernelInfo]: ...

class TensorView:
    def __init__(
        self, address: int, sizes: Sequence[int], strides: Sequence[int], dtype: str
    ) -> None: ...
    @property
    def address(self) -> int: ...
    @property
    def dtype(self) -> str: ...
    @property
    def sizes(self) -> tuple[int, ...]: ...
    @property
    def strides(self) -> tuple[int, ...]: ...
    @property
    def spanned_bytes(self) -> int: ...

# A function that takes a TensorView takes its parts too: of a matrix address, rows, columns, row
# stride, column stride, dtype; of any tensor address, sizes, strides, dtype.
_View = (
    TensorView
    | tuple[int, int, int, int, int, str]
    | tuple[int, tuple[int, ...], tuple[int, ...], str]
)

def as_tensor_view(parts: _View) -> TensorView: ...

class Launch:
    def __init__(
        self,
        kernel: str,
        grid: Sequence[int],
        block: Sequence[int],
        arguments: bytes,
        *,
        cluster: Sequence[int] = (1, 1, 1),
        dynamic_shared_bytes: int = 0,
        programmatic_dependent: bool = False,
        memory: Sequence[tuple[int, int, str]] = (),
        rank: int = 0,
        awaits_others: bool = False,
    ) -> None: ...
    @property
    def kernel(self) -> str: ...
    @property
    def grid(self) -> _Dim3: ...
    @property
    def block(self) -> _Dim3: ...
    @property
    def cluster(self) -> _Dim3: ...
    @property
    def dynamic_shared_bytes(self) -> int: ...
    @property
    def programmatic_dependent(self) -> bool: ...
    @property
    def rank(self) -> int: ...
    @property
    def awaits_others(self) -> bool: ...
    @property
    def arguments(self) -> bytes: ...
    @property
    def memory(self) -> list[tuple[int, int, str]]: ...

class _TensorMapFields(TypedDict):
    type: int
    address: int
    dims: list[int]
    strides: list[int]
    box: list[int]
    element_strides: list[int]
    interleave: int
    swizzle: int
    l2_promotion: int
    fill: int

def decode_tensor_map(bytes: bytes) -> _TensorMapFields: ...

class DeviceProperties:
    @property
    def name(self) -> str: ...
    @property
    def num_sms(self) -> int: ...
    @property
    def compute_capability(self) -> tuple[int, int]: ...
    @property
    def max_shared_bytes_per_block(self) -> int: ...

class Device:
    @property
    def properties(self) -> DeviceProperties: ...
    def max_active_clusters(self, kernel: str, cluster: Sequence[int]) -> int: ...
    def run(self, launch: Launch) -> None: ...
    def run_together(self, launches: Sequence[Launch]) -> None: ...
    def error_record(self) -> int: ...
    def take_error(self) -> str | None: ...

class CudaDevice(Device):
    def __init__(self, device_index: int, stream: int) -> None: ...
    @property
    def device_index(self) -> int: ...
    @property
    def stream(self) -> int: ...

class EmulatedDevice(Device):
    def __init__(
        self,
        *,
        num_sms: int = 132,
        seed: int = 0,
        async_completion: str = "late",
        checks: str | Iterable[str] = "all",
        max_warp_instructions: int = 1099511627776,
        schedule: str = "random",
        num_change_points: int = 3,
        expected_steps: int = 0,
        record_trace: bool = False,
        traces: Sequence[Sequence[tuple[int, int, int, int, int]]] | None = None,
        num_threads: int = 0,
    ) -> None: ...
    @property
    def reports(self) -> list[tuple[str, dict[str, Any]]]: ...

class _DriverInfo(TypedDict):
    version: int | None
    devices: list[DeviceProperties]
    error: str | None

def driver_info() -> _DriverInfo: ...
def check_errors(device_index: int | None) -> None: ...

class PeerMemory:
    def __init__(self, device_index: int, bytes: int, stream: int = 0) -> None: ...
    @property
    def address(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def device_index(self) -> int: ...
    def handle(self) -> builtins.bytes: ...
    def zero(self, stream: int) -> None: ...
    def close(self) -> None: ...

class MappedPeer:
    def __init__(self, device_index: int, handle: bytes) -> None: ...
    @property
    def address(self) -> int: ...
    @property
    def device_index(self) -> int: ...
    def close(self) -> None: ...

def can_access_peer(device_index: int, peer_index: int) -> bool: ...

class RecordedLaunch:
    @property
    def launch(self) -> Launch: ...
    @property
    def device_index(self) -> int: ...
    @property
    def stream(self) -> int: ...
    @property
    def captured(self) -> bool: ...
    @property
    def process(self) -> int: ...

class RecordingDriver:
    def __init__(
        self,
        target: Device | None = None,
        *,
        num_devices: int = 1,
        driver_version: int = 13000,
        name: str = "NVIDIA H200 (recording driver)",
        num_sms: int = 132,
        compute_capability: tuple[int, int] = (9, 0),
        max_shared_bytes_per_block: int = 232448,
        max_cluster: int = 8,
        peer_access: bool = True,
        collects: bool = False,
    ) -> None: ...
    def close(self) -> None: ...
    def __enter__(self) -> RecordingDriver: ...
    def __exit__(self, *args: object) -> None: ...
    def register_memory(self, address: int, bytes: int, name: str) -> None: ...
    def create_stream(self, device_index: int) -> int: ...
    def fail(self, function: str, error: int) -> None: ...
    def begin_capture(self, stream: int) -> None: ...
    def join_capture(self, stream: int) -> None: ...
    def end_capture(self) -> None: ...
    def replay(self) -> None: ...
    @property
    def num_collected(self) -> int: ...
    def wait_stream(self, waiting: int, awaited: int, num_collected: int) -> None: ...
    def run_collected(self) -> None: ...
    def set_process(self, process: int) -> None: ...
    @property
    def violations(self) -> list[str]: ...
    def set_current_device(self, device_index: int) -> None: ...
    def current_device(self) -> int: ...
    def clear_launches(self) -> None: ...
    @property
    def launches(self) -> list[RecordedLaunch]: ...
    @property
    def calls(self) -> dict[str, int]: ...
    def max_dynamic_shared_bytes(self, kernel: str, device_index: int) -> int: ...

class GpuModel:
    @property
    def name(self) -> str: ...
    @property
    def num_sms(self) -> int: ...
    @property
    def active_clusters(self) -> list[int]: ...
    @property
    def constants(self) -> dict[str, float]: ...
    def replaced(self, constants: Mapping[str, float]) -> GpuModel: ...
    def with_num_sms(self, num_sms: int) -> GpuModel: ...

def gpu_models() -> list[GpuModel]: ...
def find_gpu_model(name: str) -> GpuModel | None: ...
def device_gpu_model(device: Device) -> GpuModel: ...

class GemmCandidate:
    @property
    def kernel(self) -> str: ...
    @property
    def config(self) -> dict[str, int]: ...
    @property
    def schedule(self) -> list[int]: ...
    @property
    def cost(self) -> dict[str, float]: ...

def explain_fp8_gemm_nt(
    m: int,
    n: int,
    k: int,
    d_bytes: int,
    gpu: GpuModel,
    num_sms: int | None = None,
    batch_invariant: bool = False,
    configs: Mapping[str, Mapping[str, int]] | None = None,
    num_groups: int = 0,
    no_clusters: bool = False,
) -> list[GemmCandidate]: ...
def choose_fp8_gemm_nt(
    m: int,
    n: int,
    k: int,
    d_bytes: int,
    gpu: GpuModel,
    num_sms: int | None = None,
    batch_invariant: bool = False,
    configs: Mapping[str, Mapping[str, int]] | None = None,
    num_groups: int = 0,
    no_clusters: bool = False,
) -> GemmCandidate: ...
def make_fp8_gemm_nt_launch(
    device: Device,
    a: _View,
    sfa: _View,
    b: _View,
    sfb: _View,
    out: _View,
    num_sms: int | None = None,
    kernel: str | None = None,
    schedule: tuple[int, int, int] | None = None,
    batch_invariant: bool = False,
) -> Launch: ...
def fp8_gemm_nt(
    device: Device,
    a: _View,
    sfa: _View,
    b: _View,
    sfb: _View,
    out: _View,
    num_sms: int | None = None,
    kernel: str | None = None,
    schedule: tuple[int, int, int] | None = None,
    batch_invariant: bool = False,
) -> None: ...
def make_grouped_fp8_gemm_nt_launch(
    device: Device,
    a: _View,
    sfa: _View,
    b: _View,
    sfb: _View,
    out: _View,
    groups: _View,
    source: str,
    num_sms: int | None = None,
    expected_m: int | None = None,
    ready: _View | None = None,
    done: _View | None = None,
    system_scope: bool = False,
    ready_timeout_ns: int = 0,
    kernel: str | None = None,
    schedule: tuple[int, int, int] | None = None,
) -> Launch: ...
def grouped_fp8_gemm_nt(
    device: Device,
    a: _View,
    sfa: _View,
    b: _View,
    sfb: _View,
    out: _View,
    groups: _View,
    source: str,
    num_sms: int | None = None,
    expected_m: int | None = None,
    ready: _View | None = None,
    done: _View | None = None,
    system_scope: bool = False,
    ready_timeout_ns: int = 0,
    kernel: str | None = None,
    schedule: tuple[int, int, int] | None = None,
) -> None: ...
def make_quantize_launch(
    x: _View, q: _View, scales: _View, block_m: int, ue8m0: bool
) -> Launch: ...
def quantize(
    device: Device, x: _View, q: _View, scales: _View, block_m: int, ue8m0: bool
) -> None: ...
def make_silu_mul_quantize_launch(
    device: Device,
    x: _View,
    q: _View,
    scales: _View,
    ue8m0: bool,
    groups: _View | None = None,
    source: str | None = None,
) -> Launch: ...
def silu_mul_quantize(
    device: Device,
    x: _View,
    q: _View,
    scales: _View,
    ue8m0: bool,
    groups: _View | None = None,
    source: str | None = None,
) -> None: ...
def mla_plan_sizes(
    device: Device,
    max_batch: int,
    num_rows: int,
    batch_invariant: bool,
    max_seqlen: int | None = None,
    num_sms: int | None = None,
) -> tuple[int, int, int]: ...
def make_mla_update_plan_launch(
    device: Device,
    cache_seqlens: _View,
    items: _View,
    part_offsets: _View,
    requests: _View,
    batch_invariant: bool,
) -> Launch: ...
def mla_update_plan(
    device: Device,
    cache_seqlens: _View,
    items: _View,
    part_offsets: _View,
    requests: _View,
    batch_invariant: bool,
) -> None: ...
def make_mla_combine_launch(
    device: Device,
    requests: _View,
    partial_out: _View,
    partial_lse: _View,
    out: _View,
    lse: _View,
) -> Launch: ...
def mla_combine(
    device: Device,
    requests: _View,
    partial_out: _View,
    partial_lse: _View,
    out: _View,
    lse: _View,
) -> None: ...
def make_merge_states_launch(
    device: Device, outs: _View, lses: _View, out: _View, lse: _View
) -> Launch: ...
def merge_states(device: Device, outs: _View, lses: _View, out: _View, lse: _View) -> None: ...
def mla_decode_kernel(num_rows: int, fp8: bool, num_sms: int) -> str: ...
def make_mla_decode_launch(
    device: Device,
    q_nope: _View,
    q_rope: _View,
    kv_cache: _View,
    block_table: _View,
    cache_seqlens: _View,
    items: _View,
    part_offsets: _View,
    requests: _View,
    partial_out: _View,
    partial_lse: _View,
    out: _View,
    lse: _View,
    softmax_scale: float,
    causal: bool,
) -> Launch: ...
def mla_decode(
    device: Device,
    q_nope: _View,
    q_rope: _View,
    kv_cache: _View,
    block_table: _View,
    cache_seqlens: _View,
    items: _View,
    part_offsets: _View,
    requests: _View,
    partial_out: _View,
    partial_lse: _View,
    out: _View,
    lse: _View,
    softmax_scale: float,
    causal: bool,
) -> None: ...
def make_mla_cache_write_launch(
    device: Device,
    kv_latent: _View,
    k_rope: _View,
    kv_cache: _View,
    slot_mapping: _View,
    norm_weight: _View | None = None,
    norm_eps: float = 0.0,
    cos: _View | None = None,
    sin: _View | None = None,
    rope_interleaved: bool = True,
) -> Launch: ...
def mla_cache_write(
    device: Device,
    kv_latent: _View,
    k_rope: _View,
    kv_cache: _View,
    slot_mapping: _View,
    norm_weight: _View | None = None,
    norm_eps: float = 0.0,
    cos: _View | None = None,
    sin: _View | None = None,
    rope_interleaved: bool = True,
) -> None: ...
def make_mla_cache_read_launch(
    device: Device,
    kv_cache: _View,
    slot_mapping: _View,
    kv_latent: _View,
    k_rope: _View,
) -> Launch: ...
def mla_cache_read(
    device: Device,
    kv_cache: _View,
    slot_mapping: _View,
    kv_latent: _View,
    k_rope: _View,
) -> None: ...

class emulator:  # noqa: N801 - a submodule
    class Kernel:
        @property
        def name(self) -> str: ...
        @property
        def params(self) -> list[tuple[str, str, int, int, int]]: ...
        @property
        def param_bytes(self) -> int: ...
        @property
        def static_shared_bytes(self) -> int: ...
        @property
        def required_threads(self) -> int: ...
        @property
        def max_threads(self) -> int: ...
        @property
        def required_cluster(self) -> tuple[int, int, int]: ...
        @property
        def max_cluster_rank(self) -> int: ...

    class Options:
        def __init__(
            self,
            num_sms: int,
            seed: int,
            async_completion: str,
            checks: str | Iterable[str],
            max_warp_instructions: int = 1099511627776,
            num_threads: int = 0,
        ) -> None: ...
        def set_schedule(
            self,
            schedule: str,
            num_change_points: int = 3,
            expected_steps: int = 0,
            record_trace: bool = False,
        ) -> None: ...
        def set_trace(self, steps: Sequence[tuple[int, int, int, int, int]]) -> None: ...

    class MachineLaunch:
        def __init__(
            self,
            kernel: emulator.Kernel,
            grid: Sequence[int],
            block: Sequence[int],
            cluster: Sequence[int],
            dynamic_shared_bytes: int,
            programmatic_dependent: bool,
            registers: int,
            rank: int,
            parameters: bytes,
            memory: Sequence[tuple[int, int, str, bool]],
        ) -> None: ...

    @staticmethod
    def load_module(text: str) -> list[emulator.Kernel]: ...
    @staticmethod
    def check_module(
        text: str,
    ) -> tuple[int, int, dict[str, int], list[tuple[int, str, str, str]]]: ...
    @staticmethod
    def run(
        options: emulator.Options, launches: Sequence[emulator.MachineLaunch]
    ) -> dict[str, Any]: ...
    @staticmethod
    def encode_tensor_map(
        type: int,
        address: int,
        dims: Sequence[int],
        strides: Sequence[int],
        box: Sequence[int],
        element_strides: Sequence[int],
        modes: Sequence[int],
    ) -> bytes: ...
    @staticmethod
    def gpu_facts() -> list[tuple[str, str, str, str]]: ...
    @staticmethod
    def fp8_paths() -> list[str]: ...
    @staticmethod
    def wide_paths() -> list[str]: ...
    @staticmethod
    def multiply_fp8(
        d: _Words,
        a: _Bytes,
        b: _Bytes,
        a_type: str = "e4m3",
        b_type: str = "e4m3",
        scale_d: bool = True,
        path: str = "auto",
    ) -> _Words: ...
    @staticmethod
    def multiply_wide(d: _Words, a: _Bytes, b: _Bytes, type: str, path: str = "auto") -> _Words: ...
    @staticmethod
    def multiply_int8(
        d: _Words,
        a: _Bytes,
        b: _Bytes,
        a_signed: bool = True,
        b_signed: bool = True,
        satfinite: bool = False,
    ) -> _Words: ...
    @staticmethod
    def encode(
        value: float,
        format: str,
        rounding: str = "rn",
        satfinite: bool = False,
        relu: bool = False,
    ) -> int: ...
    @staticmethod
    def decode(bits: int, format: str) -> float: ...
    @staticmethod
    def convert_bits(bits: int, name: str) -> int: ...
    @staticmethod
    def arithmetic_f32(
        a: int, b: int, c: int, operation: str, rounding: str = "rn", ftz: bool = False
    ) -> int: ...
    @staticmethod
    def arithmetic_f64(
        a: float, b: float, c: float, operation: str, rounding: str = "rn"
    ) -> float: ...
    @staticmethod
    def arithmetic_half(a: int, b: int, c: int, operation: str, format: str) -> int: ...
    @staticmethod
    def fma_lanes(a: _Words, b: _Words, c: _Words) -> _Words: ...
    @staticmethod
    def approximate_f32(a: int, b: int, function: str, ftz: bool = False) -> int: ...
    @staticmethod
    def float_to_integer(
        value: float, rounding: str, bits: int, is_signed: bool, source_is_f64: bool
    ) -> int: ...
    @staticmethod
    def integer_to_float(value: int, is_signed: bool, format: str, rounding: str = "rn") -> int: ...
    @staticmethod
    def integer_to_f64(value: int, is_signed: bool, rounding: str = "rn") -> float: ...

class MoeBuffer:
    def __init__(
        self,
        *,
        num_ranks: int,
        num_experts: int,
        num_topk: int,
        num_max_tokens: int,
        hidden: int,
        windows: Sequence[int],
        state: int,
        record: int,
        timeout_ns: int,
        rank: int,
    ) -> None: ...
    @property
    def rank(self) -> int: ...
    @property
    def timeout_ns(self) -> int: ...

def moe_window_bytes(
    *, num_ranks: int, num_experts: int, num_topk: int, num_max_tokens: int, hidden: int
) -> int: ...

class _MoeMemory(TypedDict):
    state_bytes: int
    record_bytes: int
    mask_offset: int
    waits_offset: int
    max_ranks: int
    max_topk: int
    max_experts: int
    mail_bytes: int
    header_bytes: int
    entry_bytes: int

def moe_memory() -> _MoeMemory: ...

class _MoeRecord(TypedDict, total=False):
    kind: str
    phase: str
    rank: int
    peer: int
    expected: int
    seen: int
    index: int
    told_by: int  # of kind "peer"
    told: str

def moe_kernel_names() -> list[str]: ...
def moe_read_record(address: int) -> _MoeRecord | None: ...
def make_moe_layout_launch(
    buffer: MoeBuffer,
    topk_idx: _View,
    topk_weights: _View,
    position_in_expert: _View,
    position_in_rank: _View,
    expert_counts: _View,
    rank_counts: _View,
) -> Launch: ...
def make_moe_refusal_launch(buffer: MoeBuffer) -> Launch: ...
def make_moe_dispatch_launch(
    buffer: MoeBuffer,
    x: _View,
    scales: _View | None,
    topk_idx: _View,
    topk_weights: _View,
    position_in_expert: _View,
    position_in_rank: _View,
    expert_counts: _View,
    rank_counts: _View,
    recv_x: _View,
    recv_scales: _View | None,
    groups: _View,
    recv_counts: _View,
    number: _View,
    rows: _View,
    row_weights: _View,
    row_topk: _View,
    counters: _View | None = None,
    *,
    masked: bool,
    ue8m0: bool,
    phases: str,
    num_sms: int,
) -> Launch: ...
def make_moe_combine_launch(
    buffer: MoeBuffer,
    y: _View,
    recv_counts: _View,
    number: _View,
    rows: _View,
    row_weights: _View | None,
    position_in_rank: _View,
    send_counts: _View,
    out: _View,
    done: _View | None = None,
    groups: _View | None = None,
    *,
    phases: str,
    num_sms: int,
) -> Launch: ...
