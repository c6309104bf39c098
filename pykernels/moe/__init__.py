"""All-to-all of mixtures of experts: tokens to the ranks of their experts, and results home."""

from pykernels.moe.buffer import Buffer
from pykernels.moe.choice import buffer_bytes
from pykernels.moe.errors import MoeTimeoutError
from pykernels.moe.event import CommEvent
from pykernels.moe.group import BufferSizes, LocalGroup
from pykernels.moe.handle import DispatchHandle
from pykernels.moe.stats import PeerWait
from pykernels.moe.stats import load as load_wait_stats
from pykernels.moe.stats import save as save_wait_stats
from pykernels.moe.two_batch import TwoBatchOverlap

__all__ = [
    "Buffer",
    "BufferSizes",
    "CommEvent",
    "DispatchHandle",
    "LocalGroup",
    "MoeTimeoutError",
    "PeerWait",
    "TwoBatchOverlap",
    "buffer_bytes",
    "load_wait_stats",
    "save_wait_stats",
]
