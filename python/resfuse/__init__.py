"""resfuse: fused residual blocks and global average pooling. ResNets on CPUs, faster, with the same numbers."""

# torch comes first: its OpenMP runtime must be the one that the core finds loaded.
import torch  # noqa: F401  # isort: skip

from resfuse import models, nn
from resfuse.cam import class_activation_map
from resfuse.errors import GradientsEnabledWarning, ResfuseError, UnsupportedModelError, VerificationError
from resfuse.fuse import fuse
from resfuse.gil import require_gil
from resfuse.profile import Profile, profile
from resfuse.refresh import refresh
from resfuse.report import Report, report
from resfuse.verify import Verification, verify

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
    "refresh",
    "report",
    "verify",
]
