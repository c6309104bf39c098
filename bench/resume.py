"""A pytest plugin for runs that may be cut short: outcomes are kept, passed tests not run again.

``pytest -p bench.resume --outcomes FILE``: appends ``{"test": id, "outcome": ...}`` for every test
that ends, and leaves out those that FILE already says have passed.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def read_outcomes(path: Path) -> dict[str, str]:
    """The last outcome of every test in the file."""
    if not path.exists():
        return {}
    lines = path.read_text().splitlines()
    return {entry["test"]: entry["outcome"] for entry in map(json.loads, lines)}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--outcomes", type=Path, required=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    outcomes = read_outcomes(config.getoption("--outcomes"))
    done = [item for item in items if outcomes.get(item.nodeid) == "passed"]
    config.hook.pytest_deselected(items=done)
    items[:] = [item for item in items if outcomes.get(item.nodeid) != "passed"]


class Recorder:
    """Writes in the process that gathers reports, not in xdist's workers."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.failed:
            entry = {"test": report.nodeid, "outcome": report.outcome}
            with self._path.open("a") as file:
                file.write(json.dumps(entry) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(config.getoption("--outcomes")))
