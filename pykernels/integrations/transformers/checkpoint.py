"""Checkpoints in the public format into a model that has been accelerated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from pykernels.integrations.transformers.builders import stored
from pykernels.nn import check_state_dict


def load_checkpoint(
    model: nn.Module, state_dict: Mapping[str, Tensor], *, strict: bool = True
) -> None:
    """Loads weights by their public names; tensors that fit as they are, are not copied.

    FP8 weights come with ``weight_scale_inv`` beside each, others in BF16, FP16 or FP32 are cast
    where the model has FP8. The model may be on the ``meta`` device, so that it is built without
    memory. Tensors stay on their devices.

    Args:
        model: after ``accelerate_model``.
        state_dict: the whole checkpoint.
        strict: whether all parameters must be in it, and nothing else.

    Raises:
        RuntimeError: a weight does not fit, has no scales, or names are missing or unexpected; the
            message names them, and the model is as it was.
    """
    check_state_dict(model, state_dict)
    with _all_or_nothing(model):
        state = {name: stored(name, tensor) for name, tensor in state_dict.items()}
        model.load_state_dict(state, strict=strict, assign=True)
        tie = getattr(model, "tie_weights", None)
        if tie is not None:
            tie()


@contextmanager
def _all_or_nothing(model: nn.Module) -> Iterator[None]:
    """With ``assign=True`` tensors are exchanged, not written to: the former ones come back."""
    before: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for module in model.modules():
        before += [(each, dict(each)) for each in (module._parameters, module._buffers)]
    try:
        yield
    except BaseException:
        for live, former in before:
            live.clear()
            live.update(former)
        raise
