"""Runs a document's Python blocks; ``python -m tests.doc_blocks FILE`` renews their outputs."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from pathlib import Path

BLOCK = re.compile(r"```python\n(?P<code>.*?)```\n(?:```text\n(?P<output>.*?)```\n)?", re.DOTALL)


def run_blocks(text: str, path: Path) -> list[tuple[str, str | None]]:
    """What each block prints, and what the document says that it prints.

    The blocks run one after the other in one namespace. The second is None where no ``text`` block
    follows.
    """
    names: dict[str, object] = {"__name__": "document"}
    results = []
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start("code"))
        code = compile("\n" * line + block["code"], str(path), "exec")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        results.append((printed.getvalue(), block["output"]))
    return results


def renew(path: Path) -> None:
    """Puts what the blocks print into the document."""
    text = path.read_text()
    printed = iter([output for output, _ in run_blocks(text, path)])

    def renewed(block: re.Match[str]) -> str:
        output = next(printed)
        if block["output"] is None:
            return block[0]
        return f"```python\n{block['code']}```\n```text\n{output}```\n"

    path.write_text(BLOCK.sub(renewed, text))


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        renew(Path(argument))
