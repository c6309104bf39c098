"""The memory of one rank's buffer over peer memory, as this process holds it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pykernels.moe import gpu
from pykernels.moe.group import BufferSizes
from pykernels.moe.stats import PeerWait
from pykernels.native import native

if TYPE_CHECKING:
    from pykernels.moe.choice import Settings

_ALIGNMENT = 128  # bytes, of a window: different ranks write different cache lines
_NANOSECONDS = 1e9
_RANK_BITS = 32  # of the mask


def native_sizes(sizes: BufferSizes) -> dict[str, int]:
    """The sizes as the extension takes them."""
    return {
        "num_ranks": sizes.num_ranks,
        "num_experts": sizes.num_experts,
        "num_topk": sizes.num_topk,
        "num_max_tokens": sizes.num_max_tokens_per_rank,
        "hidden": sizes.hidden,
    }


def check_sizes(sizes: BufferSizes) -> None:
    """Raises ValueError where the kernels have a narrower bound than others."""
    memory = native().moe_memory()
    for name, value, most in (
        ("num_ranks", sizes.num_ranks, memory["max_ranks"]),
        ("num_experts", sizes.num_experts, memory["max_experts"]),
        ("num_topk", sizes.num_topk, memory["max_topk"]),
    ):
        if value > most:
            raise ValueError(f"{name} must be at most {most} over peer memory, got {value}")


def window_bytes(sizes: BufferSizes) -> int:
    """What the peers of a rank write."""
    bytes_of: int = native().moe_window_bytes(**native_sizes(sizes))
    return bytes_of


def device_bytes(sizes: BufferSizes) -> int:
    """Of a rank: its window and its state."""
    return window_bytes(sizes) + int(native().moe_memory()["state_bytes"])


def aligned_zeros(num_bytes: int, device: torch.device) -> Tensor:
    """Bytes whose address is a multiple of 128."""
    storage = torch.zeros(num_bytes + _ALIGNMENT, dtype=torch.uint8, device=device)
    offset = -storage.data_ptr() % _ALIGNMENT
    return storage[offset : offset + num_bytes]


class Rank:
    """One rank: the windows of all ranks as it reaches them, its state and its error record.

    Attributes:
        index: its number.
        native: the buffer as launches take it.
    """

    def __init__(
        self, settings: Settings, index: int, windows: Sequence[int], zero_window: Any
    ) -> None:
        """Make the rank's own memory.

        Args:
            settings: of the buffer.
            index: the rank.
            windows: addresses of all ranks' windows.
            zero_window: clears its own.
        """
        device, memory = settings.device, native().moe_memory()
        self.index = index
        self._zero_window = zero_window
        self._state = aligned_zeros(memory["state_bytes"], device)
        self._record = torch.zeros(memory["record_bytes"] // 8, dtype=torch.int64, device="cpu")
        on_gpu = gpu.find(device)
        if on_gpu is not None:
            self._record = on_gpu.pinned(self._record)
        self.native = native().MoeBuffer(
            **native_sizes(settings.sizes),
            windows=list(windows),
            state=self._state.data_ptr(),
            record=self._record.data_ptr(),
            timeout_ns=int(settings.timeout * _NANOSECONDS),
            rank=index,
        )

    def record(self) -> dict[str, Any] | None:
        """The first error since the reset, as far as the GPU has come."""
        found: dict[str, Any] | None = native().moe_read_record(self._record.data_ptr())
        return found

    def zero(self) -> None:
        """As new, but for what has been waited; no kernel of any rank may be running."""
        self._zero_window()
        self._state[: native().moe_memory()["waits_offset"]].zero_()
        self._record.zero_()

    def mask(self, ranks: Collection[int]) -> None:
        """Which ranks the kernels leave out from the next launch on, on the current stream."""
        bits = sum(1 << rank for rank in ranks)
        if bits >= 1 << (_RANK_BITS - 1):
            bits -= 1 << _RANK_BITS
        self._state.view(torch.int32)[native().moe_memory()["mask_offset"] // 4] = bits

    def waits(self, num_ranks: int) -> list[PeerWait]:
        """What the kernels have counted; waits for the device."""
        begin = native().moe_memory()["waits_offset"]
        counted = self._state[begin:].cpu().view(torch.int64).view(2, -1)
        return [
            PeerWait(peer, nanoseconds / _NANOSECONDS, waits)
            for peer, (nanoseconds, waits) in enumerate(counted.T[:num_ranks].tolist())
        ]


def make_local_ranks(settings: Settings) -> list[Rank]:
    """All ranks, in this process and on one device."""
    num_bytes = window_bytes(settings.sizes)
    windows = [aligned_zeros(num_bytes, settings.device) for _ in range(settings.sizes.num_ranks)]
    addresses = [window.data_ptr() for window in windows]
    return [Rank(settings, i, addresses, window.zero_) for i, window in enumerate(windows)]
