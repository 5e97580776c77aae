"""Models that `resfuse.save` has written, run with NumPy alone: nothing here imports torch.

The package ``resfuse-runtime`` holds the same under the name ``resfuse_runtime``.
"""

from .images import read_image
from .library import ModelError, isa, version
from .model import Input, Model, load
from .preprocessing import Preprocessing

__all__ = ["Input", "Model", "ModelError", "Preprocessing", "isa", "load", "read_image", "version"]
