"""The emulator's public surface: modules, arguments, launches, reports, errors."""

from __future__ import annotations

import pickle
import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import pykernels.emulator as public
from pykernels.emulator import (
    Counters,
    EmulationError,
    Emulator,
    Launch,
    Module,
    PtxError,
    TensorMap,
    gpu_facts,
)
from tests.emulator.ptx_program import ptx_program, run_ptx

_COPY = """
    mad.wide.u32 rd1, tid, 4, source;
    mad.wide.u32 rd2, tid, 4, out;
    ld.global.b32 r1, [rd1];
    st.global.b32 [rd2], r1;
"""
_ENDLESS = "LOOP:\n    st.global.b32 [out], tid;\n    bra LOOP;"  # it writes, so it is no deadlock


def _kernel(body: str = "", **args: object) -> public.Kernel:
    return Module.from_ptx(ptx_program(body, args))["kernel"]  # type: ignore[arg-type]


def test_module_lists_kernels_and_parameters(tmp_path: Path) -> None:
    path = tmp_path / "module.ptx"
    path.write_text(ptx_program("", {"out": None, "count": 3, "ratio": 0.5}))
    module = Module.from_file(path)
    assert list(module.kernels) == ["kernel"]
    kernel = module["kernel"]
    assert [(p.name, p.type, p.offset, p.bytes) for p in kernel.params] == [
        ("out_param", "u64", 0, 8),
        ("count_param", "u32", 8, 4),
        ("ratio_param", "f32", 12, 4),
    ]
    with pytest.raises(KeyError, match="no kernel 'other'"):
        module["other"]


def test_torch_and_numpy_arguments() -> None:
    source = torch.arange(32, dtype=torch.int32)
    out = np.zeros(32, dtype=np.int32)
    report = run_ptx(_COPY, {"source": source, "out": out})
    assert report.findings == ()
    assert out.tolist() == list(range(32))


def test_numbers_are_typed_by_the_parameters() -> None:
    out = np.zeros(3, dtype=np.uint64)
    run_ptx(
        """
    st.global.u64 [out], wide;
    cvt.s64.s32 rd1, narrow;
    st.global.s64 [out+8], rd1;
    st.global.f32 [out+16], ratio;""",
        {"out": out, "wide": np.uint64(2**64 - 1), "narrow": -5, "ratio": 0.1},
        block=(1,),
    )
    assert int(out[0]) == 2**64 - 1
    assert out.view(np.int64)[1] == -5
    assert out.view(np.float32)[4] == np.float32(0.1)


def test_registered_memory_is_reached_through_pointers() -> None:
    values = np.arange(32, dtype=np.uint32)
    pointer = np.array([values.ctypes.data], dtype=np.uint64)
    out = np.zeros(32, dtype=np.uint32)
    text = ".reg .b64 source;\nld.global.u64 source, [pointer];" + _COPY
    with pytest.raises(EmulationError):
        run_ptx(text, {"pointer": pointer, "out": out})
    emulator = Emulator()
    emulator.register(values)
    run_ptx(text, {"pointer": pointer, "out": out}, emulator=emulator).raise_if_findings()
    assert np.array_equal(out, values)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (object(), "tensor, an array, a number"),
        (torch.zeros(4, device="meta"), "CPU tensor"),
        (np.zeros((4, 4), dtype=np.float32)[:, ::-1], "non-negative strides"),
        (1.5, "takes no float"),
        (2**64, "must fit 64 bits"),
        (b"12345", "must have 8 bytes, got 5"),
    ],
)
def test_bad_arguments(value: object, message: str) -> None:
    kernel = _kernel(out=None)
    with pytest.raises(ValueError, match=message):
        Emulator().launch(kernel, 1, 1, [value])  # type: ignore[list-item]


def test_wrong_number_of_arguments() -> None:
    with pytest.raises(ValueError, match=r"takes 1 arguments .*got 2"):
        Emulator().launch(_kernel(out=None), 1, 1, [None, None])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": (0,)}, "grid must be from"),
        ({"grid": (1, 1, 1, 1)}, "one to three integers"),
        ({"grid": (1, 70000)}, "grid must be from"),
        ({"block": (32, 33)}, "at most 1024 threads, got 1056"),
        ({"cluster": (2,)}, "multiple of the cluster"),
        ({"grid": (32,), "cluster": (32,)}, "cluster must be from"),
        ({"grid": (4, 8), "cluster": (4, 8)}, "at most 16 CTAs, got 32"),
        ({"dynamic_smem_bytes": 232449}, "dynamic_smem_bytes"),
        ({"dynamic_smem_bytes": -1}, "dynamic_smem_bytes"),
    ],
)
def test_impossible_launches(options: dict[str, object], message: str) -> None:
    shape = {"grid": (1,), "block": (32,), **options}
    with pytest.raises(ValueError, match=message):
        Emulator().launch(_kernel(), **shape)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checks": {"memory", "races"}}, "got 'races'"),
        ({"checks": "everything"}, '"all" or a set'),
        ({"async_completion": "never"}, "async_completion must be"),
        ({"num_sms": 0}, "num_sms must be at least 1"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Emulator(**options)  # type: ignore[arg-type]


def test_report_says_what_ran() -> None:
    report = run_ptx("", {}, emulator=Emulator(seed=7, async_completion="random", checks={"sync"}))
    assert report.checks == ("sync",)
    assert report.seed == 7
    assert report.async_completion == "random"
    assert "0 findings (checks: sync; seed 7, random completion)" in str(report)
    assert run_ptx("", {}).checks == ("memory", "init", "race", "sync")
    assert run_ptx("", {}, emulator=Emulator(checks=())).checks == ()


def test_counters() -> None:
    source = np.zeros(32, dtype=np.uint32)
    counters = run_ptx(_COPY, {"source": source, "out": source.copy()}).counters
    assert counters.global_bytes_read == counters.global_bytes_written == 128
    assert counters.warp_instructions["memory"] >= 2
    assert counters.thread_instructions == 32 * counters.instructions
    total = counters + counters
    assert total.instructions == 2 * counters.instructions
    assert total.global_bytes_read == 256
    assert Counters() + counters == Counters(counters.warp_instructions) + Counters(
        {}, **{k: v for k, v in vars(counters).items() if k != "warp_instructions"}
    )
    assert "global_bytes_read 128" in str(counters)


def test_findings_do_not_raise_by_themselves() -> None:
    data = np.zeros(32, dtype=np.uint32)
    report = run_ptx("ld.global.u32 r0, [data+2];", {"data": data})
    (finding,) = report.findings
    assert finding.kind == "memory"
    assert finding.occurrences == 32
    assert finding.first is not None
    assert finding.first.kernel == "kernel"
    assert finding.first.ctaid == (0, 0, 0)
    assert "PTX line" in str(finding)
    with pytest.raises(EmulationError) as raised:
        report.raise_if_findings()
    assert raised.value.report is report


def test_many_findings_are_printed_in_part() -> None:
    data = np.zeros(32, dtype=np.uint32)
    loads = "ld.global.u32 r0, [data+2];\n" * 25 + "".join(
        f"ld.shared.u32 r0, [r1+{4 * i}];\n" for i in range(4)
    )
    report = run_ptx(
        ".shared .align 4 .b8 words[128];\nmov.u32 r1, words;\n" + loads, {"data": data}
    )
    assert len(report.findings) == 29
    text = str(report)
    assert "29 findings" in text
    assert text.count("[memory]") == 20
    assert text.endswith("\nand 9 more: 5 memory, 4 init")
    with pytest.raises(EmulationError, match="and 9 more: 5 memory, 4 init"):
        report.raise_if_findings()


def test_errors_survive_pickling() -> None:
    with pytest.raises(EmulationError) as raised:
        run_ptx("st.global.u32 [out], tid;", {"out": None})
    copy = pickle.loads(pickle.dumps(raised.value))
    assert copy.report == raised.value.report
    with pytest.raises(PtxError) as malformed:
        Module.from_ptx(".version 8.7\n.target sm_90a\nnonsense")
    copy = pickle.loads(pickle.dumps(malformed.value))
    assert (copy.line, copy.source_line) == (malformed.value.line, malformed.value.source_line)


def test_ptx_error_points_at_the_line() -> None:
    text = ptx_program("    frobnicate.u32 r1, r2;", {})
    with pytest.raises(PtxError, match="frobnicate") as raised:
        Module.from_ptx(text)
    assert text.splitlines()[raised.value.line - 1] == raised.value.source_line
    assert "frobnicate" in raised.value.source_line


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.5, 0.8, 0.95])
def test_truncated_ptx(share: float) -> None:
    text = ptx_program(_COPY, {"source": None, "out": None})
    with pytest.raises(PtxError):
        Module.from_ptx(text[: int(len(text) * share)])


_STATEMENTS = """
    ld.global.v4.u32 {r1, r2, r3, r4}, [out+16];
    st.shared.f32 [r1], f1;
    createpolicy.fractional.L2::evict_last.b64 rd1, 1.0;
    prefetch.tensormap [out];
    discard.global.L2 [out], 128;
    atom.global.cas.b32 r1, [out], r2, r3;
    red.global.add.v2.f32 [out], {f1, f2};
    ldmatrix.sync.aligned.m8n8.x2.shared.b16 {r1, r2}, [r3];
    movmatrix.sync.aligned.m8n8.trans.b16 r1, r2;
    cp.async.cg.shared.global [r1], [out], 16, r2;
    cp.async.wait_group 1;
    cp.async.bulk.wait_group.read 0;
    cp.async.bulk.global.shared::cta.bulk_group [out], [r1], r2;
    cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [out, {r1, r2}], [r3];
    tensormap.replace.tile.global_dim.shared::cta.b1024.b32 [r1], 1, r2;
    mbarrier.try_wait.parity.shared::cta.b64 p1, [r1], r2;
    bar.sync 1, 64;
    shfl.sync.bfly.b32 r1|p1, r2, 1, 31, -1;
    setp.lt.and.u32 p1|p2, r1, r2, p3;
    mad.wide.u32 rd1, r1, 4, rd2;
    cvt.rn.satfinite.e4m3x2.f32 h1, f1, f2;
    mov.b64 {r1, r2}, rd1;
    bfe.u32 r1, r2, 3, 4;
"""


@pytest.mark.parametrize("statement", [line.strip() for line in _STATEMENTS.split("\n") if line])
def test_a_statement_with_a_token_missing_or_doubled(statement: str) -> None:
    """Accepted or refused, but never a crash."""
    Module.from_ptx(ptx_program(statement, {"out": None}))
    tokens = re.findall(r"[\w.:%+-]+|\S", statement)
    opcode, operands = tokens[0], tokens[1:-1]
    broken = [operands[:i] + operands[i + 1 :] for i in range(len(operands))]
    broken += [operands[:i] + operands[i:] * 2 for i in range(len(operands))]
    broken += [operands[:i] for i in range(len(operands))]
    refused = []
    for rest in broken:
        try:
            Module.from_ptx(ptx_program(f"{opcode} {' '.join(rest)};", {"out": None}))
        except PtxError as error:
            refused.append(error.source_line)
    assert refused
    assert all(opcode in line for line in refused)


def test_same_seed_gives_the_same_run() -> None:
    body = """
    atom.global.add.u32 r1, [counter], 1;
    mov.u32 r2, %ctaid.x;
    mad.wide.u32 rd1, r1, 4, order;
    st.global.u32 [rd1], r2;"""

    def order(seed: int) -> list[int]:
        counter = np.zeros(1, dtype=np.uint32)
        seen = np.zeros(8 * 32, dtype=np.uint32)
        run_ptx(body, {"counter": counter, "order": seen}, grid=(8,), emulator=Emulator(seed=seed))
        return seen.tolist()

    assert order(3) == order(3)
    assert sorted(order(3)) == sorted(order(4))


def test_concurrent_grids_wait_for_each_other() -> None:
    flag = np.zeros(1, dtype=np.uint32)
    out = np.zeros(1, dtype=np.uint32)
    consumer = _kernel(
        """
WAIT:
    ld.acquire.gpu.global.u32 r1, [flag];
    setp.eq.u32 p1, r1, 0;
    @p1 bra WAIT;
    st.global.u32 [out], r1;""",
        flag=flag,
        out=out,
    )
    producer = _kernel("mov.u32 r1, 5;\nst.release.gpu.global.u32 [flag], r1;", flag=flag)
    report = Emulator().launch_concurrent(
        [Launch(consumer, (1,), (1,), [flag, out]), Launch(producer, (1,), (1,), [flag])]
    )
    report.raise_if_findings()
    assert out[0] == 5


def test_tensor_map_fields_are_in_the_drivers_order() -> None:
    tensor = torch.zeros(6, 10, 32, dtype=torch.bfloat16)
    fields = TensorMap.encode_tiled(
        tensor, box=(2, 4, 16), swizzle="32B", element_strides=(1, 2, 1)
    ).fields()
    assert fields.dims == (32, 10, 6)
    assert fields.strides == (64, 640)
    assert fields.box == (16, 4, 2)
    assert fields.element_strides == (1, 2, 1)
    assert fields.type == "bfloat16"
    assert fields.address == tensor.data_ptr()
    assert len(bytes(TensorMap.encode_tiled(tensor, box=(2, 4, 16)))) == 128


@pytest.mark.parametrize(
    ("tensor", "options", "message"),
    [
        (torch.zeros(4, 32), {"box": (4,)}, "one value per dimension"),
        (torch.zeros(4, 32), {"box": (4, 32), "swizzle": "48B"}, "swizzle must be one of"),
        (torch.zeros(32, 4).T, {"box": (4, 32)}, "last dimension of the tensor must be contiguous"),
        (torch.zeros(4, 33), {"box": (4, 32)}, "stride"),
        (torch.zeros(300, 32), {"box": (300, 32)}, "from 1 to 256, got 300"),
        (torch.zeros(4, 64), {"box": (4, 64), "swizzle": "128B"}, "at most the swizzle's 128"),
        (torch.zeros(4, 32), {"box": (4, 3)}, "multiple of 16 bytes"),
        (torch.zeros(4, 32), {"box": (4, 4), "type": "uint8"}, "4 bytes an element"),
        (torch.zeros(1, 1, 1, 1, 1, 16), {"box": (1,) * 5 + (16,)}, "rank"),
        ([1, 2], {"box": (2,)}, "torch CPU tensor or a NumPy array"),
    ],
)
def test_bad_tensor_maps(tensor: object, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TensorMap.encode_tiled(tensor, **options)  # type: ignore[arg-type]


def test_the_interpreter_lock_is_released() -> None:
    """Another thread makes progress while a launch runs."""
    ticks = 0
    done = threading.Event()

    def count() -> None:
        nonlocal ticks
        while not done.is_set():
            ticks += 1
            time.sleep(0.001)

    thread = threading.Thread(target=count)
    thread.start()
    try:
        run_ptx(
            """
    mov.u32 r1, 0;
LOOP:
    add.u32 r1, r1, 1;
    setp.lt.u32 p1, r1, 2000000;
    @p1 bra LOOP;""",
            {},
        )
        during = ticks
    finally:
        done.set()
        thread.join()
    assert during > 3


def test_ctrl_c_ends_a_launch() -> None:
    import os
    import signal

    # A job in the background of a shell starts with SIGINT ignored, and Python leaves it so.
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            run_ptx(_ENDLESS, {"out": np.zeros(1, np.int32)})
        timer.join()
    finally:
        signal.signal(signal.SIGINT, former)


def test_gpu_facts_are_confirmed_by_files_or_unverified() -> None:
    root = Path(__file__).resolve().parents[2]
    names = [fact.name for fact in gpu_facts]
    assert len(names) == len(set(names)) > 0
    for fact in gpu_facts:
        assert fact.statement
        assert bool(fact.test) == bool(fact.result) == (fact.status == "confirmed")
        if fact.status == "confirmed":
            assert (root / fact.test.split("::")[0]).exists()
            assert (root / "bench" / "results" / fact.result).exists()


def test_public_names() -> None:
    for name in public.__all__:
        assert getattr(public, name) is not None
