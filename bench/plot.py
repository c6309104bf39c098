"""The plots of ``python -m pykernels bench``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def require(path: Path) -> None:
    """Makes sure of matplotlib and of a file name that it can write.

    Raises:
        RuntimeError: there is no matplotlib; the message names the extra.
        ValueError: the suffix is none of matplotlib's.
    """
    try:
        import matplotlib as found
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError as error:
        raise RuntimeError(
            "plots need the package matplotlib; install it with `pip install pykernels[bench]`"
        ) from error
    found.use("Agg")
    *others, last = sorted(f".{suffix}" for suffix in FigureCanvasAgg.get_supported_filetypes())
    if path.suffix.lower() not in (*others, last):
        raise ValueError(f"--plot must end in {', '.join(others)} or {last}, got {path}")


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """One shape as bars, several as lines over m; measured rows and modelled ones are labelled."""
    require(path)
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    measured = "us" in rows[0]
    if len(rows) == 1:
        _bars(axes, _measured_bars(rows[0]) if measured else _modelled_bars(rows[0]))
    else:
        _lines(axes, rows, measured=measured)
    source = "measured, cold L2" if measured else "model, not a measurement"
    first = rows[0]
    groups = f"{first['num_groups']} x " if "num_groups" in first else ""
    m = first["m"] if len(rows) == 1 else "m"
    axes.set_title(f"{first['op']} {groups}{m} x {first['n']} x {first['k']}: {source}")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _measured_bars(row: dict[str, Any]) -> dict[str, float]:
    baselines = {name: found["us"] for name, found in row["baselines"].items() if "us" in found}
    return {"pykernels": row["us"], **baselines}


def _modelled_bars(row: dict[str, Any]) -> dict[str, float]:
    """The parts of the chosen candidate's time, in microseconds."""
    best = row["model"][0]
    return {name: value for name, value in best.items() if name.endswith("_us")}


def _bars(axes: Axes, values: dict[str, float]) -> None:
    names = list(values)[::-1]
    bars = axes.barh(names, [values[name] for name in names])
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set_xlabel("microseconds")


def _lines(axes: Axes, rows: list[dict[str, Any]], *, measured: bool) -> None:
    rows = sorted(rows, key=lambda row: int(row["m"]))
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        values = _measured_bars(row) if measured else _largest(_modelled_bars(row))
        for name, value in values.items():
            lines.setdefault(name, []).append((row["m"], value))
    for name, points in lines.items():
        first = name in ("pykernels", "total_us")
        axes.plot(*zip(*points, strict=True), marker="o", label=name, linewidth=3 if first else 1)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks([row["m"] for row in rows], [str(row["m"]) for row in rows])
    axes.set_xlabel("m")
    axes.set_ylabel("microseconds")
    axes.figure.legend(loc="outside right upper")


def _largest(parts: dict[str, float]) -> dict[str, float]:
    """Without the parts of less than a tenth of the whole, which would only crowd the plot."""
    return {name: value for name, value in parts.items() if value >= 0.1 * parts["total_us"]}
