"""Builds and runs PTX programs around one WGMMA form: operands placed in shared memory by hand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pykernels.emulator import Emulator, Module, Report

SWIZZLES = {"none": 0, "128B": 1, "64B": 2, "32B": 3}  # name -> code in the descriptor
CHUNKS = {"none": 1, "32B": 2, "64B": 4, "128B": 8}  # 16-byte chunks that the pattern permutes
SHARED_BYTES = 96 * 1024

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Placement:
    """One operand in shared memory: offset from the 1024-aligned start, swizzle, byte offsets."""

    start: int
    swizzle: str
    leading_bytes: int
    stride_bytes: int
    mn_major: bool = False

    @property
    def descriptor(self) -> int:
        """The matrix descriptor without the start address."""
        fields = self.leading_bytes >> 4 << 16 | self.stride_bytes >> 4 << 32
        return fields | SWIZZLES[self.swizzle] << 62

    def address(self, row: int, k_byte: int, element_bytes: int) -> int:
        """Offset of one element, by the canonical layouts that the PTX ISA draws."""
        width = 16 * CHUNKS[self.swizzle]
        if self.mn_major:
            per_chunk = 16 // element_bytes
            k = k_byte // element_bytes
            chunk, inner = divmod(row, per_chunk)
            pattern, chunk = divmod(chunk, CHUNKS[self.swizzle])
            offset = chunk * 16 + inner * element_bytes + k % 8 * width
            if self.swizzle == "none":
                offset += pattern * self.stride_bytes + k // 8 * self.leading_bytes
            else:
                offset += pattern * self.leading_bytes + k // 8 * self.stride_bytes
        elif self.swizzle == "none":
            offset = row % 8 * 16 + row // 8 * self.stride_bytes
            offset += k_byte // 16 * self.leading_bytes + k_byte % 16
        else:
            offset = row % 8 * width + row // 8 * self.stride_bytes + k_byte
        address = self.start + offset
        return address ^ (address >> 7 & (CHUNKS[self.swizzle] - 1)) << 4

    def write(self, image: Bytes, rows: Bytes, element_bytes: int) -> None:
        """Puts the operand, given as k-contiguous rows of bytes, into the image."""
        for row, values in enumerate(rows):
            for k_byte in range(0, len(values), element_bytes):
                at = self.address(row, k_byte, element_bytes)
                image[at : at + element_bytes] = values[k_byte : k_byte + element_bytes]


def k_major(start: int, swizzle: str, rows: int) -> Placement:
    """Groups of 8 rows after one another; without a swizzle, one column of them per k chunk."""
    if swizzle == "none":
        return Placement(start, swizzle, leading_bytes=rows * 16, stride_bytes=128)
    return Placement(start, swizzle, leading_bytes=16, stride_bytes=128 * CHUNKS[swizzle])


def mn_major(start: int, swizzle: str, rows: int) -> Placement:
    """Patterns of 8 k along the rows, then the next 8 k."""
    width = 16 * CHUNKS[swizzle]
    pattern_bytes = 8 * width
    num_patterns = -(-rows * 2 // width)
    if swizzle == "none":
        return Placement(start, swizzle, num_patterns * 128, 128, mn_major=True)
    return Placement(start, swizzle, pattern_bytes, num_patterns * pattern_bytes, mn_major=True)


@dataclass(frozen=True)
class Program:
    """A kernel of one warpgroup that loads operands and accumulators, and runs `body`.

    In `body`, {d} is the accumulator list, {a} the register list of A, %rd1 and %rd2 are the
    descriptors, and %p1 is scale-d.
    """

    body: str
    num_accumulators: int
    prologue: str = "wgmma.fence.sync.aligned;"
    tail: str = ""  # after the accumulators are stored
    setup: str = ""
    declarations: str = ""

    @property
    def text(self) -> str:
        d = ", ".join(f"%d{i}" for i in range(self.num_accumulators))
        a = ", ".join(f"%a{i}" for i in range(4))
        return TEMPLATE.format(
            num_accumulators=self.num_accumulators,
            loads="\n".join(
                f"ld.global.b32 %d{i}, [%rd10+{i * 4}];" for i in range(self.num_accumulators)
            ),
            stores="\n".join(
                f"st.global.b32 [%rd11+{i * 4}], %d{i};" for i in range(self.num_accumulators)
            ),
            row_bytes=self.num_accumulators * 4,
            setup=self.setup,
            declarations=self.declarations,
            prologue=self.prologue,
            body=self.body.format(d="{" + d + "}", a="{" + a + "}"),
            tail=self.tail,
        )


TEMPLATE = """
.version 8.0
.target sm_90a
.address_size 64
.extern .shared .align 1024 .b8 memory[];

.visible .entry program(
  .param .u64 image, .param .u64 accumulators, .param .u64 result, .param .u64 fragments,
  .param .u32 image_bytes, .param .u64 a_descriptor, .param .u64 b_descriptor,
  .param .u32 a_start, .param .u32 b_start, .param .u32 scale_d)
{{
  .reg .pred %p<4>;
  .reg .b32 %r<16>;
  .reg .b64 %rd<16>;
  .reg .b32 %d<{num_accumulators}>;
  .reg .b32 %a<4>;
  {declarations}
  mov.u32 %r0, %tid.x;
  mov.u32 %r1, memory;
  ld.param.u64 %rd3, [image];
  ld.param.u32 %r2, [image_bytes];
  shl.b32 %r3, %r0, 2;
COPY:
  cvt.u64.u32 %rd4, %r3;
  add.s64 %rd5, %rd3, %rd4;
  ld.global.b32 %r4, [%rd5];
  add.s32 %r5, %r1, %r3;
  st.shared.b32 [%r5], %r4;
  add.s32 %r3, %r3, 512;
  setp.lt.u32 %p0, %r3, %r2;
  @%p0 bra COPY;
  fence.proxy.async.shared::cta;
  bar.sync 0;

  mul.lo.s32 %r6, %r0, {row_bytes};
  cvt.u64.u32 %rd6, %r6;
  ld.param.u64 %rd7, [accumulators];
  add.s64 %rd10, %rd7, %rd6;
  ld.param.u64 %rd8, [result];
  add.s64 %rd11, %rd8, %rd6;
  ld.param.u64 %rd9, [fragments];
  mul.wide.u32 %rd12, %r0, 16;
  add.s64 %rd12, %rd9, %rd12;
  ld.global.v4.b32 {{%a0, %a1, %a2, %a3}}, [%rd12];
  {loads}

  ld.param.u32 %r7, [a_start];
  ld.param.u32 %r8, [b_start];
  add.s32 %r7, %r7, %r1;
  add.s32 %r8, %r8, %r1;
  and.b32 %r7, %r7, 262143;
  and.b32 %r8, %r8, 262143;
  shr.u32 %r7, %r7, 4;
  shr.u32 %r8, %r8, 4;
  cvt.u64.u32 %rd13, %r7;
  cvt.u64.u32 %rd14, %r8;
  ld.param.u64 %rd1, [a_descriptor];
  ld.param.u64 %rd2, [b_descriptor];
  or.b64 %rd1, %rd1, %rd13;
  or.b64 %rd2, %rd2, %rd14;
  ld.param.u32 %r9, [scale_d];
  setp.ne.u32 %p1, %r9, 0;
  {setup}

  {prologue}
  {body}
  {stores}
  {tail}
  ret;
}}
"""

COMMIT_AND_WAIT = "wgmma.commit_group.sync.aligned;\n  wgmma.wait_group.sync.aligned 0;"


def accumulator_position(thread: int, register: int) -> tuple[int, int]:
    """Row and column of an FP32 or S32 accumulator (PTX ISA, fragments of matrix D)."""
    warp, lane = divmod(thread, 32)
    row = 16 * warp + register // 2 % 2 * 8 + lane // 4
    return row, register // 4 * 8 + lane % 4 * 2 + register % 2


def to_fragments(d: Words) -> Words:
    """[64, n] row-major to [128 threads, n / 2 registers]."""
    n = d.shape[1]
    fragments = np.empty((128, n // 2), np.uint32)
    for thread in range(128):
        for register in range(n // 2):
            fragments[thread, register] = d[accumulator_position(thread, register)]
    return fragments


def from_fragments(fragments: Words) -> Words:
    d = np.empty((64, fragments.shape[1] * 2), np.uint32)
    for thread in range(128):
        for register in range(fragments.shape[1]):
            d[accumulator_position(thread, register)] = fragments[thread, register]
    return d


def a_fragments(a: Bytes) -> Words:
    """[64, 32 bytes] to the 4 registers of each thread (PTX ISA, fragments of matrix A)."""
    words = np.ascontiguousarray(a).view(np.uint32)  # [64, 8]
    fragments = np.empty((128, 4), np.uint32)
    for thread in range(128):
        warp, lane = divmod(thread, 32)
        for register in range(4):
            row = 16 * warp + lane // 4 + register % 2 * 8
            fragments[thread, register] = words[row, lane % 4 + register // 2 * 4]
    return fragments


@dataclass
class Operands:
    """What a program works on; a and b as k-contiguous rows of bytes."""

    a: Bytes
    b: Bytes
    d: Words  # accumulators by thread and register
    element_bytes: int
    a_placement: Placement
    b_placement: Placement
    scale_d: bool = True

    def image(self) -> Bytes:
        image = np.zeros(SHARED_BYTES, np.uint8)
        self.a_placement.write(image, self.a, self.element_bytes)
        self.b_placement.write(image, self.b, self.element_bytes)
        return image


def run(program: Program, operands: Operands, **options: object) -> tuple[Words, Report]:
    """The accumulators by thread and register after the program, and the report."""
    kernel = Module.from_ptx(program.text)["program"]
    result = np.full_like(operands.d, 0xDEADBEEF)
    fragments = a_fragments(operands.a[:, :32])
    arguments = [
        operands.image(), operands.d, result, fragments, SHARED_BYTES,
        operands.a_placement.descriptor, operands.b_placement.descriptor,
        operands.a_placement.start, operands.b_placement.start, int(operands.scale_d),
    ]  # fmt: skip
    report = Emulator(**options).launch(  # type: ignore[arg-type]
        kernel, (1, 1, 1), (128, 1, 1), arguments, dynamic_smem_bytes=SHARED_BYTES
    )
    return result, report
