"""Tensor copies against a NumPy model: ranks, swizzles, fills, multicast, stores, wrong use."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from pykernels.emulator import EmulationError, Emulator, Report, TensorMap
from tests.emulator.isa.bulk_copy_program import (
    INIT,
    MODES,
    SHARED,
    WAIT,
    copy_in,
    copy_out,
    sample,
    swizzled,
)
from tests.emulator.ptx_program import run_ptx


def _load_expected(
    tensor: np.ndarray, box: tuple[int, ...], start: tuple[int, ...], swizzle: str, fill: int = 0
) -> np.ndarray:
    """What the box holds in shared memory. `start` in the tensor's order."""
    dense = np.full(box, fill, dtype=tensor.dtype)
    for index in itertools.product(*map(range, box)):
        place = tuple(s + i for s, i in zip(start, index, strict=True))
        if all(0 <= p < n for p, n in zip(place, tensor.shape, strict=True)):
            dense[index] = tensor[place]
    flat = dense.reshape(-1).view(np.uint8)
    placed = np.zeros_like(flat)
    placed[swizzled(np.arange(flat.size), swizzle)] = flat
    return placed


def _load(
    tensor: np.ndarray,
    box: tuple[int, ...],
    start: tuple[int, ...],
    swizzle: str = "none",
    *,
    emulator: Emulator | None = None,
    space: str = "shared::cluster",
    **options: object,
) -> tuple[np.ndarray, Report]:
    tensor_map = TensorMap.encode_tiled(tensor, box=box, swizzle=swizzle, **options)  # type: ignore[arg-type]
    size = int(np.prod(box)) * tensor.itemsize
    out = np.zeros(size, dtype=np.uint8)
    coordinates = ", ".join(str(c) for c in reversed(start))
    report = run_ptx(
        f"""{INIT}
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [r0], {size};
    cp.async.bulk.tensor.{len(box)}d.{space}.global.mbarrier::complete_tx::bytes
        [r1], [map, {{{coordinates}}}], [r0];
    {WAIT}{copy_out(size // 4)}""",
        {"map": tensor_map, "out": out},
        module=SHARED,
        block=(1,),
        dynamic_smem_bytes=size,
        emulator=emulator,
    )
    return out, report


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("swizzle", "columns"), [("none", 64), ("32B", 32), ("64B", 64), ("128B", 128)]
)
def test_load_2d(swizzle: str, columns: int, mode: str) -> None:
    tensor = sample((64, 256), np.uint8)
    start = (8, 64)
    out, report = _load(
        tensor, (16, columns), start, swizzle, emulator=Emulator(async_completion=mode)
    )
    report.raise_if_findings()
    assert np.array_equal(out, _load_expected(tensor, (16, columns), start, swizzle))
    assert report.counters.tma_bytes_loaded == 16 * columns


@pytest.mark.parametrize(
    ("shape", "box", "start"),
    [
        ((100,), (32,), (40,)),
        ((20, 64), (8, 32), (4, 16)),
        ((6, 10, 64), (2, 4, 16), (1, 3, 16)),
        ((3, 4, 5, 32), (2, 2, 3, 16), (1, 1, 1, 8)),
        ((2, 3, 4, 5, 32), (2, 1, 2, 3, 8), (0, 2, 1, 2, 24)),
    ],
)
def test_load_of_every_rank(
    shape: tuple[int, ...], box: tuple[int, ...], start: tuple[int, ...]
) -> None:
    tensor = sample(shape, np.uint16)
    out, report = _load(tensor, box, start)
    report.raise_if_findings()
    assert np.array_equal(out, _load_expected(tensor, box, start, "none"))


@pytest.mark.parametrize("start", [(-3, 0), (0, -20), (14, 0), (0, 48), (-100, 0), (-3, 48)])
@pytest.mark.parametrize("swizzle", ["none", "64B"])
def test_load_fills_out_of_bounds_elements_with_zeros(start: tuple[int, int], swizzle: str) -> None:
    tensor = sample((20, 64), np.uint16)
    out, report = _load(tensor, (8, 32), start, swizzle)
    report.raise_if_findings()
    assert np.array_equal(out, _load_expected(tensor, (8, 32), start, swizzle))


def test_nan_fill_is_noted() -> None:
    tensor = np.ones((4, 16), dtype=np.float32)
    out, report = _load(tensor, (4, 8), (2, 12), fill="nan")
    values = out.view(np.float32).reshape(4, 8)
    assert (values[:2, :4] == 1).all()
    assert np.isnan(values[2:]).all()
    assert np.isnan(values[:, 4:]).all()
    assert any("nan_fill_pattern" in note for note in report.notes)


def test_element_strides() -> None:
    tensor = sample((32, 32), np.uint16)
    tensor_map = TensorMap.encode_tiled(tensor, box=(16, 16), element_strides=(3, 1))
    out = np.zeros(6 * 32, dtype=np.uint8)
    run_ptx(
        f"""{INIT}
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [r0], {out.size};
    cp.async.bulk.tensor.2d.shared::cta.global.tile.mbarrier::complete_tx::bytes
        [r1], [map, {{8, 2}}], [r0];
    {WAIT}{copy_out(out.size // 4)}""",
        {"map": tensor_map, "out": out},
        module=SHARED,
        block=(1,),
        dynamic_smem_bytes=out.size,
    ).raise_if_findings()
    assert np.array_equal(out.view(np.uint16).reshape(6, 16), tensor[2:18:3, 8:24])


def test_strided_and_bfloat16_tensors() -> None:
    base = torch.arange(64 * 64, dtype=torch.float32).to(torch.bfloat16).reshape(64, 64)
    tensor = base[::2, :40]
    out, report = _load_torch(tensor, (8, 32), (5, 8))
    report.raise_if_findings()
    expected = tensor[5:13, 8:40].contiguous().view(torch.uint8).reshape(-1).numpy()
    assert np.array_equal(out, expected)


def _load_torch(
    tensor: torch.Tensor, box: tuple[int, int], start: tuple[int, int]
) -> tuple[np.ndarray, Report]:
    tensor_map = TensorMap.encode_tiled(tensor, box=box)
    size = box[0] * box[1] * tensor.element_size()
    out = np.zeros(size, dtype=np.uint8)
    report = run_ptx(
        f"""{INIT}
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [r0], {size};
    cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes
        [r1], [map, {{{start[1]}, {start[0]}}}], [r0];
    {WAIT}{copy_out(size // 4)}""",
        {"map": tensor_map, "out": out},
        module=SHARED,
        block=(1,),
        dynamic_smem_bytes=size,
    )
    return out, report


@pytest.mark.parametrize("mode", MODES)
def test_multicast_reaches_every_cta_of_the_mask(mode: str) -> None:
    tensor = sample((8, 128), np.uint8)
    tensor_map = TensorMap.encode_tiled(tensor, box=(8, 128), swizzle="128B")
    out = np.zeros((4, 1024), dtype=np.uint8)
    body = f"""{INIT}
    .reg .b32 rank;
    .reg .b16 mask;
    mov.u32 rank, %cluster_ctarank;
    setp.eq.u32 p2, rank, 3;
    @!p2 mbarrier.arrive.expect_tx.shared::cta.b64 _, [r0], 1024;
    @p2 mbarrier.arrive.shared::cta.b64 _, [r0];
    barrier.cluster.arrive;
    barrier.cluster.wait;
    mov.u16 mask, 7;
    setp.eq.u32 p3, rank, 1;
    @p3 cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes
        .multicast::cluster [r1], [map, {{0, 0}}], [r0], mask;
    {WAIT}
    mul.wide.u32 rd1, rank, 1024;
    add.u64 out, out, rd1;
    @p2 bra END;
    {copy_out(256)}
END:
    barrier.cluster.arrive;
    barrier.cluster.wait;"""
    report = run_ptx(
        body,
        {"map": tensor_map, "out": out},
        module=SHARED,
        block=(1,),
        grid=(4,),
        cluster=(4,),
        dynamic_smem_bytes=1024,
        emulator=Emulator(async_completion=mode),
    )
    report.raise_if_findings()
    expected = _load_expected(tensor, (8, 128), (0, 0), "128B")
    assert np.array_equal(out[:3], np.broadcast_to(expected, (3, 1024)))
    assert not out[3].any()
    assert report.counters.tma_bytes_loaded == 1024


def _store(
    data: np.ndarray,
    tensor: np.ndarray,
    box: tuple[int, ...],
    start: tuple[int, ...],
    swizzle: str = "none",
    operation: str = "",
    mode: str = "late",
) -> Report:
    tensor_map = TensorMap.encode_tiled(tensor, box=box, swizzle=swizzle)
    coordinates = ", ".join(str(c) for c in reversed(start))
    opcode = "cp.reduce.async.bulk.tensor" if operation else "cp.async.bulk.tensor"
    return run_ptx(
        f"""{INIT}{copy_in(data.nbytes // 4)}
    {opcode}.{len(box)}d.global.shared::cta{operation}.bulk_group [map, {{{coordinates}}}], [r1];
    cp.async.bulk.commit_group;
    cp.async.bulk.wait_group 0;""",
        {"map": tensor_map, "source": data},
        module=SHARED,
        block=(1,),
        dynamic_smem_bytes=data.nbytes,
        emulator=Emulator(async_completion=mode),
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("swizzle", "columns"), [("none", 64), ("32B", 16), ("64B", 32), ("128B", 64)]
)
def test_store_2d(swizzle: str, columns: int, mode: str) -> None:
    box = (8, columns)
    values = sample(box, np.uint16)
    data = _load_expected(values, box, (0, 0), swizzle)
    tensor = np.zeros((32, 128), dtype=np.uint16)
    report = _store(data, tensor, box, (5, 8), swizzle, mode=mode)
    report.raise_if_findings()
    expected = np.zeros_like(tensor)
    expected[5:13, 8 : 8 + columns] = values
    assert np.array_equal(tensor, expected)
    assert report.counters.tma_bytes_stored == data.nbytes


@pytest.mark.parametrize("start", [(-3, -8), (28, 100), (-8, 0), (0, 128)])
def test_store_clips(start: tuple[int, int]) -> None:
    box = (8, 32)
    values = sample(box, np.uint16)
    tensor = np.zeros((32, 120), dtype=np.uint16)
    _store(values.reshape(-1), tensor, box, start).raise_if_findings()
    expected = np.zeros_like(tensor)
    for i, j in itertools.product(range(8), range(32)):
        row, column = start[0] + i, start[1] + j
        if 0 <= row < 32 and 0 <= column < 120:
            expected[row, column] = values[i, j]
    assert np.array_equal(tensor, expected)


@pytest.mark.parametrize(
    ("operation", "dtype", "function"),
    [
        (".add", np.float32, np.add),
        (".add", np.uint32, np.add),
        (".min", np.int32, np.minimum),
        (".max", np.uint64, np.maximum),
        (".and", np.uint32, np.bitwise_and),
        (".xor", np.int64, np.bitwise_xor),
        (".add", np.float16, np.add),
    ],
)
def test_reduce(operation: str, dtype: type, function: np.ufunc) -> None:
    box = (4, 16)
    values = sample(box, dtype)
    tensor = sample((8, 16), dtype)[::-1].copy()
    expected = tensor.copy()
    expected[2:6] = function(tensor[2:6], values)
    report = _store(values.reshape(-1), tensor, box, (2, 0), operation=operation)
    report.raise_if_findings()
    assert np.array_equal(tensor, expected)


def test_reduce_of_an_unsuited_type_ends_the_launch() -> None:
    with pytest.raises(EmulationError, match="not defined"):
        _store(
            np.zeros(64, np.uint16), np.zeros((8, 16), np.uint16), (4, 16), (0, 0), operation=".add"
        )


@pytest.mark.parametrize(
    ("columns", "rows", "offset", "fact"),
    [
        (64, 8, 0, "box_narrower_than_swizzle"),
        (64, 7, 0, "box_narrower_than_swizzle"),
        (128, 8, 128, "box_below_swizzle_alignment"),
    ],
)
def test_what_no_document_fixes_is_noted(columns: int, rows: int, offset: int, fact: str) -> None:
    """The swizzle follows the shared addresses; an incomplete last line reaches behind the box."""
    tensor = sample((8, 128), np.uint8)
    tensor_map = TensorMap.encode_tiled(tensor, box=(rows, columns), swizzle="128B")
    size = rows * columns
    out = np.zeros(2048, dtype=np.uint8)
    clear = "\n".join(
        f"st.shared.v4.b32 [r1+{at}], {{r9, r9, r9, r9}};" for at in range(0, 2048, 16)
    )
    report = run_ptx(
        f"""{INIT}
    mov.b32 r9, 0;
    {clear}
    fence.proxy.async.shared::cta;
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [r0], {size};
    cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes
        [r1+{offset}], [map, {{0, 0}}], [r0];
    {WAIT}{copy_out(512)}""",
        {"map": tensor_map, "out": out},
        module=SHARED,
        block=(1,),
        dynamic_smem_bytes=2048,
    )
    report.raise_if_findings()
    assert any(fact in note for note in report.notes)
    expected = np.zeros(2048, dtype=np.uint8)
    places = swizzled(offset + np.arange(size), "128B")
    expected[places] = tensor[:rows, :columns].reshape(-1)
    assert np.array_equal(out, expected)


@pytest.mark.parametrize("kind", ["float32", "tfloat32"])
def test_maps_that_may_convert_are_noted(kind: str) -> None:
    tensor = sample((8, 16), np.float32)
    got, report = _load(tensor, (4, 16), (0, 0), type=kind)
    report.raise_if_findings()
    assert np.array_equal(got, tensor[:4].reshape(-1).view(np.uint8))
    noted = any("converting_tensor_map" in note for note in report.notes)
    assert noted == (kind == "tfloat32")


def test_tensor_map_edited_on_the_device() -> None:
    """As CUTLASS' grouped GEMM does it: a copy in shared memory, new extents, back to global."""
    tensor = sample((16, 64), np.uint8)
    tensor_map = TensorMap.encode_tiled(np.ones((16, 64), np.uint8), box=(4, 32))
    place = np.zeros(256, dtype=np.uint8)
    start = -place.ctypes.data % 128
    out = np.zeros(128, dtype=np.uint8)
    copy = "\n".join(
        f"ld.global.v4.u32 {{r10, r11, r12, r13}}, [rd5+{at}];"
        f"st.shared.v4.u32 [r1+{at}], {{r10, r11, r12, r13}};"
        for at in range(0, 128, 16)
    )
    run_ptx(
        f"""
    mov.u32 r0, barrier;
    mov.u32 r1, tile;
    mov.u64 rd5, initial;
    {copy}
    tensormap.replace.tile.global_address.shared::cta.b1024.b64 [r1], tensor;
    tensormap.replace.tile.global_dim.shared::cta.b1024.b32 [r1], 1, 3;
    bar.warp.sync -1;
    tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned
        [place], [r1], 128;
    setp.ne.u32 p5, tid, 0;
    @p5 bra END;
    mbarrier.init.shared::cta.b64 [r0], 1;
    fence.proxy.tensormap::generic.acquire.gpu [place], 128;
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [r0], 128;
    cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes
        [r1+128], [place, {{16, 1}}], [r0];
    {WAIT}
    add.u32 r1, r1, 128;
    {copy_out(32)}
END:""",
        {
            "initial": np.frombuffer(bytes(tensor_map), dtype=np.uint8),
            "tensor": tensor,
            "place": place[start : start + 128],
            "out": out,
        },
        module=SHARED,
        dynamic_smem_bytes=256,
    )
    expected = np.zeros((4, 32), dtype=np.uint8)
    expected[:2] = tensor[1:3, 16:48]
    assert np.array_equal(out.reshape(4, 32), expected)


@pytest.mark.parametrize(
    ("copy", "message"),
    [
        (
            "[r1+16], [map, {0, 0}], [r0]",
            "the destination's shared address 0x[0-9a-f]+ must be a multiple of 128",
        ),
        ("[r1+1024], [map, {0, 0}], [r0]", "the destination: write of 256 bytes at shared"),
        (
            "[r1], [map, {0, 0}], [r0+4]",
            "the mbarrier's shared address 0x[0-9a-f]+ must be a multiple of 8",
        ),
        (
            "[r1], [rd0, {0, 0}], [r0]",
            "the address of a tensor map must be a multiple of 64, got 0x[0-9a-f]+",
        ),
    ],
)
def test_wrong_addresses_end_the_launch(copy: str, message: str) -> None:
    tensor_map = TensorMap.encode_tiled(np.zeros((8, 32), np.uint8), box=(8, 32))
    with pytest.raises(EmulationError, match=message):
        run_ptx(
            f"""{INIT} add.u64 rd0, map, 32;
    cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes {copy};""",
            {"map": tensor_map},
            module=SHARED,
            block=(1,),
            dynamic_smem_bytes=256,
        )


def test_a_map_of_another_rank_ends_the_launch() -> None:
    tensor_map = TensorMap.encode_tiled(np.zeros((8, 32), np.uint8), box=(8, 32))
    with pytest.raises(EmulationError, match="rank"):
        run_ptx(
            f"""{INIT}
    cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes
        [r1], [map, {{0, 0, 0}}], [r0];""",
            {"map": tensor_map},
            module=SHARED,
            block=(1,),
            dynamic_smem_bytes=256,
        )


def test_bytes_that_are_no_map_end_the_launch() -> None:
    garbage = np.full(256, 7, dtype=np.uint8)
    start = -garbage.ctypes.data % 64
    with pytest.raises(EmulationError, match="no tensor map"):
        run_ptx(
            f"""{INIT}
    cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes
        [r1], [map, {{0, 0}}], [r0];""",
            {"map": garbage[start : start + 128]},
            module=SHARED,
            block=(1,),
            dynamic_smem_bytes=256,
        )


def test_box_beyond_the_allocation_ends_the_launch() -> None:
    """The map promises more rows than the tensor has."""
    tensor = np.zeros((8, 32), dtype=np.uint8)
    longer = np.lib.stride_tricks.as_strided(tensor, (16, 32), (32, 1))
    tensor_map = TensorMap.encode_tiled(longer, box=(8, 32))
    tensor_map.view = TensorMap.encode_tiled(tensor, box=(8, 32)).view
    with pytest.raises(EmulationError, match="map"):
        run_ptx(
            f"""{INIT}
    cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes
        [r1], [map, {{0, 4}}], [r0];""",
            {"map": tensor_map},
            module=SHARED,
            block=(1,),
            dynamic_smem_bytes=256,
        )
