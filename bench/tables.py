"""The tables of ``python -m pykernels bench``: each says where its figures come from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table

from . import peers


def print_static(row: dict[str, Any], compiled: list[dict[str, Any]], console: Console) -> None:
    """One shape without a GPU."""
    console.print(f"\n[bold]{_title(row)}[/bold]: no Hopper GPU here, nothing below is measured")
    console.print(
        f"By the datasheet of the {row['gpu']} at least {_number(row['roofline_us'])} us "
        f"({row['bound']})"
    )
    console.print(_listing_table(row, compiled))
    console.print(_counts_table(row))
    if row["model"]:
        console.print(_model_table(row))
    if row.get("links"):
        console.print(_links_table(row["links"]))
    _print_published(row, console)


def print_measured(row: dict[str, Any], console: Console) -> None:
    """One shape on a GPU."""
    console.print(f"\n[bold]{_title(row)}[/bold]: {_kernel(row)}")
    table = _table(
        "Measured in turns on this GPU; a ratio above 1: pykernels is faster",
        ("", "us", "p10", "p90", "ratio", "warm L2 us", "warm ratio", "TFLOPS", "GB/s", "note"),
    )
    flops, num_bytes = row["tflops"] * row["us"], row["gbps"] * row["us"]
    ours = (row["us"], row["us_p10"], row["us_p90"], None, row["warm_l2_us"], None)
    share = f"{row['roofline_share']:.0%} of the {row['bound']} bound"
    table.add_row("pykernels", *map(_number, ours), *_rates(row["us"], flops, num_bytes), share)
    for name, found in row["baselines"].items():
        if "unavailable" in found:
            table.add_row(name, *["-"] * 8, found["unavailable"])
            continue
        figures = ("us", "us_p10", "us_p90", "ratio", "warm_l2_us", "warm_l2_ratio")
        cells = [_number(found[figure]) for figure in figures]
        table.add_row(name, *cells, *_rates(found["us"], flops, num_bytes), found.get("note", ""))
    console.print(table)
    if "link_gbps" in row:
        console.print(
            f"Payload over the busiest GPU's links: {row['link_gbps']:.0f} GB/s a direction; "
            f"received, with its own tokens, as DeepEP counts: {row['gbps_as_deepep']:.0f} GB/s"
        )
    _print_published(row, console)
    if row.get("candidates"):
        console.print(_candidates_table(row))


def print_sweep(rows: list[dict[str, Any]], console: Console) -> None:
    """One line a shape: how the answer changes with m, or with what else the calls differ in."""
    if len(rows) < 2:
        return
    over, of = ("m", "m") if "m" in rows[0] else ("shapes", "shape")
    if "us" in rows[0]:
        names = [name for name in rows[0]["baselines"] if _ratios(rows, name)]
        columns = (of, "kernel", "us", "TFLOPS", "GB/s", "roofline", *(f"x {n}" for n in names))
        table = _table(f"Over {over}, measured; x: the baseline's time over ours", columns)
        for row in rows:
            cells = [_number(row[figure]) for figure in ("us", "tflops", "gbps")]
            ratios = [_number(row["baselines"].get(name, {}).get("ratio")) for name in names]
            table.add_row(
                str(row[of]), _kernel(row), *cells, f"{row['roofline_share']:.0%}", *ratios
            )
    elif rows[0]["model"]:
        table = _table(
            f"Over {over}: model, not a measurement",
            (of, "kernel", "schedule", "total_us", "TFLOPS at that time", "GB/s at that time"),
        )
        for row in rows:
            best = row["model"][0]
            rates = _rates(best["total_us"], row["flops"] / 1e6, row["minimum_bytes"] / 1e3)
            named = (str(row[of]), row["kernel"], _by(row["schedule"]))
            table.add_row(*named, _number(best["total_us"]), *rates)
    else:
        return
    console.print(table)


def _print_published(row: dict[str, Any], console: Console) -> None:
    if not row.get("published"):
        return
    table = _table("Published: other machines, measured otherwise", ("", "GPU", "us", "where"))
    for figure in row["published"]:
        cells = (figure["library"], figure["gpu"], _number(figure["us"]), figure["source"])
        table.add_row(*cells)
    console.print(table)


def _candidates_table(row: dict[str, Any]) -> Table:
    table = _table(
        "Kernels by name, measured alone, and what the model gives them",
        ("kernel", "schedule", "us", "model us"),
    )
    for candidate in sorted(row["candidates"], key=lambda candidate: float(candidate["us"])):
        times = (_number(candidate["us"]), _number(candidate["model"]["total_us"]))
        table.add_row(candidate["kernel"], _by(candidate["schedule"]), *times)
    return table


def _listing_table(row: dict[str, Any], compiled: list[dict[str, Any]]) -> Table:
    own = row["listing"]
    operations = _peer_operations(row["op"])
    of_peers = f"; peers: {peers.source()}" if operations else ""
    table = _table(
        f"Machine code: ours assembled by {own['compiled_with']}{of_peers}",
        (
            "kernel",
            "threads",
            "registers",
            "setmaxnreg",
            "spills",
            "main loop",
            "WGMMA in it",
            "other/WGMMA",
            "issue share",
        ),
    )
    _add_listing(table, own, "bold")
    for peer in peers.peers():
        if peer.operation not in operations:
            continue
        marked = " (bound)" if peer.name == row["bounding_peer"] else ""
        table.add_row(
            peer.name + marked,
            str(peer.threads),
            str(peer.registers),
            peer.setmaxnreg or "-",
            peer.spills,
            str(peer.main_loop),
            peer.matrix,
            f"{peer.other_per_matrix:.1f}",
            f"{peer.issue_share:.2f}",
        )
    for baseline in compiled:
        _add_listing(table, baseline | {"name": f"{baseline['name']}, compiled here"}, "dim")
    return table


def _peer_operations(op: str) -> set[str]:
    """What the peers do that are shown beside an op."""
    if op.startswith("fp8_gemm_nt"):
        return {peers.SAME_OPERATION}
    grouped = op.startswith("grouped_fp8_gemm_nt")
    return {peers.SAME_OPERATION, peers.GROUPED_OPERATION} if grouped else set()


def _add_listing(table: Table, row: dict[str, Any], style: str) -> None:
    table.add_row(
        row["name"],
        str(row.get("threads", "-")),
        str(row["registers"]),
        "/".join(map(str, row["setmaxnreg"])) or "-",
        str(row["local_accesses"]),
        str(row.get("main_loop") or f"none, {row['instructions']} in all"),
        row.get("matrix", "-"),
        _number(row.get("other_per_wgmma")),
        _number(row.get("issue_share")),
        style=style,
    )


_COUNTS = {
    "global_bytes_read": "bytes that the SMs ask for (L2 and HBM)",
    "global_footprint_bytes_read": "bytes of memory that they touch: HBM with cold caches",
    "global_bytes_written": "bytes that the SMs write",
    "tensor_multiply_adds": "multiply-adds of WGMMA",
    "wgmma": "WGMMA instructions",
    "warp_instructions": "warp instructions",
    "tma_bytes_loaded": "bytes of TMA loads, whole boxes",
    "shared_bank_conflicts": "shared-memory bank conflicts",
}


def _counts_table(row: dict[str, Any]) -> Table:
    emulated = row["emulator"]
    smaller = "" if emulated["shape"] == row["shape"] else ", a smaller shape of the same kernel"
    table = _table(
        f"Counted in the emulator on {emulated['shape']}{smaller}: no times",
        ("count", "value", "over the least possible"),
    )
    for name, label in _COUNTS.items():
        if emulated["counts"][name] == 0 and row["flops"] == 0:
            continue  # what a cast has nothing of
        ratio = emulated["ratios"].get(name)
        table.add_row(
            label, f"{emulated['counts'][name]:,}", "" if ratio is None else f"{ratio:.3f}"
        )
    return table


def _links_table(links: dict[str, Any]) -> Table:
    """What is beside the payload, by its parts."""
    title = f"Counted in the emulator over {links['num_links']} links, of {links['shape']}"
    table = _table(title, ("bytes written into other ranks' windows", "bytes", "over the payload"))
    payload = links["payload_bytes"]
    rows = {"payload: each token once a link, the least": payload} | {
        f"overhead: {name}" if name != "entries" else "overhead: headers and entries": num_bytes
        for name, num_bytes in links["overhead_bytes"].items()
    }
    rows["anything else"] = links["unexplained_bytes"]
    rows["all"] = links["counted_bytes"]
    rows["read from other ranks' windows"] = links["read_bytes"]
    for name, num_bytes in rows.items():
        share = f"{num_bytes / payload:.4f}" if payload else "-"
        table.add_row(name, f"{num_bytes:,}", share)
    return table


def _model_table(row: dict[str, Any]) -> Table:
    """A column for each candidate."""
    candidates = row["model"]
    heads = (f"{c['kernel'].partition('fp8_gemm_nt_')[2]} {_by(c['schedule'])}" for c in candidates)
    table = _table(
        f"Model of the {row['gpu']}, not a measurement; kernel, cluster along m and n, split of k",
        ("", *heads),
    )
    for name in (name for name in candidates[0] if name not in ("kernel", "schedule")):
        table.add_row(name, *(_number(candidate[name]) for candidate in candidates))
    return table


def _table(title: str, columns: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    return table


def _title(row: dict[str, Any]) -> str:
    extra = ", batch-invariant" if row["batch_invariant"] else ""
    extra += f", {row['num_sms']} SMs" if row["num_sms"] else ""
    return f"{row['op']} {row['shape']}{extra}"


def _kernel(row: dict[str, Any]) -> str:
    """With its schedule, where there is one to choose."""
    return f"{row['kernel']} {_by(row['schedule'])}".rstrip()


def _by(schedule: Iterable[int]) -> str:
    return "x".join(map(str, schedule))


def _ratios(rows: list[dict[str, Any]], name: str) -> list[float]:
    found = [row["baselines"].get(name, {}).get("ratio") for row in rows]
    return [ratio for ratio in found if ratio is not None]


def _rates(us: float, mega_operations: float, kilobytes: float) -> tuple[str, str]:
    """TFLOPS and GB/s of a time in microseconds."""
    return f"{mega_operations / us:.0f}" if mega_operations else "-", f"{kilobytes / us:.0f}"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, int) or float(value).is_integer():
        return f"{value:.0f}"
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}"
