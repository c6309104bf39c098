"""The GEMM reference against a second formula: every element as an exactly rounded sum."""

from __future__ import annotations

import math

import pytest
import torch

from pykernels import reference


@pytest.mark.parametrize(("m", "n", "k"), [(1, 8, 16), (3, 136, 144), (5, 8, 272), (2, 8, 0)])
def test_elementwise_sum(m: int, n: int, k: int) -> None:
    generator = torch.Generator().manual_seed(m + n + k)
    a = torch.randn(m, k, generator=generator).to(torch.float8_e4m3fn)
    b = torch.randn(n, k, generator=generator).to(torch.float8_e4m3fn)
    sfa = torch.rand(m, -(-k // 128), generator=generator) + 0.5
    sfb = torch.rand(-(-n // 128), -(-k // 128), generator=generator) + 0.5
    result = reference.fp8_gemm_nt((a, sfa), (b, sfb))
    assert result.dtype == torch.float64
    for i in range(m):
        for j in range(n):
            terms = [
                float(a[i, p]) * float(sfa[i, p // 128]) * float(b[j, p])
                * float(sfb[j // 128, p // 128])
                for p in range(k)
            ]  # fmt: skip
            scale = sum(map(abs, terms))
            assert float(result[i, j]) == pytest.approx(math.fsum(terms), abs=1e-14 * scale)


def test_nan_reaches_only_what_uses_it() -> None:
    a = torch.ones(4, 256).to(torch.float8_e4m3fn)
    b = torch.ones(256, 256).to(torch.float8_e4m3fn)
    sfa, sfb = torch.ones(4, 2), torch.ones(2, 2)
    sfa[1, 0] = torch.nan
    sfb[1, 1] = torch.nan
    expected = torch.zeros(4, 256, dtype=torch.bool)
    expected[1] = True
    expected[:, 128:] = True
    assert torch.equal(reference.fp8_gemm_nt((a, sfa), (b, sfb)).isnan(), expected)
