"""Shuffles, votes, matches and reductions within a warp; addresses; control flow."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tests.emulator.isa.lanewise_program import integers

from .lanewise import lanewise
from .row import Row

_LANES = np.arange(32)
Words = npt.NDArray[np.uint32]


def _values() -> Words:
    return np.random.default_rng(16).integers(0, 2**32, 32, dtype=np.uint32)


def _shuffles() -> list[Row]:
    """Segments of 8 lanes; a lane without a source keeps its own value and a false predicate."""
    rows = []
    x = _values()
    start = _LANES // 8 * 8
    for mode, source, clamp in (
        ("bfly", _LANES ^ 5, 0x181F),
        ("down", _LANES + 5, 0x181F),
        ("idx", start + 5, 0x181F),
        ("up", _LANES - 5, 0x1800),
    ):
        valid = (source >= start) & (source < start + 8)
        taken = x[np.where(valid, source, _LANES)]
        expected = np.stack([taken, valid.astype(np.uint32)], axis=1).view(np.uint64).ravel()
        code = (
            f"{{form}} r30|p1, {{a}}, 5, {clamp}, -1; selp.u32 r31, 1, 0, p1; "
            "mov.b64 {d}, {{r30, r31}};"
        )
        rows.append(lanewise(f"shfl.sync.{mode}.b32", expected, x, code=code))
    return rows


def _votes() -> list[Row]:
    """One warp in which all agree, one in which some do, one in which none does."""
    x = np.concatenate([np.ones(32), _values() % 2, np.zeros(32)]).astype(np.uint32)
    warps = x.reshape(3, 32)
    predicate = "setp.ne.u32 p1, {a}, 0; {form} p2, p1, -1; selp.u32 {d}, 1, 0, p2;"
    masks = (warps.astype(np.uint64) << _LANES.astype(np.uint64)).sum(axis=1).astype(np.uint32)
    ballot = "setp.ne.u32 p1, {a}, 0; {form} {d}, p1, -1;"
    return [
        lanewise("vote.sync.all.pred", np.repeat(warps.min(axis=1), 32), x, code=predicate),
        lanewise("vote.sync.any.pred", np.repeat(warps.max(axis=1), 32), x, code=predicate),
        lanewise("vote.sync.ballot.b32", np.repeat(masks, 32), x, code=ballot),
    ]


def _matches() -> list[Row]:
    rows = []
    for kind in ("b32", "b64"):
        x = (_values() % 5).astype(f"u{int(kind[1:]) // 8}")
        equal = (x[:, None] == x).astype(np.uint64) << _LANES.astype(np.uint64)
        expected = equal.sum(axis=1).astype(np.uint32)
        rows.append(lanewise(f"match.any.sync.{kind}", expected, x, code="{form} {d}, {a}, -1;"))
    # Of three warps the lanes of the second one differ.
    x = np.repeat(np.array([7, 0, 9], np.uint32), 32)
    x[32:64] = _LANES // 31
    expected = np.where((x == 7) | (x == 9), 2**32 - 1 ^ 1, 0).astype(np.uint32)
    code = "{form} r30|p1, {a}, -1; selp.u32 r31, 1, 0, p1; xor.b32 {d}, r30, r31;"
    rows.append(lanewise("match.all.sync.b32", expected, x, code=code))
    return rows


def _reductions() -> list[Row]:
    x = _values()
    signed = x.view(np.int32)
    total = np.array([x.sum(dtype=np.uint64)]).astype(np.uint32)
    code = "{form} {d}, {a}, -1;"
    return [
        lanewise("redux.sync.add.s32", np.repeat(total, 32), x, code=code),
        lanewise("redux.sync.add.u32", np.repeat(total, 32), x, code=code),
        lanewise("redux.sync.min.s32", np.repeat(signed.min()[None], 32), signed, code=code),
        lanewise("redux.sync.xor.b32", np.repeat(np.bitwise_xor.reduce(x)[None], 32), x, code=code),
        lanewise("redux.sync.or.b32", np.repeat(np.bitwise_or.reduce(x)[None], 32), x, code=code),
    ]


def _lanes() -> list[Row]:
    """The lanes that are active, and the one that is elected of them."""
    x = np.arange(32, dtype=np.uint32)
    some = "setp.lt.u32 p1, {a}, 7; mov.u32 {d}, 5; @p1 {form} {d};"
    elect = "{form} r30|p1, -1; selp.u32 r31, 1, 0, p1; vote.sync.ballot.b32 r32, p1, -1;"
    return [
        lanewise("activemask.b32", np.where(x < 7, 127, 5).astype(np.uint32), x, code=some),
        # Which lane is not stated: one is, and all of them learn which.
        lanewise(
            "elect.sync",
            np.ones(32, np.uint32),
            x,
            code=elect + "shl.b32 r33, 1, r30; setp.eq.u32 p2, r33, r32; selp.u32 {d}, 1, 0, p2;",
        ),
        lanewise(
            "bar.warp.sync",
            x ^ np.uint32(1),
            x,
            code=".shared .align 4 .b8 tile[128]; mov.u32 r30, tile; mad.lo.u32 r31, lane, 4, r30; "
            "st.shared.u32 [r31], {a}; {form} -1; xor.b32 r31, r31, 4; ld.shared.u32 {d}, [r31];",
        ),
    ]


def _windows() -> list[Row]:
    """An address of one space made generic, and back: what was written through one is read
    through the other."""
    rows = []
    (x,) = integers(np.uint32, count=1)
    x = x[:128]
    local = ".local .align 4 .b8 stack[4]; mov.u64 rd30, stack; "
    shared = (
        ".shared .align 4 .b8 tile[128]; mov.u64 rd30, tile; mad.wide.u32 rd30, lane, 4, rd30; "
    )
    for space, place in (("local", local), ("shared", shared)):
        out = f"{place} st.{space}.u32 [rd30], {{a}}; {{form}} rd31, rd30; ld.u32 {{d}}, [rd31];"
        back = (
            f"{place} cvta.{space}.u64 rd31, rd30; st.u32 [rd31], {{a}}; {{form}} rd32, rd31; "
            f"ld.{space}.u32 {{d}}, [rd32];"
        )
        rows.append(lanewise(f"cvta.{space}.u64", x, x, code=out))
        rows.append(lanewise(f"cvta.to.{space}.u64", x, x, code=back))
    module = ".global .align 4 .b32 number = 41; .const .align 4 .b32 constant = 42;"
    for space, name, value in (("global", "number", 41), ("const", "constant", 42)):
        code = f"mov.u64 rd30, {name}; {{form}} rd31, rd30; ld.u32 r30, [rd31]; "
        code += "add.u32 {d}, {a}, r30;"
        sums = x + np.uint32(value)
        rows.append(lanewise(f"cvta.{space}.u64", sums, x, code=code, module=module))
    code = "mov.u64 rd30, number; cvta.global.u64 rd31, rd30; {form} rd32, rd31; "
    code += "ld.global.u32 r30, [rd32]; add.u32 {d}, {a}, r30;"
    rows.append(lanewise("cvta.to.global.u64", x + np.uint32(41), x, code=code, module=module))
    body = (
        "mov.b64 rd30, block_param; cvta.param.u64 rd31, rd30; ld.u32 r30, [rd31+12]; "
        "mad.wide.u32 rd32, lane, 4, out; st.global.u32 [rd32], r30;"
    )
    block = np.arange(100, 108, dtype=np.uint32)
    out = np.full(32, 103, np.uint32)
    rows.append(Row("cvta.param.u64", body, {"block": block.tobytes()}, {"out": out}))
    return rows


def _control() -> list[Row]:
    x = np.arange(64, dtype=np.uint32)
    loop = (
        "mov.u32 {d}, 0; mov.u32 r30, 0; setp.eq.u32 p2, {a}, 0; @p2 bra DONE; "
        "LOOP: add.u32 {d}, {d}, r30; add.u32 r30, r30, 1; setp.le.u32 p1, r30, {a}; "
        "@p1 {form} LOOP; DONE:"
    )
    jump = "mov.u32 {d}, 1; {form} OVER; mov.u32 {d}, 2; OVER: add.u32 {d}, {d}, {a};"
    call = (
        "{{ .param .b32 value; .param .b32 result; st.param.b32 [value], {a}; "
        "{form} (result), triple, (value); ld.param.b32 {d}, [result]; }}"
    )
    module = (
        ".func (.param .b32 result) triple(.param .b32 value) { .reg .b32 x; "
        "ld.param.b32 x, [value]; mul.lo.u32 x, x, 3; st.param.b32 [result], x; ret; }"
    )
    stop = "setp.gt.u32 p1, {a}, 1000; @p1 {form}; add.u32 {d}, {a}, 1;"
    halt = stop.replace("trap", "brkpt")
    wait = "{form} 20; add.u32 {d}, {a}, 1;"
    one = np.uint32(1)
    return [
        lanewise("bra", x * (x + one) // np.uint32(2), x, code=loop),
        lanewise("bra.uni", x + one, x, code=jump),
        lanewise("call.uni", x * np.uint32(3), x, code=call, module=module),
        lanewise("trap", x + one, x, code=stop),
        lanewise("brkpt", x + one, x, code=halt),
        lanewise("nanosleep.u32", x + one, x, code=wait),
        Row(
            "ret",
            "setp.ge.u32 p1, lane, 9; @p1 ret; mad.wide.u32 rd1, lane, 4, out; "
            "st.global.u32 [rd1], lane;",
            {},
            {"out": np.where(_LANES < 9, _LANES, 0).astype(np.uint32)},
        ),
    ]


def rows() -> list[Row]:
    """All rows of this table."""
    parts = [_shuffles, _votes, _matches, _reductions, _lanes, _windows, _control]
    return [row for part in parts for row in part()]
