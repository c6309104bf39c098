"""Times for benches on a machine with no GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from pykernels.bench import contest, harness


def turns(us: float) -> harness.Turns:
    return harness.Turns(harness.Timing.of([us]), (us, us))


def stand_in_times(monkeypatch: pytest.MonkeyPatch, *shapes: Any) -> None:
    """Ours take 2 us, all others 3; operands of the shapes are those for the emulator."""

    def interleaved(contenders: Mapping[str, Sequence[harness.Call]]) -> dict[str, harness.Turns]:
        for calls in contenders.values():
            for call in calls:
                call()
        return {name: turns(2.0 if name == contest.OURS else 3.0) for name in contenders}

    for kind in shapes:
        monkeypatch.setattr(kind, "gpu_operands", kind.emulated_operands)
    monkeypatch.setattr(harness, "time_interleaved", interleaved)
    monkeypatch.setattr(harness, "rehearse", lambda call: None)
    monkeypatch.setattr(harness, "num_rotated_sets", lambda num_bytes: 2)
