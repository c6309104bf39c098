"""A pytest plugin: puts the extension of ``PYKERNELS_SANITIZED`` in the place of the built one.

AddressSanitizer's runtime must be in the process before it, by ``LD_PRELOAD``.
"""

from __future__ import annotations

import importlib.util
import os
import sys

_SPEC = importlib.util.spec_from_file_location("pykernels._C", os.environ["PYKERNELS_SANITIZED"])
assert _SPEC is not None
assert _SPEC.loader is not None
_EXTENSION = importlib.util.module_from_spec(_SPEC)
sys.modules["pykernels._C"] = _EXTENSION
_SPEC.loader.exec_module(_EXTENSION)
