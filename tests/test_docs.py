"""The documents' code runs as it stands, and prints what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.doc_blocks import run_blocks

DOCS = Path(__file__).resolve().parent.parent / "docs"


def comparable(output: str) -> str:
    """Reports name lines and registers of compiled kernels: other numbers with another compiler."""
    return re.sub(r"\d+", "0", output) if "PTX line" in output else output


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda path: path.stem)
def test_code_prints_what_the_document_says(path: Path) -> None:
    results = run_blocks(path.read_text(), path)
    assert results
    for printed, said in results:
        if said is not None:
            assert comparable(printed) == comparable(said)


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda path: path.stem)
def test_links_lead_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text()):
        assert (path.parent / link).exists(), link
