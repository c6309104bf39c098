"""Loads and stores of every space, width and semantics: bytes in are bytes out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .forms import published_forms
from .row import Row

_LANES = 32
_UNIT = 16  # bytes of a lane in shared, constant and local memory
_REGISTERS = {8: "h", 16: "h", 32: "r", 64: "rd", 128: "q"}
_POLICY = "createpolicy.fractional.L2::evict_last.b64 rd30, 1.0;"


@dataclass(frozen=True)
class Access:
    """What the modifiers of a load or store say."""

    form: str

    @property
    def modifiers(self) -> list[str]:
        return self.form.split(".")[1:]

    @property
    def space(self) -> str:
        spaces = ("global", "shared", "local", "const", "param")
        names = [m.partition("::")[0] for m in self.modifiers]
        return next((name for name in names if name in spaces), "generic")

    @property
    def kind(self) -> str:
        return self.modifiers[-1]

    @property
    def bits(self) -> int:
        return int(self.kind[1:])

    @property
    def count(self) -> int:
        return next((int(m[1:]) for m in self.modifiers if m in ("v2", "v4")), 1)

    @property
    def bytes(self) -> int:
        return self.bits * self.count // 8

    @property
    def registers(self) -> list[str]:
        return [
            f"{_REGISTERS[self.bits]}{1 if self.bits == 128 else 20 + i}" for i in range(self.count)
        ]

    def operand(self, *, vector: bool) -> str:
        joined = ", ".join(self.registers)
        return f"{{{joined}}}" if vector else joined

    def load(self, form: str, address: str) -> str:
        operand = self.operand(vector=self.count > 1)
        policy = ", rd30" if "L2::cache_hint" in form else ""
        return f"{_POLICY if policy else ''} {form} {operand}, [{address}]{policy};"

    def store(self, form: str, address: str) -> str:
        return f"{form} [{address}], {self.operand(vector=self.count > 1)};"

    def untyped(self, opcode: str) -> str:
        """The plain form of the same width."""
        vector = f".v{self.count}" if self.count > 1 else ""
        return f"{opcode}{vector}.b{self.bits}"


def _source(count: int, size: int) -> np.ndarray:
    """Bytes without a pattern; no floating-point meaning, so that NaN payloads must survive."""
    return np.random.default_rng(size).integers(0, 256, (count, size)).astype(np.uint8)


# A lane's 16 bytes of `source` in r10.. r13, its place in shared memory in r9, local in `stack`.
_SHARED = ".shared .align 16 .b8 tile[512]; mov.u32 r8, tile; mad.lo.u32 r9, lane, 16, r8;"
_READ = "mad.wide.u32 rd9, lane, 16, source; ld.global.v4.b32 {r10, r11, r12, r13}, [rd9];"
_LOCAL = ".local .align 16 .b8 stack[16]; mov.u64 rd10, stack; cvta.local.u64 rd11, rd10;"


def _load_row(form: str) -> Row:
    access = Access(form)
    write = f"mad.wide.u32 rd8, lane, {access.bytes}, out; " + access.store(
        access.untyped("st.global"), "rd8"
    )
    if access.space in ("global", "generic"):
        source = _source(_LANES, access.bytes)
        address = f"mad.wide.u32 rd7, lane, {access.bytes}, source;"
        return Row(
            form,
            f"{address} {access.load(form, 'rd7')} {write}",
            {"source": source},
            {"out": source},
        )
    if access.space == "const":
        return _constant_row(access, write)
    if access.space == "param":
        data = _source(1, 48)
        taken = np.tile(data[:, 32 : 32 + access.bytes], (_LANES, 1))
        body = f"{access.load(form, 'block_param+32')} {write}"
        return Row(form, body, {"block": data.tobytes()}, {"out": taken})
    source = _source(_LANES, _UNIT)
    if access.space == "shared":
        put = f"{_SHARED} {_READ} st.shared.v4.b32 [r9], {{r10, r11, r12, r13}}; bar.warp.sync -1;"
        get = access.load(form, "r9")
    else:
        put = f"{_LOCAL} {_READ} st.local.v4.b32 [rd10], {{r10, r11, r12, r13}};"
        get = access.load(form, "rd10")
    return Row(
        form, f"{put} {get} {write}", {"source": source}, {"out": source[:, : access.bytes].copy()}
    )


def _constant_row(access: Access, write: str) -> Row:
    data = _source(_LANES, _UNIT)
    values = ", ".join(map(str, data.ravel().tolist()))
    body = (
        "mov.u64 rd6, constants; mad.wide.u32 rd7, lane, 16, rd6; "
        f"{access.load(access.form, 'rd7')} {write}"
    )
    module = f".const .align 16 .b8 constants[{data.size}] = {{{values}}};"
    return Row(access.form, body, {}, {"out": data[:, : access.bytes].copy()}, module=module)


def _store_row(form: str) -> Row:
    access = Access(form)
    source = _source(_LANES, access.bytes)
    read = f"mad.wide.u32 rd7, lane, {access.bytes}, source; " + access.load(
        access.untyped("ld.global"), "rd7"
    )
    place = f"mad.wide.u32 rd8, lane, {access.bytes}, out;"
    if access.space in ("global", "generic"):
        body = f"{read} {place} {access.store(form, 'rd8')}"
    elif access.space == "param":
        return _argument_row(access, read, place)
    else:
        setup = _SHARED if access.space == "shared" else _LOCAL
        address = "r9" if access.space == "shared" else "rd10"
        again = access.load(access.untyped(f"ld.{access.space}"), address)
        clear = "; ".join(f"mov.b{max(access.bits, 16)} {r}, 0" for r in access.registers)
        body = (
            f"{setup} {read} {access.store(form, address)} {clear}; {again} {place} "
            + access.store(access.untyped("st.global"), "rd8")
        )
    return Row(form, body, {"source": source}, {"out": source})


def _argument_row(access: Access, read: str, place: str) -> Row:
    """The value goes through a function, which returns it with its bits inverted."""
    bits = 8 * access.bytes
    name = f"invert_b{bits}"
    module = (
        f".func (.param .b{bits} result) {name}(.param .b{bits} value) {{ .reg .b{bits} x; "
        f"ld.param.b{bits} x, [value]; not.b{bits} x, x; st.param.b{bits} [result], x; ret; }}"
    )
    register = f"{_REGISTERS[bits]}30"
    # A vector goes into bytes of its alignment, as compilers pass structs.
    kind = (
        f".b{bits} value"
        if access.count == 1
        else f".align {access.bytes} .b8 value[{access.bytes}]"
    )
    if access.count > 1:
        name += "_bytes"
        module = module.replace(f".param .b{bits} value", f".param {kind}").replace(
            f"invert_b{bits}(", f"{name}("
        )
    body = (
        f"{read} {{ .param {kind}; .param .b{bits} result; "
        f"{access.store(access.form, 'value')} call.uni (result), {name}, (value); "
        f"ld.param.b{bits} {register}, [result]; }} {place} st.global.b{bits} [rd8], {register};"
    )
    source = _source(_LANES, access.bytes)
    return Row(access.form, body, {"source": source}, {"out": ~source}, module=module)


def rows() -> list[Row]:
    """All rows of this table."""
    loads = [_load_row(form) for form in published_forms("ld")]
    stores = [_store_row(form) for form in published_forms("st") if "async" not in form]
    return loads + stores
