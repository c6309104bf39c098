"""Exact rounding by fractions: the reference of the conversion and arithmetic tests."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

MODES = ("rn", "rz", "rm", "rp")


@dataclass(frozen=True)
class Format:
    """A binary format with infinities, except e4m3."""

    name: str
    exponent_bits: int
    fraction_bits: int
    max_finite: int  # its code

    @property
    def bias(self) -> int:
        return (1 << (self.exponent_bits - 1)) - 1

    @property
    def sign(self) -> int:
        return 1 << (self.exponent_bits + self.fraction_bits)

    @property
    def overflow(self) -> int:
        """Code of infinity; of NaN in e4m3."""
        return self.max_finite + 1


F32 = Format("f32", 8, 23, 0x7F7FFFFF)
TF32 = Format("tf32", 8, 10, 0x3FBFF)
BF16 = Format("bf16", 8, 7, 0x7F7F)
F16 = Format("f16", 5, 10, 0x7BFF)
E5M2 = Format("e5m2", 5, 2, 0x7B)
E4M3 = Format("e4m3", 4, 3, 0x7E)
FORMATS = (F32, TF32, BF16, F16, E5M2, E4M3)


def round_fraction(
    value: Fraction, target: Format, mode: str, *, negative_zero: bool = False
) -> int:
    """Code of the value rounded to the format; ``negative_zero`` says which zero 0 is."""
    if value == 0:
        return target.sign if negative_zero else 0
    negative = value < 0
    magnitude = abs(value)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if magnitude < Fraction(2) ** exponent:
        exponent -= 1
    exponent = max(exponent, 1 - target.bias)
    units = magnitude / Fraction(2) ** (exponent - target.fraction_bits)
    kept = math.floor(units)
    rest = units - kept
    if rest:
        half = Fraction(1, 2)
        up = {
            "rn": rest > half or (rest == half and kept % 2 == 1),
            "rna": rest >= half,
            "rz": False,
            "rm": negative,
            "rp": not negative,
        }[mode]
        kept += int(up)
    code = ((exponent - 1 + target.bias) << target.fraction_bits) + kept
    if code > target.max_finite:
        finite = mode == "rz" or (mode == "rm" and not negative) or (mode == "rp" and negative)
        code = target.max_finite if finite else target.overflow
    return (target.sign if negative else 0) | code


def to_fraction(code: int, source: Format) -> Fraction:
    """Value of a finite code."""
    magnitude = code & (source.sign - 1)
    field = magnitude >> source.fraction_bits
    significand = magnitude & ((1 << source.fraction_bits) - 1)
    if field:
        significand += 1 << source.fraction_bits
    scale = Fraction(2) ** (max(field, 1) - source.bias - source.fraction_bits)
    value = significand * scale
    return -value if code & source.sign else value


def is_finite(code: int, source: Format) -> bool:
    return code & (source.sign - 1) <= source.max_finite
