"""The public names that need torch; `resfuse/__init__.py` hands them on."""

# torch comes first: its OpenMP runtime must be the one that the core finds loaded.
import torch  # noqa: F401  # isort: skip

from resfuse import models, nn
from resfuse.deploy.load import load
from resfuse.deploy.save import save
from resfuse.engine.gil import require_gil
from resfuse.errors import GradientsEnabledWarning, ResfuseError, UnsupportedModelError, VerificationError
from resfuse.fused.fuse import fuse
from resfuse.fused.refresh import refresh
from resfuse.inspect.class_activation_map import class_activation_map
from resfuse.inspect.profile import Profile, profile
from resfuse.inspect.report import Report, report
from resfuse.inspect.verify import Verification, verify
from resfuse.quantization.quantize import quantize
from resfuse.runtime.preprocessing import Preprocessing

require_gil()

__all__ = [
    "GradientsEnabledWarning",
    "Preprocessing",
    "Profile",
    "Report",
    "ResfuseError",
    "UnsupportedModelError",
    "Verification",
    "VerificationError",
    "class_activation_map",
    "fuse",
    "load",
    "models",
    "nn",
    "profile",
    "quantize",
    "refresh",
    "report",
    "save",
    "verify",
]
