"""What ranks tell each other before rows travel: which call, how many rows, or what is wrong.

Every rank gets the headers of all others, so all come to the same verdict and stay in step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_TEXT_WORDS = 96
_WORD_BYTES = 8


@dataclasses.dataclass(frozen=True)
class Header:
    """One rank's side of a call.

    Attributes:
        call: how many calls this rank has made before.
        text: what the call is, with all that must be the same on all ranks; with ``failed`` the
            message of the error that the rank raises.
        failed: whether the rank's arguments are wrong.
        capacity: rows for which the rank has room.
        counts: numbers of rows, in an order that the call defines.
    """

    call: int
    text: str
    failed: bool = False
    capacity: int = 0
    counts: Sequence[int] = ()

    def encode(self, num_counts: int) -> Tensor:
        """As an ``int64`` tensor whose size depends on ``num_counts`` alone."""
        numbers = [self.call, int(self.failed), self.capacity, len(self.counts), *self.counts]
        numbers += [0] * (num_counts - len(self.counts))
        text = _shortened(self.text.encode())
        words = torch.frombuffer(bytearray(text), dtype=torch.int64)
        return torch.cat([torch.tensor(numbers, dtype=torch.int64, device="cpu"), words])

    @staticmethod
    def empty(num_counts: int) -> Tensor:
        return torch.zeros(4 + num_counts + _TEXT_WORDS, dtype=torch.int64, device="cpu")

    @staticmethod
    def decode(tensor: Tensor) -> Header:
        call, failed, capacity, used = (int(number) for number in tensor[:4])
        text = tensor[-_TEXT_WORDS:].numpy().tobytes().rstrip(b"\0").decode(errors="replace")
        return Header(call, text, bool(failed), capacity, tensor[4 : 4 + used].tolist())


def _shortened(text: bytes) -> bytes:
    size = _TEXT_WORDS * _WORD_BYTES
    if len(text) > size:
        text = text[: size - 3] + b"..."
    return text.ljust(size, b"\0")


def check_headers(headers: Mapping[int, Header], rank: int) -> None:
    """Raises the same verdict on all ranks, from the headers by rank.

    Raises:
        RuntimeError: another rank's arguments are wrong.
        ValueError: the ranks do not make the same call.
    """
    for peer, header in headers.items():
        if header.failed and peer != rank:
            raise RuntimeError(f"the call of rank {peer} is wrong: {header.text}")
    first, *others = headers
    for peer in others:
        known, found = headers[first], headers[peer]
        if (known.call, known.text) != (found.call, found.text):
            raise ValueError(
                f"all ranks must make the same call, got call {known.call}, {known.text}, on rank "
                f"{first} and call {found.call}, {found.text}, on rank {peer}"
            )
