"""Fences: every form loads and runs; what they order is the business of a race detector."""

from __future__ import annotations

import numpy as np
import pytest

from pykernels.emulator import PtxError
from tests.emulator.ptx_program import run_ptx

SCOPES = ("cta", "cluster", "gpu", "sys")
FORMS = [
    *(f"membar.{level}" for level in ("cta", "gl", "sys")),
    *(
        f"fence{semantics}.{scope}"
        for semantics in ("", ".sc", ".acq_rel", ".acquire", ".release")
        for scope in SCOPES
    ),
    "fence.mbarrier_init.release.cluster",
    "fence.acquire.sync_restrict::shared::cluster.cluster",
    "fence.release.sync_restrict::shared::cta.cluster",
    "fence.proxy.alias",
    *(f"fence.proxy.async{space}" for space in ("", ".global", ".shared::cta", ".shared::cluster")),
    *(f"fence.proxy.tensormap::generic.release.{scope}" for scope in SCOPES),
]


@pytest.mark.parametrize("form", FORMS)
def test_form_runs(form: str) -> None:
    report = run_ptx(f"{form};", {})
    report.raise_if_findings()
    assert report.counters.warp_instructions["fence"] == 1


@pytest.mark.parametrize("scope", SCOPES)
def test_tensor_map_acquire_takes_address_and_size(scope: str) -> None:
    tensor_map = np.zeros(128, dtype=np.uint8)
    run_ptx(
        f"fence.proxy.tensormap::generic.acquire.{scope} [map], 128;", {"map": tensor_map}
    ).raise_if_findings()


@pytest.mark.parametrize(
    "statement",
    [
        "fence.acq_rel;",
        "fence.proxy.sync;",
        "membar.gpu;",
        "fence.proxy.tensormap::generic.acquire.gpu [map], 64;",
        "fence.sc.cta r0;",
    ],
)
def test_wrong_form_is_an_error_at_load(statement: str) -> None:
    with pytest.raises(PtxError):
        run_ptx(statement, {"map": np.zeros(128, dtype=np.uint8)})
