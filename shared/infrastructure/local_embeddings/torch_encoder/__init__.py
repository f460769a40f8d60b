"""A BERT encoder of our own under torch: no padding, on a CPU and on CUDA.

It needs nothing but torch and numpy, and reads safetensors itself, so that it runs in an image that
has no more than those two.
"""

from shared.infrastructure.local_embeddings.torch_encoder.architecture import (
    MODEL_TYPES,
    Architecture,
    UnsupportedArchitectureError,
)
from shared.infrastructure.local_embeddings.torch_encoder.model import TorchEncoder
from shared.infrastructure.local_embeddings.torch_encoder.pooling import POOLINGS
from shared.infrastructure.local_embeddings.torch_encoder.safetensors_file import (
    CorruptWeightsError,
    SafetensorsFile,
)

__all__ = [
    "MODEL_TYPES",
    "POOLINGS",
    "Architecture",
    "CorruptWeightsError",
    "SafetensorsFile",
    "TorchEncoder",
    "UnsupportedArchitectureError",
]
