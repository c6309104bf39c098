"""The README's quick start runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import torch

README = Path(__file__).resolve().parent.parent / "README.md"


def test_the_quick_start_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names: dict[str, torch.Tensor] = {}
    exec(compile(blocks[0], str(README), "exec"), names)
    in_torch, emulated = names["y"].float(), names["z"].float()
    assert emulated.shape == (100, 256)
    assert (emulated - in_torch).norm() < 1e-2 * in_torch.norm()
