"""The options of ``python -m pykernels bench``; imports nothing that takes time."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from pykernels.checks import MAX_SIZE, check_gemm_sizes, check_integer

_CALLS = ("dispatch", "combine", "low_latency_dispatch", "low_latency_combine")
_MAX_HEADS, _MAX_PAGE_SIZE = 128, 256
_CACHES = ("bf16", "fp8")
_CASTS = ("silu_mul_quantize_1x128", "quantize_1x128", "quantize_128x128")


def add(parser: argparse.ArgumentParser) -> None:
    """Adds a command for each op."""
    ops = parser.add_subparsers(dest="op", required=True)
    gemm = ops.add_parser("gemm", help="fp8_gemm_nt", description="The dense FP8 GEMM.")
    gemm.add_argument("--m", type=_rows, required=True, help="rows of a, or a list: 1,16,64,256")
    gemm.add_argument("--batch-invariant", action="store_true", help="bits that m does not change")
    _add_common(gemm)
    grouped = ops.add_parser(
        "grouped",
        help="grouped_fp8_gemm_nt, or its masked form",
        description="The grouped FP8 GEMMs of MoE layers.",
    )
    grouped.add_argument("--num-groups", type=_num_groups, required=True, help="weights in b")
    grouped.add_argument(
        "--m", type=_rows, required=True, help="rows of each group, or a list: 16,64,256"
    )
    grouped.add_argument(
        "--skew", action="store_true", help="groups as a router with favourites fills them; m: mean"
    )
    layout = grouped.add_mutually_exclusive_group()
    layout.add_argument(
        "--masked",
        action="store_const",
        dest="source",
        const="masked_m",
        help="room for every group's rows in place of ragged groups",
    )
    layout.add_argument(
        "--indexed",
        action="store_const",
        dest="source",
        const="m_indices",
        help="ragged groups by m_indices in place of offsets",
    )
    grouped.set_defaults(source="group_offsets", batch_invariant=False)
    _add_common(grouped)
    _add_cast(ops)
    _add_mla(ops)
    _add_moe(ops)


def _add_cast(ops: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    cast = ops.add_parser(
        "cast", help="the casts to FP8", description="The casts to FP8 from BF16."
    )
    cast.add_argument("cast", choices=_CASTS, help="the op")
    cast.add_argument("--m", type=_rows, required=True, help="rows, or a list: 128,1024,4096")
    cast.add_argument("--columns", type=_columns, required=True, help="of the result")
    cast.add_argument(
        "--capacity",
        type=_capacity,
        help="of SwiGLU: room for rows, of which offsets name the first m",
    )
    cast.add_argument(
        "--num-groups", type=_num_groups, help="of SwiGLU: masked groups of m rows, each with room"
    )
    cast.set_defaults(num_sms=None, batch_invariant=False, plot=None)
    _add_outputs(cast)


def _add_mla(ops: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    mla = ops.add_parser(
        "mla",
        help="mla_decode",
        description="MLA decode over a paged cache. Sizes may be lists: every combination is one "
        "call. Without any size all default cases are run.",
    )
    mla.add_argument("--batch", type=_list_of("batch"), help="requests, default 128")
    mla.add_argument(
        "--seqlen-kv", type=_list_of("seqlen_kv"), help="cached tokens of each, default 4096"
    )
    mla.add_argument(
        "--heads", type=_list_of("num_heads", _check_heads), help="of the query, default 16"
    )
    mla.add_argument("--seqlen-q", type=_list_of("seqlen_q"), help="query tokens, default 1")
    mla.add_argument("--cache", type=_caches, help="bf16, the default, fp8, or both: bf16,fp8")
    mla.add_argument(
        "--page-size", type=_list_of("page_size", _check_page_size), help="tokens, default 64"
    )
    mla.add_argument(
        "--varied", action="store_true", help="lengths from 1/4 to 7/4 of --seqlen-kv, their mean"
    )
    mla.add_argument("--num-sms", type=_num_sms, help="how many SMs the plan may take")
    mla.add_argument(
        "--batch-invariant", action="store_true", help="bits that others do not change"
    )
    mla.set_defaults(plot=None)
    _add_outputs(mla)


def _add_moe(ops: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    moe = ops.add_parser(
        "moe",
        help="MoE dispatch and combine",
        description="MoE dispatch and combine: several ranks on one GPU or, under torchrun, a GPU "
        "for each rank. Without calls and tokens all default cases are run.",
    )
    moe.add_argument(
        "--call",
        type=_some_of(_CALLS),
        metavar="CALL",
        help=f"one or a list of {', '.join(_CALLS)}",
    )
    moe.add_argument(
        "--tokens", type=_list_of("num_tokens"), help="of each rank, default 4096; or a list"
    )
    moe.add_argument(
        "--ranks", type=_list_of("num_ranks"), help="on one GPU, default 8; torchrun has its own"
    )
    moe.add_argument(
        "--rows", type=_caches, help="of dispatches: bf16, fp8, or both, the default: bf16,fp8"
    )
    for name, default, text in (
        ("hidden", 7168, "columns"),
        ("experts", 256, "of all ranks"),
        ("topk", 8, "experts of a token"),
    ):
        moe.add_argument(
            f"--{name}", type=_size, default=default, help=f"{text}, default {default}"
        )
    moe.set_defaults(num_sms=None, batch_invariant=False, plot=None)
    _add_outputs(moe)


def _add_common(op: argparse.ArgumentParser) -> None:
    op.add_argument("--n", type=_n, required=True, help="rows of b, a multiple of 8")
    op.add_argument("--k", type=_k, required=True, help="columns, a multiple of 16")
    op.add_argument("--num-sms", type=_num_sms, help="how many SMs the kernel may take")
    op.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the times (over m)")
    _add_outputs(op)


def _add_outputs(op: argparse.ArgumentParser) -> None:
    op.add_argument("--device", help="whose constants the model takes: H100, H200, H20, ...")
    op.add_argument("--json", type=Path, metavar="FILE", help="write everything to a file")


def _list_of(
    name: str, also: Callable[[int], None] = lambda size: None
) -> Callable[[str], list[int]]:
    def sizes(text: str) -> list[int]:
        wanted = f"a size or a list like 1,16,64, got {text!r}"
        return [_checked(name, part, wanted, also) for part in text.split(",")]

    return sizes


def _check_heads(num_heads: int) -> None:
    check_integer("num_heads", num_heads, 1, _MAX_HEADS)


def _check_page_size(page_size: int) -> None:
    if page_size & (page_size - 1) or page_size > _MAX_PAGE_SIZE:
        raise ValueError(
            f"page_size must be a power of two from 1 to {_MAX_PAGE_SIZE}, got {page_size}"
        )


_rows = _list_of("m")


def _some_of(names: tuple[str, ...]) -> Callable[[str], list[str]]:
    def parts_of(text: str) -> list[str]:
        parts = text.split(",")
        if not set(parts) <= set(names):
            raise argparse.ArgumentTypeError(f"must be of {', '.join(names)}, got {text!r}")
        return parts

    return parts_of


_caches = _some_of(_CACHES)


def _size(text: str) -> int:
    return _checked("size", text)


def _n(text: str) -> int:
    return _checked("n", text, also=lambda n: check_gemm_sizes(m=1, n=n, k=0))


def _k(text: str) -> int:
    return _checked("k", text, also=lambda k: check_gemm_sizes(m=1, n=0, k=k))


def _columns(text: str) -> int:
    return _checked("columns", text)


def _capacity(text: str) -> int:
    return _checked("capacity", text)


def _num_groups(text: str) -> int:
    return _checked("num_groups", text)


def _num_sms(text: str) -> int:
    return _checked("num_sms", text)


def _checked(
    name: str, text: str, wanted: str = "", also: Callable[[int], None] = lambda size: None
) -> int:
    """A size of at least 1: for an empty product nothing is launched."""
    try:
        size = int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be {wanted or f'a size, got {text!r}'}") from error
    try:
        check_integer(name, size, 1, MAX_SIZE)
        also(size)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}") from error
    return size
