"""Who takes part in an all-to-all, and how large it is."""

from __future__ import annotations

import dataclasses

from pykernels import checks

MAX_RANKS = 1024
MAX_TOPK = 32
SCALE_BLOCK = checks.SCALE_BLOCK
_ROW_BYTES = 16  # rows are moved in pieces of this size


class LocalGroup:
    """All ranks in this process: for the emulator, several ranks on one GPU, and debugging.

    Every tensor argument and result of a buffer of such a group is a list of one per rank.
    """

    def __init__(self, num_ranks: int) -> None:
        checks.check_integer("num_ranks", num_ranks, 1, MAX_RANKS)
        self.num_ranks = int(num_ranks)

    def __repr__(self) -> str:
        return f"LocalGroup({self.num_ranks})"


@dataclasses.dataclass(frozen=True)
class BufferSizes:
    """What a buffer is made for; the same on all ranks.

    Raises:
        ValueError: a size is no integer, out of its range, or no multiple of what it must be.
    """

    num_ranks: int
    num_experts: int
    num_topk: int
    hidden: int
    num_max_tokens_per_rank: int

    def __post_init__(self) -> None:
        most = checks.MAX_SIZE
        checks.check_integer("num_ranks", self.num_ranks, 1, MAX_RANKS)
        checks.check_integer("num_experts", self.num_experts, 1, most)
        checks.check_integer("num_topk", self.num_topk, 1, MAX_TOPK)
        checks.check_integer("hidden", self.hidden, 1, most)
        tokens = self.num_max_tokens_per_rank
        checks.check_integer("num_max_tokens_per_rank", tokens, 1, most)
        if self.num_experts % self.num_ranks != 0:
            raise ValueError(
                f"num_experts must be a multiple of the group's {self.num_ranks} ranks, got "
                f"{self.num_experts}; add experts that no token chooses"
            )
        columns = _ROW_BYTES // 2
        if self.hidden % columns != 0:
            raise ValueError(
                f"hidden must be a multiple of {columns} (16 bytes of BF16), got {self.hidden}; "
                "pad the rows with columns of zeros"
            )
        rows = max(self.max_rows, self.num_local_experts * self.expert_rows)
        if rows > most:
            raise ValueError(
                f"a rank must receive at most {most} rows, got {rows} for "
                f"num_max_tokens_per_rank = {tokens}; make a buffer for fewer tokens"
            )

    @property
    def num_local_experts(self) -> int:
        return self.num_experts // self.num_ranks

    @property
    def expert_rows(self) -> int:
        """Rows of an expert in the masked layout: every rank may send all its tokens."""
        return self.num_ranks * self.num_max_tokens_per_rank

    @property
    def max_rows(self) -> int:
        """Rows that one rank can receive at most, of tokens that name no expert twice."""
        return self.expert_rows * min(self.num_topk, self.num_local_experts)


def num_scales(hidden: int) -> int:
    """Scale factors of a row of ``hidden`` e4m3 values."""
    return checks.ceil_div(hidden, SCALE_BLOCK)
