"""Mutants that are no fault: what they took away, another instruction gives as well."""

from __future__ import annotations

from dataclasses import dataclass

from tests.mutants.mutate import Mutant


@dataclass(frozen=True)
class Harmless:
    """Mutants of one source line and change.

    Attributes:
        kernels: Of these kernels, by name.
        source: File and line in CUDA.
        opcode: How the opcode begins.
        change: As `Mutant.change`.
        because: The other instruction that gives the ordering.
        copies: Which copies of the line in the PTX, by `Mutant.copy`; None for all.
    """

    kernels: tuple[str, ...]
    source: str
    opcode: str
    change: str
    because: str
    copies: tuple[int, ...] | None = None

    def covers(self, kernel: str, mutant: Mutant) -> bool:
        return (
            kernel in self.kernels
            and mutant.source == self.source
            and mutant.opcode.startswith(self.opcode)
            and mutant.change == self.change
            and (self.copies is None or mutant.copy in self.copies)
        )


ONE = "fp8_gemm_nt_m64n64c1"
TWO = "fp8_gemm_nt_m128n128c2"
WIDE = "fp8_gemm_nt_m128n192c2"
SWAPPED = "fp8_gemm_nt_swap_m16n64"
GROUPED_ONE = "grouped_fp8_gemm_nt_m64n128c1"
GROUPED_TWO = "grouped_fp8_gemm_nt_m128n128c2"
GROUPED_SWAPPED = "grouped_fp8_gemm_nt_swap_m16n64"
GROUPED = (GROUPED_ONE, GROUPED_TWO, GROUPED_SWAPPED)
SILU_MUL = "silu_mul_quantize_1x128"
MLA_CACHES = ("mla_cache_write", "mla_cache_read")
MLA_TWO, MLA_FEW = "mla_decode_bf16_m64c2", "mla_decode_bf16_n16"
MLA_FP8_TWO, MLA_FP8_FEW = "mla_decode_fp8_m64c2", "mla_decode_fp8_n16"
READ_BY_THE_HOST = "the host reads the record, no thread of the launches"
MOE_DISPATCHES = ("moe_dispatch", "moe_dispatch_quantise")
MOE = ("moe_layout", "moe_combine", *MOE_DISPATCHES)
MLA_DECODES = (MLA_TWO, MLA_FEW, MLA_FP8_TWO, MLA_FP8_FEW)

HARMLESS: tuple[Harmless, ...] = (
    Harmless(
        (ONE, GROUPED_ONE), "kernel.cuh:41", "fence.mbarrier_init", "removed",
        "without a cluster, bar.sync (kernel.cuh:47) orders the initialisation before all uses",
    ),
    Harmless(
        (ONE, TWO, WIDE, SWAPPED, *GROUPED), "pipeline.cuh:99", "mbarrier.arrive.expect_tx",
        "release relaxed",
        "the producer writes nothing itself: consumers need the copies' bytes, which complete_tx "
        "orders",
    ),
    Harmless(
        (SWAPPED,), "split.cuh:150", "mbarrier.arrive.expect_tx", "release relaxed",
        "thread 0 hands nothing over: who waits reads what st.async brings, which complete_tx "
        "orders",
    ),
    Harmless(
        (ONE, WIDE), "pipeline.cuh:75", "mbarrier.try_wait", "acquire relaxed",
        "before a stage that is left out, and not written: the wait of the next round acquires "
        "the consumers' arrivals as well",
        copies=(1,),
    ),
    Harmless(
        (GROUPED_ONE,), "pipeline.cuh:75", "mbarrier.try_wait", "acquire relaxed",
        "the same; one copy further, since the scheduler waits for slots",
        copies=(2,),
    ),
    Harmless(
        (ONE, WIDE), "pipeline.cuh:80", "mbarrier.arrive", "release relaxed",
        "arrive_full of a stage that is left out: no one reads it",
    ),
    Harmless(
        (GROUPED_ONE,), "pipeline.cuh:80", "mbarrier.arrive", "release relaxed",
        "arrive_full of a stage that is left out: no one reads it",
        copies=(1,),
    ),
    Harmless(
        (GROUPED_ONE, GROUPED_TWO), "pipeline.cuh:115", "mbarrier.arrive", "release relaxed",
        "the TMA thread gives a slot back that it read before it announced the tile's bytes: the "
        "consumers, who waited for these, give the slot back too, and release",
        copies=(0,),
    ),
    Harmless(
        (GROUPED_SWAPPED,), "pipeline.cuh:115", "mbarrier.arrive", "release relaxed",
        "the same of the TMA thread, and of the scale warp, which announces the tile's scales",
        copies=(1, 2),
    ),
    Harmless(
        (GROUPED_SWAPPED,), "grouped_scheduler.cuh:188", "bar.warp.sync", "removed",
        "a consumer warp turns to its next tile behind the bar.warp.sync that ends its stores "
        "(swap_epilogue.cuh:110), the scale warp behind that of its last stage, and neither reads "
        "the tile between",
    ),
    Harmless(
        (ONE, WIDE, GROUPED_ONE), "pipeline.cuh:89", "mbarrier.arrive", "release relaxed",
        "the producer arrives in the consumers' place and is the one that waits: program order",
    ),
    Harmless(
        (WIDE,), "pipeline.cuh:92", "mbarrier.arrive", "cluster narrowed to cta",
        "hands over that consumers have read, for a copy that overwrites: reads that have "
        "returned need no visibility, so a release of any scope gives the order",
    ),
    Harmless(
        (SWAPPED,), "swap_epilogue.cuh:110", "bar.warp.sync", "removed",
        "the staging is filled again in the next tile only, and each k tile between has a "
        "bar.warp.sync (swap.cuh:183) behind these reads",
    ),
    Harmless(
        (*GROUPED, SILU_MUL, *MLA_DECODES, *MLA_CACHES), "device_error.cuh:13", "st.relaxed.sys",
        "sys narrowed to gpu",
        "the host reads the record of errors only after it has waited for the launch",
    ),
    Harmless(
        (MLA_FEW, MLA_FP8_FEW), "decode.cuh:31", "fence.mbarrier_init", "removed",
        "without a cluster, bar.sync (decode.cuh:37) orders the initialisation before all uses",
    ),
    Harmless(
        (MLA_TWO, MLA_FEW), "loader.cuh:192", "mbarrier.arrive.expect_tx", "release relaxed",
        "the TMA warp writes none of a group's bytes itself: consumers need the copies', which "
        "complete_tx orders",
    ),
    Harmless(
        (MLA_TWO, MLA_FEW), "loader.cuh:193", "mbarrier.arrive", "release relaxed",
        "likewise: it stands for the other producer threads, which write nothing either",
    ),
    Harmless(
        (MLA_FP8_TWO,), "fp8_loader.cuh:176", "mbarrier.arrive", "release relaxed",
        "bar.sync before it orders every producer's bytes before every arrival, and any other one "
        "of the phase releases them",
    ),
    Harmless(
        (MLA_FP8_TWO,), "fp8_loader.cuh:179", "mbarrier.arrive.expect_tx", "release relaxed",
        "the same",
    ),
    Harmless(
        (MLA_FP8_FEW,), "ring.cuh:46", "mbarrier.try_wait", "of the next barrier",
        "a wait for the next group of the block, which the same threads hand over behind this one",
        copies=(*range(4, 12), *range(14, 22)),
    ),
    Harmless(
        (MLA_FP8_TWO,), "ring.cuh:62", "mbarrier.try_wait", "cluster narrowed to cta",
        "the peer fills its own tokens' rows of a stage, always by bulk copies, over what has been "
        "read: reads that have returned need no visibility",
    ),
    Harmless(
        (MLA_TWO, MLA_FP8_TWO), "ring.cuh:149", "mbarrier.arrive", "release relaxed",
        "the odd warpgroup's release of an even block but the last: the even one releases its half "
        "behind the bar.sync that follows, and producers wait for that half, too",
        copies=(4,),
    ),
    Harmless(
        (MLA_TWO, MLA_FP8_TWO), "ring.cuh:46", "mbarrier.try_wait", "removed",
        "the odd warpgroup's wait for q: its scores come behind the even one's first (kEvenAhead), "
        "which has waited for q and fenced it; without blocks, both meet at the item's end",
        copies=(21,),
    ),
    Harmless(
        (MLA_TWO, MLA_FP8_TWO), "ring.cuh:46", "mbarrier.try_wait", "acquire relaxed",
        "the same",
        copies=(21,),
    ),
    Harmless(
        (MLA_TWO, MLA_FP8_TWO), "wide.cuh:74", "fence.proxy.async", "removed",
        "the odd warpgroup's: the same",
        copies=(1,),
    ),
    Harmless(
        (MLA_TWO, MLA_FP8_TWO), "wide.cuh:74", "fence.proxy.async", "of the other space",
        "the same",
        copies=(1,),
    ),
    Harmless(
        (MLA_TWO, MLA_FP8_TWO), "wide.cuh:74", "fence.proxy.async", "not of the proxy",
        "the same",
        copies=(1,),
    ),
    Harmless(
        (MLA_TWO, MLA_FP8_TWO), "wide.cuh:109", "wgmma.commit_group", "removed",
        "of the first even block: only paces the odd scores, which wait for nothing of it",
        copies=(0,),
    ),
    Harmless(
        (MLA_TWO, MLA_FP8_TWO), "wide.cuh:268", "wgmma.wait_group", "removed",
        "only paces the odd scores",
    ),
    Harmless(
        (MLA_TWO, MLA_FP8_TWO), "wide.cuh:268", "wgmma.wait_group", "one group more",
        "only paces the odd scores",
    ),
    Harmless(
        MOE_DISPATCHES, "dispatch.cuh:53", "fence.mbarrier_init", "removed",
        "without a cluster, bar.sync (signal.cuh:103) orders the initialisation before all uses",
    ),
    Harmless(
        MOE, "errors.cuh:37", "st.release.sys", "release relaxed",
        READ_BY_THE_HOST,
    ),
    Harmless(MOE, "errors.cuh:37", "st.release.sys", "sys narrowed to gpu", READ_BY_THE_HOST),
    Harmless(
        ("moe_layout",), "errors.cuh:46", "st.relaxed.sys", "sys narrowed to gpu",
        "the peers read it while they wait, in other kernels",
    ),
    Harmless(
        ("moe_layout",), "errors.cuh:27", "atom.relaxed.gpu", "gpu narrowed to cta",
        "the layout has one CTA",
    ),
    Harmless(
        ("moe_layout", *MOE_DISPATCHES), "errors.cuh:25", "ld.relaxed.gpu", "gpu narrowed to cta",
        "the layout has one CTA, and one of a dispatch reports too little room: what it looks for "
        "is of kernels before",
    ),
    Harmless(
        MOE_DISPATCHES, "staging.cuh:75", "mbarrier.arrive.expect_tx", "release relaxed",
        "lane 0 hands nothing over itself: the lanes need the copies' bytes, which complete_tx "
        "orders",
    ),
    Harmless(
        MOE_DISPATCHES, "receive.cuh:243", "fence.proxy.async", "removed",
        "the payload of a slot is written by bulk copies alone, which carry their fence",
    ),
    Harmless(
        MOE_DISPATCHES, "receive.cuh:243", "fence.proxy.async", "not of the proxy", "the same",
    ),
    Harmless(
        MOE_DISPATCHES, "send.cuh:31", "fence.proxy.async", "removed",
        "the peers' loads have returned: the emulator asks for no proxy fence before a later write",
    ),
    Harmless(MOE_DISPATCHES, "send.cuh:31", "fence.proxy.async", "not of the proxy", "the same"),
    Harmless(
        ("moe_combine",), "combine.cuh:71", "fence.proxy.async", "removed", "the same",
    ),
    Harmless(
        ("moe_combine",), "combine.cuh:71", "fence.proxy.async", "not of the proxy", "the same",
    ),
    Harmless(
        ("moe_combine",), "combine.cuh:108", "bar.warp.sync", "removed",
        "the stage's warp barrier (staging.cuh:68) is behind it, too",
    ),
    Harmless(
        MOE_DISPATCHES, "dispatch.cuh:31", "red.release.gpu", "release relaxed",
        "rows that are given up are whatever is there",
    ),
    Harmless(
        ("moe_combine",), "combine.cuh:70", "bar.warp.sync", "removed",
        "the first stage's warp barrier (staging.cuh:68) is behind it, too",
    ),
)  # fmt: skip


def reason(kernel: str, mutant: Mutant) -> str | None:
    """Why the mutant is listed, or None."""
    return next((entry.because for entry in HARMLESS if entry.covers(kernel, mutant)), None)
