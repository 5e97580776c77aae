"""resfuse: fused residual blocks and global average pooling. ResNets on CPUs, faster, with the same numbers."""

# torch comes first: its OpenMP runtime must be the one that the core finds loaded.
import torch  # noqa: F401  # isort: skip

from resfuse import models, nn
from resfuse.errors import GradientsEnabledWarning, ResfuseError, UnsupportedModelError, VerificationError
from resfuse.fused.fuse import fuse
from resfuse.fused.refresh import refresh
from resfuse.inspect.class_activation_map import class_activation_map
from resfuse.inspect.profile import Profile, profile
from resfuse.inspect.report import Report, report
from resfuse.inspect.verify import Verification, verify
from resfuse.quantization.quantize import quantize
from resfuse.runtime.gil import require_gil

require_gil()

__version__ = "0.1.0"

__all__ = [
    "GradientsEnabledWarning",
    "Profile",
    "Report",
    "ResfuseError",
    "UnsupportedModelError",
    "Verification",
    "VerificationError",
    "class_activation_map",
    "fuse",
    "models",
    "nn",
    "profile",
    "quantize",
    "refresh",
    "report",
    "verify",
]
