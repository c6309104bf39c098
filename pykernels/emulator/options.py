"""The options of an emulated GPU, checked once for ``Emulator`` and ``pykernels.emulate``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pykernels.checks import check_flag, check_integer, items, shown
from pykernels.emulator.trace import Trace, runs_to_native

MAX_WARP_INSTRUCTIONS = 2**40  # hours of emulation: what runs longer hangs
CHECKS = ("memory", "init", "race", "sync")
COMPLETIONS = ("early", "late", "random")
SCHEDULERS = ("random", "priority")
_LIMITS = {
    "num_sms": (1, 2**31 - 1),
    "seed": (0, 2**64 - 1),
    "max_warp_instructions": (1, 2**64 - 1),
    "num_change_points": (0, 1 << 16),
    "expected_steps": (0, 2**63),
    "num_threads": (1, 2**16),
}


# Any: the values go by name into typed parameters.
def checked_options(
    num_sms: int = 132,
    seed: int = 0,
    async_completion: str = "late",
    checks: str | Iterable[str] = "all",
    max_warp_instructions: int = MAX_WARP_INSTRUCTIONS,
    schedule: str = "random",
    num_change_points: int = 3,
    expected_steps: int = 0,
    record_trace: bool = False,
    trace: Trace | None = None,
    num_threads: int | None = None,
) -> dict[str, Any]:
    """The options as the extension takes them, by name.

    Raises:
        ValueError: one has the wrong type or range.
    """
    if trace is not None:
        if not isinstance(trace, Trace):
            raise ValueError(f"trace must be a Trace or None, got {shown(trace)}")
        num_sms, seed, async_completion = trace.num_sms, trace.seed, trace.async_completion
    numbers = {
        "num_sms": num_sms,
        "seed": seed,
        "max_warp_instructions": max_warp_instructions,
        "num_change_points": num_change_points,
        "expected_steps": expected_steps,
    }
    for name, value in numbers.items():
        least, most = _LIMITS[name]
        check_integer(name, value, least, most)
    if num_threads is not None:
        check_integer("num_threads", num_threads, *_LIMITS["num_threads"])
    if not isinstance(async_completion, str) or async_completion not in COMPLETIONS:
        raise ValueError(
            f'async_completion must be "early", "late" or "random", got {shown(async_completion)}'
        )
    check_flag("record_trace", record_trace)
    if not isinstance(schedule, str) or schedule not in SCHEDULERS:
        raise ValueError(f'schedule must be "random" or "priority", got {shown(schedule)}')
    return {
        **{name: int(value) for name, value in numbers.items()},
        "async_completion": async_completion,
        "checks": checked_names(checks),
        "schedule": schedule,
        "record_trace": bool(record_trace),
        "num_threads": 0 if num_threads is None else int(num_threads),
        "traces": None if trace is None else runs_to_native(trace.runs),
    }


def checked_names(checks: object) -> tuple[str, ...]:
    """The checks by name.

    Raises:
        ValueError: ``checks`` is neither ``"all"`` nor some of their names.
    """
    names = items(checks)
    known: list[str] = []
    for name in (checks,) if names is None else names:
        if not isinstance(name, str) or name not in (*CHECKS, "all"):
            raise ValueError(
                'checks must be "all" or a set out of "memory", "init", "race", "sync" '
                f"(() for none), got {shown(name)}"
            )
        known.append(name)
    return tuple(known)
