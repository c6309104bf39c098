"""Any text and any arguments give the documented errors: no crash, no hang, no other exception.

``BAD_INPUT_CASES`` is the number of cases of each property; ``test_sanitized.py`` raises it.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pykernels
from pykernels.checks import shown
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


def replace_data(tensor: torch.Tensor) -> None:
    tensor.data = torch.zeros(2)


def free_storage(tensor: torch.Tensor) -> None:
    tensor.untyped_storage().resize_(0)


def grow(tensor: torch.Tensor) -> None:
    tensor.resize_(64, 64)


def shrink(tensor: torch.Tensor) -> None:
    tensor.resize_(2, 2)


MEMORY_CHANGES = (replace_data, free_storage, grow, shrink)


def stale_tensor(change: Callable[[torch.Tensor], None]) -> torch.Tensor:
    tensor = torch.zeros(16, 16)
    change(tensor)
    return tensor


def stale_map(change: Callable[[torch.Tensor], None]) -> TensorMap:
    tensor = torch.zeros(16, 16)
    tensor_map = TensorMap.encode_tiled(tensor, box=(8, 8))
    change(tensor)
    return tensor_map


# Made anew for each case: what a kernel has done to memory shows when the memory is freed.
fresh_junk = st.one_of(
    st.builds(lambda: np.array([object(), object()])),
    st.builds(lambda: np.zeros(2, dtype=[("a", "O"), ("b", "i8")])),
    st.builds(lambda: np.zeros((4, 8), ">f4")),
    st.builds(lambda: np.zeros(3, "V0")),
    st.builds(iter, st.lists(st.integers(-1, 40), max_size=4)),
    st.builds(lambda: iter([("random", "late"), ("priority", "early")])),
    st.builds(lambda: iter(["race", "sync"])),
    st.builds(stale_tensor, st.sampled_from(MEMORY_CHANGES)),
    st.builds(stale_map, st.sampled_from(MEMORY_CHANGES)),
    st.builds(lambda: TensorMap.encode_tiled(torch.zeros(16, 16), box=(8, 8))),
)

junk = st.one_of(
    fresh_junk,
    st.text(st.characters(categories=["Cs"]), min_size=1, max_size=3),  # no UTF-8 has them
    st.builds(lambda: 10**5000),  # more digits than Python prints
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
            Trace(1, 0, "late", None),  # type: ignore[arg-type]
            Trace(1, 0, "\udc00", ()),
            ["race", "\udc00"],
            np.array(3),
            lambda: None,
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


def make_registration(**changes: Any) -> None:
    emulator = Emulator(max_warp_instructions=10_000)
    emulator.register(**{"tensor": torch.zeros(4), **changes})
    emulator.launch_concurrent([a_launch()])


@functools.cache
def a_batch() -> torch.Tensor:
    return torch.zeros(1, 128, dtype=torch.bfloat16)


def make_emulation(**changes: Any) -> None:
    with pykernels.emulate(**{"max_warp_instructions": 10_000, **changes}):
        pykernels.quantize_1x128(a_batch())


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
    make_registration: ("tensor",),
    make_emulation: (
        *("num_sms", "seed", "async_completion", "checks", "max_warp_instructions", "schedule"),
        *("num_change_points", "expected_steps", "record_trace", "trace", "num_threads", "foo"),
    ),
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
                raise AssertionError(f"{shown(changes, 2000)}: {error}") from error

    check()


def names_an_argument(message: str, names: Sequence[str]) -> bool:
    """One of these, of those behind them, or one of the kernel's parameters.

    Not by a signature of the extension, which names all: those errors are no words to a user.
    """
    if any(words in message for words in ("incompatible", "Unable to cast", "not iterable")):
        return False
    others = ("trace", "num_sms", "seed", "async_completion", "args", "arguments", r"\w+_param")
    known = [*(name for name in names if len(name) > 1), *others]
    return re.search(rf"\b({'|'.join(known)})\b", message) is not None


# ---- memory that changes ----


@bounded
@given(st.lists(st.sampled_from(["launch", "launch", *MEMORY_CHANGES]), max_size=6))
def test_memory_that_changes_between_launches(actions: list[Any]) -> None:
    tensor = torch.zeros(16, 16)
    args = {"x": tensor, "map": tensor, "pointer": tensor.data_ptr()}
    body = "ld.global.u32 r1, [x]; ld.global.u32 r1, [pointer];"
    kernel = Module.from_ptx(ptx_program(body, {**args, "pointer": np.uint64(0)}))["kernel"]
    tensor_map = TensorMap.encode_tiled(tensor, box=(8, 8))
    launch = Launch(kernel, 1, 1, [tensor, tensor_map, args["pointer"]])
    emulator = Emulator()
    emulator.register(tensor)
    refusals = []
    for action in [*actions, "launch"]:
        if action != "launch":
            action(tensor)
            continue
        try:
            emulator.launch_concurrent([launch]).raise_if_findings()
        except ValueError as error:
            refusals.append(str(error))
    changed = any(action != "launch" for action in actions)
    assert bool(refusals) == changed
    named = "(registered tensor 0|x_param|map_param) must lie "
    assert all(re.match(named, refusal) for refusal in refusals)
