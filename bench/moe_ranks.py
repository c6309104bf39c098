"""A bench under torchrun: a process for each GPU, of which the first one prints."""

from __future__ import annotations

import atexit
import os

import torch


def join() -> bool:
    """Joins the other ranks that torchrun has started; False where it has not."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return False
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("nccl")
    atexit.register(torch.distributed.destroy_process_group)
    return True


def is_first() -> bool:
    return torch.distributed.get_rank() == 0
