"""What nvcc makes of the features that ordinary CUDA uses, optimised and for debugging."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pykernels.emulator import EmulationError, Emulator, Module
from pykernels.emulator.load_check import check_file

from .compile_once import compile_once

SOURCE = Path(__file__).with_name("cuda_features.cu")
ATOMICS = SOURCE.with_name("cuda_atomics.cu")
COUNT = 128
Array = npt.NDArray[Any]


@pytest.fixture(scope="module", params=["optimised", "debug"])
def programs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Module:
    flags = ["-G"] if request.param == "debug" else []
    return Module.from_file(compile_once(tmp_path_factory, SOURCE, *flags, name=request.param))


@pytest.fixture(scope="module")
def atomics(tmp_path_factory: pytest.TempPathFactory) -> Module:
    """Optimised only: without, libcu++ calls through pointers, which the emulator refuses."""
    return Module.from_file(compile_once(tmp_path_factory, ATOMICS))


FORMS = {
    SOURCE: """addc bfe bfi brev call dp4a ld.const ld.local ld.param madc match.all match.any
        nanosleep popc prmt redux.sync.add redux.sync.min redux.sync.xor shf.l shf.r shfl.sync.bfly
        shfl.sync.down shfl.sync.idx shfl.sync.up st.local st.param subc trap vote.sync.all
        vote.sync.any vote.sync.ballot""",
    ATOMICS: """atom.add.acquire.gpu atom.add.relaxed.cta atom.global.add.f32 atom.global.add.u64
        atom.global.cas atom.global.cta.and atom.global.inc atom.global.max atom.global.min
        atom.global.sys.add atom.global.xor atom.max.acq_rel.sys atom.or.release.gpu fence.sc.gpu
        ld.acquire.gpu ld.volatile.global st.release.gpu""",
}


@pytest.mark.parametrize("source", FORMS, ids=lambda source: source.stem)
def test_the_programs_contain(source: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the tests are about, whatever nvcc makes of the source."""
    name = "optimised" if source == SOURCE else ""
    found = list(check_file(compile_once(tmp_path_factory, source, name=name)).forms)
    wanted = FORMS[source].split()
    assert [form for form in wanted if not any(text.startswith(form) for text in found)] == []


def launch(
    module: Module, name: str, *args: Any, grid: int = COUNT // 32, block: int = 32, seed: int = 0
) -> None:
    Emulator(seed=seed).launch(module[name], (grid,), (block,), list(args)).raise_if_findings()


def words(seed: int, dtype: type = np.uint32) -> Array:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, COUNT, dtype=dtype)


def test_calls(programs: Module) -> None:
    a = np.arange(-60, COUNT - 60, dtype=np.int32)
    out = np.zeros((6, COUNT))
    launch(programs, "calls", a, out, COUNT)
    low = np.array([0.5, 1.5, 2.5], np.float32)
    for i, x in enumerate(a.tolist()):
        by = x & 3
        first = np.array([x, 2 * x, 3 * x], np.float32) + low[(np.arange(3) + by) % 3]
        second = first + first[(np.arange(3) + 1) % 3]
        weight = x * 0.25
        byte = (x + 128) % 256 - 128
        total = (byte + (x >> 3) * x) * (-1 if x & 1 else 1)
        assert out[:, i].tolist() == [*second, x + by + 1, weight * weight, total], x


def test_local_arrays(programs: Module) -> None:
    a = (words(1, np.int32) >> np.arange(COUNT) % 31).astype(np.int32)
    out = np.zeros((2, COUNT), np.int32)
    launch(programs, "local_arrays", a, out, COUNT)
    table = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3]
    for i, x in enumerate(a.tolist()):
        digits = [int(digit) for digit in reversed(str(x))]
        best = max(range(10), key=lambda d: (digits.count(d), -d))
        assert out[:, i].tolist() == [best, digits[len(digits) // 2] + 10 * table[digits[0]]], x


def signed(value: int, bits: int = 32) -> int:
    value &= 2**bits - 1
    return value - 2**bits if value >> (bits - 1) else value


def bit_results(x: int, y: int) -> list[int]:
    both = y << 32 | x
    position, length = y & 31, y >> 5 & 15
    mask = (2**length - 1 << position) & 0xFFFFFFFF
    parts = [(x >> s & 255, y >> s & 255) for s in range(0, 32, 8)]
    halves = [(signed(x >> s, 16), signed(y >> s, 16)) for s in (0, 16)]
    return [
        sum((both >> 8 * (y >> 4 * i & 7) & 255) << 8 * i for i in range(4)),
        (x & mask) >> position,
        (x << position & mask) | (y & ~mask),
        both << (y & 31) >> 32,
        both >> min(y & 63, 32),
        sum((a + b & 255) << 8 * i for i, (a, b) in enumerate(parts)),
        sum((max(pair) & 0xFFFF) << 16 * i for i, pair in enumerate(halves)),
        sum(a * b for a, b in parts) + 5,
        (x & y) | (~x & y << 3),
        int(f"{x:032b}"[::-1], 2) ^ y.bit_count(),
        32 - x.bit_length() + 100 * (y & -y).bit_length(),
        abs(signed(x) - signed(y)) + 3,
        x + y >> 1,
        signed(x) * signed(y) >> 32,
    ]


def test_bits(programs: Module) -> None:
    a, b = words(2), words(3)
    out = np.zeros((14, COUNT), np.uint32)
    launch(programs, "bits", a, b, out, COUNT)
    pairs = zip(a.tolist(), b.tolist(), strict=True)
    expected = np.array([[value & 0xFFFFFFFF for value in bit_results(*pair)] for pair in pairs])
    np.testing.assert_array_equal(out, expected.T)


def test_wide_integers(programs: Module) -> None:
    a, b = words(4, np.uint64), words(5, np.uint64)
    b[: COUNT // 2] >>= np.arange(COUNT // 2, dtype=np.uint64)
    a[::3] |= np.uint64(1 << 63)
    out = np.zeros((12, COUNT), np.uint64)
    launch(programs, "wide", a, b, out, COUNT)
    for i, (high, low) in enumerate(zip(a.tolist(), b.tolist(), strict=True)):
        x, y = high << 64 | low, low << 64 | (~high & 2**64 - 1)
        z = signed(x, 128)
        expected = [x + y, x - y, x * y, x // (low | 1), z >> (low & 127), z < signed(y, 128)]
        halves = out[:, i].tolist()
        found = [halves[2 * k] | halves[2 * k + 1] << 64 for k in range(6)]
        assert found == [int(value) % 2**128 for value in expected], i


@pytest.mark.parametrize("seed", range(3))
def test_atomics(atomics: Module, seed: int) -> None:
    grid, block = 3, 96
    count = grid * block
    counters = np.zeros(13, np.int32)
    counters[10:] = -1
    wide, sums = np.zeros(2, np.uint64), np.zeros(1, np.float32)
    launch(atomics, "atomics", counters, wide, sums, grid=grid, block=block, seed=seed)
    numbers = range(count)
    assert counters.tolist() == [
        count, count - 1, -1, 1 - count, np.bitwise_xor.reduce(numbers), count, sum(numbers),
        0, 2 * count, grid * sum(range(block)), 0, 0, 0,
    ]  # fmt: skip
    assert wide.tolist() == [count << 33, count - 1 << 20]
    assert sums[0] == sum(numbers) / 2


@pytest.mark.parametrize("seed", range(3))
def test_messages_between_blocks(atomics: Module, seed: int) -> None:
    data, flags, out = np.zeros(64, np.int32), np.zeros(2, np.int32), np.zeros(64, np.int32)
    launch(atomics, "messages", data, flags, out, grid=2, block=64, seed=seed)
    t = np.arange(64)
    np.testing.assert_array_equal(out, ((t + 1) * 10 + t + 2) * 10 + t + 3)


def test_warps(programs: Module) -> None:
    x = np.random.default_rng(6).integers(0, 40, 32).astype(np.int32)
    out = np.zeros((12, 32), np.uint32)
    launch(programs, "warps", x, out, grid=1)
    t = np.arange(32)
    bits = np.uint32(1) << t.astype(np.uint32)
    odd, seven = int(bits[x % 2 == 1].sum()), 7 in x
    expected = [
        np.full(32, odd), np.full(32, 1 + 2 * seven), [int(bits[x == v].sum()) for v in x],
        np.zeros(32), np.full(32, x.sum()), np.full(32, (x - 20).min()),
        np.full(32, np.bitwise_xor.reduce(x)), x[t // 16 * 16 + t * 7 % 16],
        x[np.where(t < 29, t + 3, t)], x[np.where(t % 8 >= 1, t - 1, t)],
        x[t ^ 9] * 2, np.full(32, 32),
    ]  # fmt: skip
    np.testing.assert_array_equal(out, np.array(expected).astype(np.int64) & 0xFFFFFFFF)


def test_clocks(programs: Module) -> None:
    out = np.zeros(64, np.int32)
    launch(programs, "clocks", out, grid=1, block=64)
    assert set(out.tolist()) == {7}


def test_printf(programs: Module, capfd: pytest.CaptureFixture[str]) -> None:
    launch(programs, "prints", np.arange(32, dtype=np.int32), grid=1)
    lines = ["0: small  0.00 1", "10: small  1.25 400", "20: big  2.50 100000",
             "30: big  3.75 40000000"]  # fmt: skip
    assert sorted(capfd.readouterr().out.splitlines()) == sorted(lines)


@pytest.mark.parametrize(
    ("name", "message"), [("asserts", "too large"), ("traps", "trap")], ids=["assert", "trap"]
)
def test_a_launch_that_stops_itself(programs: Module, name: str, message: str) -> None:
    launch(programs, name, np.arange(20, dtype=np.int32), grid=1, block=20)
    with pytest.raises(EmulationError, match=message):
        launch(programs, name, np.arange(32, dtype=np.int32), grid=1)
