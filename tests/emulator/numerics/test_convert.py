"""Conversions of the emulator: every narrow code, and FP32 values around rounding points."""

from __future__ import annotations

import math
import struct
from fractions import Fraction

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import torch

from pykernels import _C
from tests.emulator.numerics.rounding import (
    E4M3,
    E5M2,
    F16,
    FORMATS,
    MODES,
    Format,
    is_finite,
    round_fraction,
)

emulator = _C.emulator


def float_of(bits: int) -> float:
    value: float = struct.unpack("<f", struct.pack("<I", bits))[0]
    return value


def sample_f32(target: Format) -> list[int]:
    """FP32 patterns: specials, random ones, and the neighbours of rounding points."""
    rng = np.random.default_rng(0)
    patterns = [0, 1, 0x007FFFFF, 0x00800000, 0x7F7FFFFF, 0x7F800000, 0x3F800000]
    codes = [*rng.integers(0, target.sign - 1, 150).tolist(), 0, 1, target.max_finite - 1]
    for code in codes:
        low, high = (emulator.decode(c, target.name) for c in (code, code + 1))
        for value in (low, (low + high) / 2, (3 * low + high) / 4):
            if math.isfinite(value) and abs(value) < 3e38:
                bits = int(np.float32(value).view(np.uint32))
                patterns += [max(bits - 1, 0), bits, bits + 1]
    patterns += rng.integers(0, 0x7F800000, 300).tolist()
    return [sign | bits for bits in patterns for sign in (0, 0x80000000)]


@pytest.mark.parametrize("mode", [*MODES, "rna"])
@pytest.mark.parametrize("target", FORMATS, ids=lambda target: target.name)
def test_encode_rounds_as_the_mode_says(target: Format, mode: str) -> None:
    for bits in sample_f32(target):
        value = float_of(bits)
        negative = bool(bits >> 31)
        if math.isinf(value):
            want = target.overflow | (target.sign if negative and target is not E4M3 else 0)
            if target is E4M3:
                want = target.overflow
        else:
            want = round_fraction(Fraction(value), target, mode, negative_zero=negative)
            if target is E4M3 and want & 0x7F == target.overflow:
                want = emulator.encode(value, "e4m3", mode) & 0x80 | target.overflow
        got = emulator.encode(value, target.name, mode)
        assert got == want, f"{bits:#010x} -> {target.name} {mode}: {got:#x}, expected {want:#x}"


@pytest.mark.parametrize("target", FORMATS, ids=lambda target: target.name)
def test_encode_options(target: Format) -> None:
    nan = target.sign - 1
    for rounding in MODES:
        assert emulator.encode(math.nan, target.name, rounding) == nan
        assert emulator.encode(-math.nan, target.name, rounding, satfinite=True, relu=True) == nan
        for value in (math.inf, 1e300):
            saturated = emulator.encode(value, target.name, rounding, satfinite=True)
            assert saturated == target.max_finite
            negative = emulator.encode(-value, target.name, rounding, satfinite=True)
            assert negative == target.sign | target.max_finite
        assert emulator.encode(-1.0, target.name, rounding, relu=True) == 0
        assert emulator.encode(-0.0, target.name, rounding, relu=True) == 0
    assert emulator.encode(-0.0, target.name) == target.sign


@pytest.mark.parametrize("target", [E4M3, E5M2], ids=lambda target: target.name)
def test_fp8_casts_equal_ml_dtypes_and_torch(target: Format) -> None:
    """Every BF16 value and its upper neighbours in FP32, satfinite."""
    high = np.arange(0, 1 << 16, dtype=np.uint32) << 16
    bits = np.concatenate([high, high | 1, high | 0x8000])
    values = bits.view(np.float32)
    values = values[np.isfinite(values)][::3]
    dtype, torch_dtype, limit = {
        "e4m3": (ml_dtypes.float8_e4m3fn, torch.float8_e4m3fn, 448),
        "e5m2": (ml_dtypes.float8_e5m2, torch.float8_e5m2, 57344),
    }[target.name]
    clipped = np.clip(values, -limit, limit)
    want = clipped.astype(dtype).view(np.uint8)
    torch_want = torch.from_numpy(clipped).to(torch_dtype).view(torch.uint8).numpy()
    got = [emulator.encode(float(v), target.name, satfinite=True) for v in values]
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(got, torch_want)


def all_values(name: str, conversion: str, count: int) -> npt.NDArray[np.uint32]:
    return np.array([emulator.convert_bits(i, conversion) for i in range(count)], np.uint32)


def test_f16_to_f32_every_code() -> None:
    got = all_values("f16", "f16_to_f32", 1 << 16)
    want = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    nan = np.isnan(want)
    np.testing.assert_array_equal(got[~nan], want[~nan].view(np.uint32))
    assert (got[nan] == 0x7FFFFFFF).all()


def test_bf16_to_f32_every_code() -> None:
    got = all_values("bf16", "bf16_to_f32", 1 << 16)
    np.testing.assert_array_equal(got, np.arange(1 << 16, dtype=np.uint32) << 16)


def test_f32_to_bf16_rn_matches_the_general_conversion() -> None:
    rng = np.random.default_rng(1)
    patterns = rng.integers(0, 1 << 32, 4000, dtype=np.uint64).tolist()
    patterns += [0x7F800000, 0xFF800000, 0x7F800001, 0x7F7FFFFF, 0x7F7F8000, 0x00008000, 0x80018000]
    for bits in patterns:
        want = emulator.encode(float_of(bits), "bf16")
        assert emulator.convert_bits(bits, "f32_to_bf16_rn") == want, hex(bits)


@pytest.mark.parametrize("source", [E4M3, E5M2], ids=lambda source: source.name)
def test_fp8_to_f16_every_code(source: Format) -> None:
    dtype = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}[source.name]
    got = all_values(source.name, f"{source.name}_to_f16", 256)
    want = np.arange(256, dtype=np.uint8).view(dtype).astype(np.float16)
    nan = np.isnan(want)
    np.testing.assert_array_equal(got[~nan], want[~nan].view(np.uint16))
    assert (got[nan] == 0x7FFF).all()


@pytest.mark.parametrize("source", FORMATS, ids=lambda source: source.name)
def test_decode_inverts_encode(source: Format) -> None:
    rng = np.random.default_rng(2)
    num_codes = 2 * source.sign
    codes = range(num_codes) if num_codes <= 1 << 16 else rng.integers(0, num_codes, 3000)
    for code in map(int, codes):
        value = emulator.decode(code, source.name)
        if is_finite(code, source):
            assert emulator.encode(value, source.name) == code
        elif source is not E4M3 and code & (source.sign - 1) == source.overflow:
            assert math.isinf(value)
        else:
            assert math.isnan(value)


@pytest.mark.parametrize("bits", [8, 16, 32, 64])
@pytest.mark.parametrize("is_signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("mode", MODES)
def test_float_to_integer(mode: str, is_signed: bool, bits: int) -> None:
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if is_signed else (0, (1 << bits) - 1)
    edges = [float(low), float(high), math.ldexp(1, bits), -math.ldexp(1, bits), 0.5, 1.5, 2.5]
    values = edges + [-v for v in edges] + [0.0, 1e-30, -1e-30, 127.5, 128.0, math.inf, -math.inf]
    for value in values:
        if math.isinf(value):
            whole = high if value > 0 else low
        else:
            whole = {
                "rn": round(value), "rz": math.trunc(value),
                "rm": math.floor(value), "rp": math.ceil(value),
            }[mode]  # fmt: skip
        want = min(max(whole, low), high) % (1 << 64)
        got = emulator.float_to_integer(value, mode, bits, is_signed, False)
        assert got == want, f"{value} {mode} {bits}"


def test_nan_to_integer() -> None:
    def convert(bits: int, is_signed: bool, source_is_f64: bool) -> int:
        result: int = emulator.float_to_integer(math.nan, "rz", bits, is_signed, source_is_f64)
        return result

    assert convert(32, True, False) == 0
    assert convert(16, False, False) == 0
    assert convert(64, True, False) == 1 << 63
    assert convert(64, False, False) == 1 << 63
    assert convert(32, False, True) == 1 << 31
    assert convert(32, True, True) % (1 << 32) == 1 << 31


@pytest.mark.parametrize("mode", MODES)
def test_integer_to_float(mode: str) -> None:
    rng = np.random.default_rng(3)
    values = [0, 1, 2**24 + 1, 2**25 + 2, 2**53 + 1, 2**63 - 1, 65504, 65520]
    values += [int(v) >> int(s) for v, s in zip(
        rng.integers(0, 1 << 63, 200), rng.integers(0, 60, 200), strict=True)]  # fmt: skip
    for value in [*values, *(-v for v in values)]:
        word = value % (1 << 64)
        for target in (FORMATS[0], F16):
            got = emulator.integer_to_float(word, True, target.name, mode)
            assert got == round_fraction(Fraction(value), target, mode), (value, target.name)
        as_double = emulator.integer_to_f64(word, True, mode)
        exact = Fraction(as_double)
        if mode == "rn":
            assert as_double == float(value)
        else:
            toward = {"rz": abs(exact) <= abs(value), "rm": exact <= value, "rp": exact >= value}
            assert toward[mode]
            assert abs(exact - value) * 2**52 < max(abs(value), 1)
