"""The forms of ``tests/emulator/forms.txt``."""

from __future__ import annotations

from pathlib import Path

FORMS = Path(__file__).parents[2] / "forms.txt"


def published_forms(*opcodes: str) -> list[str]:
    """The forms, all or those of these opcodes."""
    lines = FORMS.read_text().splitlines()
    forms = [line.split("\t")[0] for line in lines if line and not line.startswith("#")]
    return [form for form in forms if not opcodes or form.split(".")[0] in opcodes]
