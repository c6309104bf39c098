"""WGMMA: every form, layout and scale; groups and waits in every completion mode; wrong use."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from pykernels.emulator import EmulationError, PtxError
from tests.emulator.isa.wgmma_program import (
    COMMIT_AND_WAIT,
    SHARED_BYTES,
    Operands,
    Placement,
    Program,
    a_fragments,
    from_fragments,
    k_major,
    mn_major,
    run,
    to_fragments,
)

B_START = 32 * 1024
COMPLETIONS = ("early", "late", "random")


@dataclass(frozen=True)
class Element:
    """An operand type: how values become bytes, and k of one instruction."""

    dtype: npt.DTypeLike
    k: int

    @property
    def bytes(self) -> int:
        return np.dtype(self.dtype).itemsize

    def draw(self, rng: np.random.Generator, rows: int, k: int) -> npt.NDArray[np.float64]:
        """Small integers, whose products and sums are exact in every model."""
        low = 0 if np.dtype(self.dtype) == np.uint8 else -6
        return rng.integers(low, 7, (rows, k)).astype(np.float64)

    def encode(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
        return np.ascontiguousarray(values.astype(self.dtype)).view(np.uint8)


ELEMENTS = {
    "e4m3": Element(ml_dtypes.float8_e4m3fn, 32),
    "e5m2": Element(ml_dtypes.float8_e5m2, 32),
    "f16": Element(np.float16, 16),
    "bf16": Element(ml_dtypes.bfloat16, 16),
    "tf32": Element(np.float32, 8),
    "s8": Element(np.int8, 32),
    "u8": Element(np.uint8, 32),
}


def opcode(n: int, d: str, a: str, b: str) -> str:
    return f"wgmma.mma_async.sync.aligned.m64n{n}k{ELEMENTS[a].k}.{d}.{a}.{b}"


@dataclass
class Case:
    """One product with its operands, program and expected result [64, n] as float64."""

    n: int
    d_type: str
    a_type: str
    b_type: str
    a_placement: Placement
    b_placement: Placement
    from_registers: bool = False
    scale_a: int = 1
    scale_b: int = 1
    scale_d: str = "%p1"
    seed: int = 0

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        k = ELEMENTS[self.a_type].k
        self.a = ELEMENTS[self.a_type].draw(rng, 64, k)
        self.b = ELEMENTS[self.b_type].draw(rng, self.n, k)
        self.d = rng.integers(-100, 100, (64, self.n)).astype(np.float64)

    @property
    def statement(self) -> str:
        a = "{a}" if self.from_registers else "%rd1"
        text = f"{opcode(self.n, self.d_type, self.a_type, self.b_type)} {{d}}, {a}, %rd2"
        text += f", {self.scale_d}"
        if self.d_type != "s32":
            text += f", {self.scale_a}, {self.scale_b}"
        if self.a_type in ("f16", "bf16"):
            if not self.from_registers:
                text += f", {int(self.a_placement.mn_major)}"
            text += f", {int(self.b_placement.mn_major)}"
        return text + ";"

    @property
    def program(self) -> Program:
        registers = self.n // (4 if self.d_type == "f16" else 2)
        return Program(f"{self.statement}\n{COMMIT_AND_WAIT}", registers)

    def operands(self, scale_d: bool = True) -> Operands:
        if self.d_type == "f16":
            pairs = self.d.astype(np.float16).view(np.uint16).astype(np.uint32)
            low, high = to_fragments(pairs)[:, 0::2], to_fragments(pairs)[:, 1::2]
            d = np.ascontiguousarray(high << 16 | low)
        else:
            dtype = np.int32 if self.d_type == "s32" else np.float32
            d = to_fragments(self.d.astype(dtype).view(np.uint32))
        element = ELEMENTS[self.a_type]
        return Operands(
            element.encode(self.a), ELEMENTS[self.b_type].encode(self.b), d, element.bytes,
            self.a_placement, self.b_placement, scale_d,
        )  # fmt: skip

    def values(self, fragments: npt.NDArray[np.uint32]) -> npt.NDArray[np.float64]:
        if self.d_type == "f16":
            halves = np.empty((128, fragments.shape[1] * 2), np.uint32)
            halves[:, 0::2], halves[:, 1::2] = fragments & 0xFFFF, fragments >> 16
            packed = from_fragments(halves).astype(np.uint16)
            return packed.view(np.float16).astype(np.float64)
        dtype = np.int32 if self.d_type == "s32" else np.float32
        return from_fragments(fragments).view(dtype).astype(np.float64)

    def expected(self, scale_d: bool = True) -> npt.NDArray[np.float64]:
        product = self.scale_a * self.scale_b * (self.a @ self.b.T)
        return product + (self.d if scale_d else 0.0)


def check(case: Case, completion: str = "late", scale_d: bool = True) -> None:
    result, report = run(case.program, case.operands(scale_d), async_completion=completion)
    report.raise_if_findings()
    np.testing.assert_array_equal(case.values(result), case.expected(scale_d))
    assert report.counters.wgmma == 1
    assert report.counters.tensor_multiply_adds == 64 * case.n * ELEMENTS[case.a_type].k


def dense(n: int, d: str, a: str, b: str, swizzle: str = "128B", **options: object) -> Case:
    """Both operands K-major with the same swizzle."""
    placements = k_major(0, swizzle, 64), k_major(B_START, swizzle, n)
    return Case(n, d, a, b, *placements, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("n", range(8, 257, 8))
def test_every_width(n: int) -> None:
    check(dense(n, "f32", "e4m3", "e4m3"))


@pytest.mark.parametrize("swizzle", ["none", "32B", "64B", "128B"])
@pytest.mark.parametrize(
    "types",
    [
        ("f32", "e4m3", "e4m3"), ("f32", "e5m2", "e4m3"), ("f32", "e4m3", "e5m2"),
        ("f32", "e5m2", "e5m2"), ("f16", "e4m3", "e5m2"), ("f32", "f16", "f16"),
        ("f16", "f16", "f16"), ("f32", "bf16", "bf16"), ("f32", "tf32", "tf32"),
        ("s32", "s8", "s8"), ("s32", "u8", "s8"), ("s32", "s8", "u8"), ("s32", "u8", "u8"),
    ],
    ids="_".join,
)  # fmt: skip
def test_types_and_swizzles(types: tuple[str, str, str], swizzle: str) -> None:
    check(dense(48, *types, swizzle=swizzle))


@pytest.mark.parametrize("swizzle", ["none", "32B", "64B", "128B"])
@pytest.mark.parametrize("majors", ["k_mn", "mn_k", "mn_mn"])
@pytest.mark.parametrize("element", ["f16", "bf16"])
def test_mn_major(element: str, majors: str, swizzle: str) -> None:
    a_major, b_major = (mn_major if name == "mn" else k_major for name in majors.split("_"))
    check(Case(96, "f32", element, element, a_major(0, swizzle, 64), b_major(B_START, swizzle, 96)))


@pytest.mark.parametrize("swizzles", [("none", "128B"), ("32B", "64B"), ("128B", "none")])
def test_operands_of_different_swizzle(swizzles: tuple[str, str]) -> None:
    a, b = k_major(0, swizzles[0], 64), k_major(B_START, swizzles[1], 40)
    check(Case(40, "f32", "e4m3", "e4m3", a, b))


@pytest.mark.parametrize("swizzle", ["32B", "64B", "128B"])
@pytest.mark.parametrize("step", range(4))
def test_k_steps_inside_a_swizzled_row(step: int, swizzle: str) -> None:
    """A start address inside the row of a pattern, as a kernel steps through k."""
    if 32 * step >= {"32B": 32, "64B": 64, "128B": 128}[swizzle]:
        step = 0
    stride = {"32B": 256, "64B": 512, "128B": 1024}[swizzle]
    a = Placement(32 * step, swizzle, 16, stride)
    b = Placement(B_START + 32 * step, swizzle, 16, stride)
    check(Case(64, "f32", "e4m3", "e4m3", a, b, seed=step))


@pytest.mark.parametrize("strides", [(2048, 4096), (1024, 3072)])
def test_strides_between_groups_of_rows(strides: tuple[int, int]) -> None:
    a = Placement(1024, "128B", 16, strides[0])
    b = Placement(B_START, "128B", 16, strides[1])
    check(Case(56, "f32", "bf16", "bf16", a, b))


@pytest.mark.parametrize("element", ["e4m3", "f16", "bf16", "tf32", "s8"])
def test_a_from_registers(element: str) -> None:
    d = "s32" if element == "s8" else "f32"
    check(dense(32, d, element, element, from_registers=True))


def test_a_from_registers_with_mn_major_b() -> None:
    b = mn_major(B_START, "128B", 64)
    check(Case(64, "f32", "bf16", "bf16", k_major(0, "128B", 64), b, from_registers=True))


@pytest.mark.parametrize("scales", [(1, -1), (-1, 1), (-1, -1)])
@pytest.mark.parametrize("element", ["e4m3", "f16", "tf32"])
def test_negated_operands(element: str, scales: tuple[int, int]) -> None:
    check(dense(16, "f32", element, element, scale_a=scales[0], scale_b=scales[1]))


@pytest.mark.parametrize("completion", COMPLETIONS)
def test_scale_d(completion: str) -> None:
    case = dense(24, "f32", "e4m3", "e4m3")
    check(case, completion, scale_d=True)
    check(case, completion, scale_d=False)
    case.scale_d = "!%p1"
    result, _ = run(case.program, case.operands(True), async_completion=completion)
    np.testing.assert_array_equal(case.values(result), case.expected(False))
    for literal, keeps in (("0", False), ("1", True), ("-1", True)):
        case.scale_d = literal
        result, _ = run(case.program, case.operands(), async_completion=completion)
        np.testing.assert_array_equal(case.values(result), case.expected(keeps))


# ---- groups and waits ----


@pytest.mark.parametrize("completion", COMPLETIONS)
def test_operations_on_the_same_accumulators_chain(completion: str) -> None:
    case = dense(32, "f32", "e4m3", "e4m3")
    program = Program(f"{case.statement}\n" * 3 + COMMIT_AND_WAIT, case.n // 2)
    result, report = run(program, case.operands(), async_completion=completion)
    report.raise_if_findings()
    np.testing.assert_array_equal(case.values(result), case.d + 3 * case.a @ case.b.T)
    assert report.counters.wgmma == 3


def second_accumulators(n: int, wait: str) -> Program:
    """Two operations on accumulators d and e; e is stored in place of d."""
    num = n // 2
    statement = f"{opcode(n, 'f32', 'e4m3', 'e4m3')} {{list}}, %rd1, %rd2, %p1, 1, 1;"
    e = "{{" + ", ".join(f"%e{i}" for i in range(num)) + "}}"
    body = "\n".join([
        statement.format(list="{d}"), "wgmma.commit_group.sync.aligned;",
        statement.format(list=e), "wgmma.commit_group.sync.aligned;", wait,
    ])  # fmt: skip
    return Program(
        body, num, tail="wgmma.wait_group.sync.aligned 0;",
        declarations=f".reg .b32 %e<{num}>;",
        setup="\n".join(f"mov.b32 %e{i}, %d{i};" for i in range(num)),
    )  # fmt: skip


@pytest.mark.parametrize("completion", COMPLETIONS)
def test_wait_leaves_the_newest_groups_pending(completion: str) -> None:
    """After wait_group 1 the first accumulators are complete, in every mode."""
    case = dense(32, "f32", "e4m3", "e4m3")
    program = second_accumulators(32, "wgmma.wait_group.sync.aligned 1;")
    result, report = run(program, case.operands(), async_completion=completion)
    report.raise_if_findings()
    np.testing.assert_array_equal(case.values(result), case.expected())


@pytest.mark.parametrize("missing", ["wait", "commit", "both"])
def test_accumulators_are_poisoned_until_the_wait(missing: str) -> None:
    case = dense(16, "f32", "e4m3", "e4m3")
    tail = {
        "wait": "wgmma.commit_group.sync.aligned;",
        "commit": "wgmma.wait_group.sync.aligned 0;",
        "both": "",
    }[missing]
    program = Program(f"{case.statement}\n{tail}", case.n // 2)
    result, _ = run(program, case.operands(), async_completion="late")
    assert np.isnan(case.values(result)).all()


def test_operands_are_read_at_completion() -> None:
    """Shared memory overwritten before the wait: the late mode multiplies the new values."""
    case = dense(16, "f32", "e4m3", "e4m3")
    zeros = "{{%r10, %r10, %r10, %r10}}"
    stores = [f"st.shared.v4.b32 [%r11+{i * 2048}], {zeros};" for i in range(4)]
    overwrite = "\n".join([
        "bar.sync 0;", "mov.u32 %r10, 0;", "shl.b32 %r11, %r0, 4;", "add.s32 %r11, %r11, %r1;",
        *stores, "bar.sync 0;",
    ])  # fmt: skip
    body = f"{case.statement}\nwgmma.commit_group.sync.aligned;\n{overwrite}\n"
    program = Program(body + "wgmma.wait_group.sync.aligned 0;", case.n // 2)
    late, _ = run(program, case.operands(), async_completion="late")
    np.testing.assert_array_equal(case.values(late), case.d)
    early, _ = run(program, case.operands(), async_completion="early")
    np.testing.assert_array_equal(case.values(early), case.expected())


def test_fragments_of_a_are_read_at_issue() -> None:
    case = dense(16, "f32", "e4m3", "e4m3", from_registers=True)
    clear = "\n".join(f"mov.b32 %a{i}, 0;" for i in range(4))
    body = f"{case.statement}\nwgmma.commit_group.sync.aligned;\n{clear}\n"
    program = Program(body + "wgmma.wait_group.sync.aligned 0;", case.n // 2)
    result, _ = run(program, case.operands(), async_completion="late")
    np.testing.assert_array_equal(case.values(result), case.expected())


# ---- wrong use ----


def kinds(report: object) -> set[str]:
    return {finding.kind for finding in report.findings}  # type: ignore[attr-defined]


@pytest.mark.parametrize(("start", "base_offset"), [(0, 0), (32, 0), (256, 0), (256, 2)])
def test_a_start_inside_the_swizzle_pattern_is_noted(start: int, base_offset: int) -> None:
    """Steps along k stay within the first row; steps of rows need the base offset to be sure."""
    case = dense(16, "f32", "e4m3", "e4m3")
    operands = case.operands()
    operands.a_placement = k_major(0, "128B", 64)
    descriptor = operands.a_placement.descriptor | start >> 4 | base_offset << 49
    body = f"mov.b64 %rd1, {descriptor}; or.b64 %rd1, %rd1, %rd13;\n{case.statement}"
    _, report = run(Program(f"{body}\n{COMMIT_AND_WAIT}", case.n // 2), operands)
    report.raise_if_findings()
    names = {note.split(":")[0].split()[-1] for note in report.notes}
    assert ("descriptor_inside_pattern" in names) == (start == 256 and base_offset == 0)
    assert ("descriptor_base_offset" in names) == (base_offset != 0)


def test_missing_fence_is_a_finding() -> None:
    case = dense(16, "f32", "e4m3", "e4m3")
    program = Program(f"{case.statement}\n{COMMIT_AND_WAIT}", case.n // 2, prologue="")
    _, report = run(program, case.operands())
    assert kinds(report) == {"sync"}
    assert "wgmma.fence" in report.findings[0].message


def test_no_fence_is_needed_while_the_registers_are_untouched() -> None:
    case = dense(16, "f32", "e4m3", "e4m3")
    body = f"{case.statement}\n{COMMIT_AND_WAIT}\n" * 2
    result, report = run(Program(body, case.n // 2), case.operands())
    report.raise_if_findings()
    np.testing.assert_array_equal(case.values(result), case.d + 2 * case.a @ case.b.T)


def test_registers_changed_without_a_fence_are_a_finding() -> None:
    case = dense(16, "f32", "e4m3", "e4m3")
    body = f"{case.statement}\n{COMMIT_AND_WAIT}\n"
    program = Program(body + "mov.b32 %d3, 0;\n" + body, case.n // 2)
    _, report = run(program, case.operands())
    assert kinds(report) == {"sync"}


def test_descriptor_beyond_shared_memory_ends_the_launch() -> None:
    case = dense(16, "f32", "e4m3", "e4m3")
    beyond = (SHARED_BYTES - B_START) >> 4
    program = Program(case.program.body, case.n // 2, setup=f"add.s64 %rd2, %rd2, {beyond};")
    with pytest.raises(EmulationError, match="shared address") as error:
        run(program, case.operands())
    assert kinds(error.value.report) == {"memory"}


def test_warps_with_different_descriptors_are_a_finding() -> None:
    case = dense(16, "f32", "e4m3", "e4m3")
    setup = """
      setp.lt.u32 %p2, %r0, 32;
      @%p2 add.s64 %rd2, %rd2, 2;
    """
    program = Program(f"{case.statement}\n{COMMIT_AND_WAIT}", case.n // 2, setup=setup)
    _, report = run(program, case.operands())
    assert "sync" in kinds(report)
    assert any("different descriptors" in finding.message for finding in report.findings)


def test_a_warp_that_never_issues_is_a_deadlock() -> None:
    case = dense(16, "f32", "e4m3", "e4m3")
    body = f"""
      setp.lt.u32 %p2, %r0, 32;
      @%p2 bra SKIP;
      {case.statement}
      {COMMIT_AND_WAIT}
    SKIP:
    """
    with pytest.raises(EmulationError, match="have not issued the same WGMMA"):
        run(Program(body, case.n // 2), case.operands())


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("m64n12k32.f32.e4m3.e4m3 {d}, %rd1, %rd2, %p1, 1, 1", "shape"),
        ("m64n16k16.f32.e4m3.e4m3 {d}, %rd1, %rd2, %p1, 1, 1", "shape"),
        ("m64n16k32.f32.e4m3.bf16 {d}, %rd1, %rd2, %p1, 1, 1", "form"),
        ("m64n16k32.f32.e4m3.e4m3 {d}, %rd1, %rd2, %p1, 1", "operands"),
        ("m64n16k32.f32.e4m3.e4m3 {d}, %rd1, %rd2, %p1, 2, 1", "must be"),
        ("m64n32k32.f32.e4m3.e4m3 {d}, %rd1, %rd2, %p1, 1, 1", "must list"),
        ("sp.m64n16k64.f32.e4m3.e4m3 {d}, %rd1, %rd2, %p1, 1, 1", "sp"),
    ],
)
def test_unknown_forms_are_errors_at_load(statement: str, message: str) -> None:
    case = dense(16, "f32", "e4m3", "e4m3")
    program = Program(f"wgmma.mma_async.sync.aligned.{statement};", 8)
    with pytest.raises(PtxError, match=message):
        run(program, case.operands())


def test_wait_group_of_more_than_seven_is_an_error_at_load() -> None:
    case = dense(16, "f32", "e4m3", "e4m3")
    with pytest.raises(PtxError, match="groups"):
        run(Program("wgmma.wait_group.sync.aligned 9;", 8), case.operands())


def test_a_fragment_positions() -> None:
    """The ISA's picture: thread 5 of warp 1 holds row 17 and row 25, bytes 4..7 and 20..23."""
    a = np.arange(64 * 32, dtype=np.uint32).astype(np.uint8).reshape(64, 32)
    words = a_fragments(a)[32 + 5].view(np.uint8).reshape(4, 4)
    for register, (row, byte) in enumerate([(17, 4), (25, 4), (17, 20), (25, 20)]):
        np.testing.assert_array_equal(words[register], a[row, byte : byte + 4])
