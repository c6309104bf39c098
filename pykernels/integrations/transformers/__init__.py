"""Models of Hugging Face ``transformers`` on the kernels; needs ``pykernels[transformers]``."""

from pykernels.integrations.transformers.acceleration import Acceleration, accelerate_model
from pykernels.integrations.transformers.checkpoint import load_checkpoint
from pykernels.integrations.transformers.latent_cache import LatentCache
from pykernels.integrations.transformers.survey import Left, Replaced

__all__ = [
    "Acceleration",
    "LatentCache",
    "Left",
    "Replaced",
    "accelerate_model",
    "load_checkpoint",
]
