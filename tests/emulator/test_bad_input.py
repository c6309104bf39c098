"""Any text and any arguments give the documented errors: no crash, no hang, no other exception.

``BAD_INPUT_CASES`` is the number of cases of each property; ``test_sanitized.py`` raises it.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pykernels
from pykernels.emulator import (
    EmulationError,
    Emulator,
    Launch,
    Module,
    PtxError,
    TensorMap,
    Trace,
    explore,
)
from tests.emulator.isa.tables import all_rows
from tests.emulator.isa.tables.row import module_text
from tests.emulator.mutation import KINDS, SPARE_TOKENS, Mutation, exercise, mutate
from tests.emulator.ptx_program import ptx_program

CASES = int(os.environ.get("BAD_INPUT_CASES", "60"))
FOLDER = Path(__file__).parent
KERNELS = Path(pykernels.__file__).parent / "kernels"

bounded = settings(
    max_examples=CASES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)

mutations = st.lists(
    st.builds(
        Mutation,
        st.sampled_from(KINDS),
        st.integers(0, 2**20),
        st.integers(0, 2**20),
        st.integers(0, 2 * len(SPARE_TOKENS)),
    ),
    min_size=1,
    max_size=6,
)


@functools.cache
def corpus(name: str) -> Sequence[str]:
    """Texts to damage."""
    if name == "forms":  # every instruction form, a kernel each
        return [module_text([row]) for row in all_rows()]
    if name == "programs":  # the idioms and their faulty twins
        paths = sorted((FOLDER / "pass").glob("*.ptx")) + sorted((FOLDER / "fail").glob("*.ptx"))
        return [path.read_text() for path in paths]
    paths = [KERNELS / f"{stem}.ptx" for stem in ("quantize_1x128", "fp8_gemm_nt_m64n16c1")]
    return [path.read_text() for path in paths]


@pytest.mark.parametrize("name", ["forms", "programs", "kernels"])
def test_damaged_ptx(name: str) -> None:
    texts = corpus(name)
    outcomes = set()

    @bounded
    @given(st.integers(0, len(texts) - 1), mutations)
    def check(index: int, changes: list[Mutation]) -> None:
        outcomes.add(exercise(mutate(texts[index], changes)))

    check()
    assert "refused" in outcomes  # the damage is felt
    assert outcomes & {"ran", "failed"}  # and not always deadly


@bounded
@given(st.text(max_size=300) | st.binary(max_size=300).map(lambda b: b.decode("latin-1")))
def test_text_that_is_no_ptx(text: str) -> None:
    with pytest.raises(PtxError):
        Module.from_ptx(text)


HEADER = ".version 8.7\n.target sm_90a\n.address_size 64\n"


@bounded
@given(st.text(alphabet='{}()[]<>,;:@!|+-=*.%_$arxp019 \n"\\/', max_size=200))
def test_punctuation_behind_a_header(text: str) -> None:
    exercise(HEADER + text)
    exercise(HEADER + ".visible .entry kernel()\n{\n.reg .b32 r<4>;\n" + text)


# ---- arguments ----

junk = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(0, 40),
    st.sampled_from([2**31, 2**32, 2**63, 2**64, -1, 65536, 232449]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["all", "late", "random", "priority", "128B", "nan", "float32", "race"]),
    st.binary(max_size=130),
    st.lists(st.integers(-1, 2**33), max_size=6),
    st.tuples(st.integers(0, 300), st.integers(0, 300)),
    st.sampled_from(
        [
            np.int64(3),
            np.float32(2),
            np.zeros((4, 8), np.float32),
            np.zeros(0, np.float16),
            np.zeros((2, 16), dtype=object),
            np.zeros(4, dtype=[("a", "u1"), ("b", "f8")]),
            np.zeros((16, 16), np.uint8)[:, ::-1],
            np.broadcast_to(np.zeros(1), (8, 8)),
            torch.zeros(8, 16, dtype=torch.bfloat16),
            torch.zeros(4, device="meta"),
            torch.zeros(3, 3).to_sparse(),
            torch.zeros(1, 1, 1, 1, 1, 1, 1),
            torch.quantize_per_tensor(torch.zeros(4), 1.0, 0, torch.quint8),
            object(),
            int,
            {"a": 1},
            float("nan"),
            Trace(1, 0, "late", ()),
            Trace(-1, 0, "never", ((),)),
            Trace(1, 0, "late", (None,)),  # type: ignore[arg-type]
        ]
    ),
)


@functools.cache
def a_launch() -> Launch:
    args = {"x": np.zeros(64, np.uint32), "n": np.uint32(3), "f": 1.5}
    body = "add.u32 r1, n, 1; st.global.u32 [x], r1;"
    kernel = Module.from_ptx(ptx_program(body, args))["kernel"]
    return Launch(kernel, (2,), (32,), list(args.values()))


def make_launch(**changes: Any) -> None:
    launch = a_launch()
    base = {"kernel": launch.kernel, "grid": (1,), "block": (32,), "args": launch.args}
    made = Launch(**{**base, **changes})
    if np.prod(made.grid) <= 64:
        Emulator(max_warp_instructions=10_000).launch_concurrent([made])


def make_emulator(**changes: Any) -> None:
    Emulator(**{"max_warp_instructions": 10_000, **changes}).launch_concurrent([a_launch()])


def make_tensor_map(**changes: Any) -> None:
    base = {"tensor": np.zeros((16, 32), np.float32), "box": (4, 8)}
    TensorMap.encode_tiled(**{**base, **changes})


def make_exploration(**changes: Any) -> None:
    seeds = changes.get("seeds", 1)
    if isinstance(seeds, int) and seeds > 40:
        changes["seeds"] = 40
    base: dict[str, Any] = {"launch": a_launch(), "seeds": 1, "progress": False}
    explore(**{**base, "max_warp_instructions": 10_000, **changes})


def make_list(**changes: Any) -> None:
    Emulator().launch_concurrent(**{"launches": [a_launch()], **changes})


def make_arguments(**changes: Any) -> None:
    launch = a_launch()
    args = dict(zip(("x", "n", "f"), launch.args, strict=True))
    args.update({name: value for name, value in changes.items() if name in args})
    made = Launch(launch.kernel, 1, 32, list(args.values()))
    Emulator(max_warp_instructions=10_000).launch_concurrent([made])


def make_module(**changes: Any) -> None:
    Module.from_ptx(**{"text": HEADER, **changes})


def read_trace(**changes: Any) -> None:
    Trace.from_json(**{"text": "{}", **changes})


CALLS: dict[Callable[..., None], tuple[str, ...]] = {
    make_launch: (
        *("kernel", "grid", "block", "args", "cluster", "dynamic_smem_bytes"),
        *("programmatic_dependent", "registers"),
    ),
    make_emulator: (
        *("num_sms", "seed", "async_completion", "checks", "max_warp_instructions", "schedule"),
        *("num_change_points", "expected_steps", "record_trace", "trace", "num_threads"),
    ),
    make_tensor_map: (
        *("tensor", "box", "swizzle", "interleave", "element_strides", "l2_promotion", "fill"),
        "type",
    ),
    make_exploration: (
        *("launch", "seeds", "schedules", "num_sms", "checks", "num_change_points", "arrays"),
        *("max_warp_instructions", "same_bits", "serial", "stop_at_first", "max_reduction_runs"),
    ),
    make_list: ("launches",),
    make_arguments: ("x", "n", "f"),
    make_module: ("text",),
    read_trace: ("text",),
}


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_arguments_of_no_use(call: Callable[..., None]) -> None:
    names = CALLS[call]

    @bounded
    @given(st.dictionaries(st.sampled_from(names), junk, min_size=1, max_size=2))
    def check(changes: dict[str, Any]) -> None:
        try:
            call(**changes)
        except EmulationError:
            pass
        except (ValueError, TypeError) as error:
            if not isinstance(error, PtxError) and not names_an_argument(str(error), names):
                raise AssertionError(f"{changes}: {error}") from error

    check()


def names_an_argument(message: str, names: Sequence[str]) -> bool:
    """One of these, of those behind them, or one of the kernel's parameters.

    Not by a signature of the extension, which names all: those errors are no words to a user.
    """
    if "incompatible" in message:
        return False
    known = (*names, "trace", "num_sms", "seed", "async_completion", "_param", "args", "arguments")
    return any(name in message for name in known)
