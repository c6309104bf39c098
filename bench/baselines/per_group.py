"""A dense baseline as a grouped one: a call for each group, whose sizes the host must know."""

from __future__ import annotations

import functools

import torch

from . import Baseline, GroupedOperands, Operands, Prepared, flat


def per_group(dense: Baseline[Operands]) -> Baseline[GroupedOperands]:
    """Captured into one graph, all calls follow one another on one stream."""
    return Baseline(
        f"{dense.name}, per group",
        f"a launch for each group, sizes known to the host; {dense.note}",
        functools.partial(_prepare, dense),
    )


def _prepare(dense: Baseline[Operands], operands: GroupedOperands) -> Prepared:
    calls = []
    sfa, sfb = (torch.ones_like(scales).contiguous() for scales in (operands.sfa, operands.sfb))
    for segment in operands.segments:
        piece = dense.prepare(operands.piece(segment))
        flat(sfa)[segment.begin : segment.end] = piece.sfa
        sfb[segment.group] = piece.sfb
        calls.append(piece.call)

    def call() -> None:
        for piece_call in calls:
            piece_call()

    return Prepared(call, operands.out, sfa, sfb)
