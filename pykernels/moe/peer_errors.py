"""What the kernels over peer memory have recorded, as exceptions."""

from __future__ import annotations

from typing import Any

from pykernels.moe.errors import MoeTimeoutError
from pykernels.moe.group import BufferSizes

_ALL_EXPERTS = 0xFFFFFFFF  # of an error of capacity: the rows of all experts together
_TOLD = {
    "capacity": "it received more rows than it has room for",
    "expert": "its topk_idx names an expert that does not exist",
    "mismatch": "its call does not match another rank's",
    "argument": "the arguments of its call are wrong",
    "handle": "its handle is not of the dispatch of another rank's",
}


def peer_error(record: dict[str, Any], sizes: BufferSizes) -> Exception:
    """The exception for what a kernel has recorded; ``record`` as the extension reads it."""
    rank, peer = record["rank"], record["peer"]
    expected, seen, index = record["expected"], record["seen"], record["index"]
    if record["kind"] == "timeout":
        return MoeTimeoutError(
            rank=rank, peer=peer, phase=record["phase"], expected=expected, seen=seen
        )
    if record["kind"] == "capacity" and index == _ALL_EXPERTS:
        return ValueError(
            f"capacity must be at least {seen}, the rows that rank {rank} receives, got "
            f"{expected}; pass it, or None for the worst case of distinct experts"
        )
    if record["kind"] == "capacity":
        expert = rank * sizes.num_local_experts + index
        return ValueError(
            f"expert {expert} must receive at most num_ranks * num_max_tokens_per_rank = "
            f"{expected} rows, got {seen}; tokens must not name it twice"
        )
    if record["kind"] == "peer" and record["told"] == "timeout":
        return MoeTimeoutError(
            rank=rank,
            peer=peer,
            phase=record["phase"],
            expected=expected,
            seen=seen,
            detail=f"so rank {record['told_by']} has found",
        )
    if record["kind"] == "peer":
        return RuntimeError(
            f"rank {peer} has failed: {_TOLD[record['told']]}; its own error says more"
        )
    if record["kind"] == "handle":
        return RuntimeError(
            f"all ranks must pass handles of the same dispatch: rank {rank} has one with "
            f"{expected} tokens for rank {peer}, rank {peer} one with {seen} of rank {rank}"
        )
    if record["kind"] == "expert":
        value = seen - (1 << 64) if seen >> 63 else seen
        return ValueError(
            f"topk_idx of rank {rank} must be from -1 to {sizes.num_experts - 1}, got {value} at "
            f"token {index >> 32}, k = {index & 0xFFFFFFFF}; the entry has been dropped"
        )
    return RuntimeError(
        f"the calls of ranks {rank} and {peer} do not match: rank {rank} is in a "
        f"{_describe_signature(expected)}, rank {peer} in a {_describe_signature(seen)}"
    )


def _describe_signature(signature: int) -> str:
    """What csrc/moe/buffer.h packs into it."""
    call = {1: "dispatch", 2: "combine"}.get(signature & 3, "call of an unknown kind")
    kind = "float8_e4m3fn" if signature & 4 else "bfloat16"
    dispatch = f", of dispatch {signature >> 32}" if signature & 3 == 2 else ""
    return f"{call} of {kind} rows of {(signature & 0xFFFFFFFF) >> 3} bytes{dispatch}"
