"""The tables of instruction forms: each row in the emulator, under ptxas, and on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pykernels.emulator import Module
from pykernels.emulator.load_check import check_path
from pykernels.native import KERNELS_DIR

from .tables import FAMILIES, all_rows, family
from .tables.forms import published_forms
from .tables.replay import Replay, assemble, image, parameters
from .tables.row import Row, emulate, module_text

PLACES = [(name, i) for name in FAMILIES for i in range(len(family(name)))]
IDS = [f"{name}-{family(name)[i].id}" for name, i in PLACES]


@pytest.mark.parametrize(("name", "index"), PLACES, ids=IDS)
def test_row(name: str, index: int) -> None:
    row = family(name)[index]
    assert [form for form in row.forms if not row.uses(form)] == []
    results, report = emulate(row, seed=index)
    report.raise_if_findings()
    assert row.differences(results) == []


def test_every_published_form_has_a_row() -> None:
    known = {form for row in all_rows() for form in row.forms}
    assert sorted(set(published_forms()) - known) == []


def test_forms_of_our_kernels_are_listed() -> None:
    """A form that a kernel newly uses needs a row, too."""
    checks = check_path(KERNELS_DIR)
    used = {form for check in checks for form in check.forms}
    assert sorted(used - set(published_forms())) == []
    assert [check.path for check in checks if check.refusals] == []


@pytest.mark.parametrize("name", FAMILIES)
def test_ptxas_accepts_the_table(name: str, tmp_path: Path) -> None:
    """So the operands are legal ones; the emulator loads the same text."""
    rows = family(name)
    kernels = Module.from_ptx(module_text(rows)).kernels
    assert len(kernels) == len(rows)
    assert assemble(rows, tmp_path)[:4] == b"\x7fELF"


def test_parameters_fill_the_kernels() -> None:
    """Without a GPU: the bytes that a replay passes have the sizes that the kernels declare."""
    for name in FAMILIES:
        rows = family(name)
        kernels = Module.from_ptx(module_text(rows)).kernels
        for row, kernel in zip(rows, kernels.values(), strict=True):
            addresses = dict.fromkeys(row.arguments(), 2**40)
            values = parameters(row, addresses, lambda fields, address: bytes(128))
            assert [len(value) for value in values] == [param.bytes for param in kernel.params]


def test_a_wrong_result_is_told() -> None:
    """One bit of any row's results, the sign of a number or the highest of an integer."""
    for row in all_rows():
        name, wanted = next(iter(row.expected.items()))
        results = {key: value.copy() for key, value in row.expected.items()}
        assert row.differences(results) == []
        at = int(np.flatnonzero(wanted.ravel() == wanted.ravel())[0])  # the first that is no NaN
        results[name].view(np.uint8).reshape(-1)[(at + 1) * wanted.itemsize - 1] ^= 0x80
        (difference,) = row.differences(results)
        assert difference.startswith(f"{name}[{at}] is "), row.id


@pytest.fixture(scope="module")
def replay(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Replay]:
    """The modules on the GPU, assembled once a table."""
    loaded: dict[str, Replay] = {}

    def load(name: str) -> Replay:
        if name not in loaded:
            loaded[name] = Replay(image(family(name), tmp_path_factory.mktemp(name)))
        return loaded[name]

    return load


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "index"), PLACES, ids=IDS)
def test_row_on_the_gpu(replay: Callable[[str], Replay], name: str, index: int) -> None:
    row: Row = family(name)[index]
    assert row.differences(replay(name).run(row, index)) == []
