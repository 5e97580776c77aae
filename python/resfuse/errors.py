"""Exceptions and warnings of resfuse."""

from __future__ import annotations

from typing import Any


class ResfuseError(Exception):
    """Base class of the exceptions that resfuse defines."""


class UnsupportedModelError(ResfuseError, ValueError):
    """Nothing in a model can be fused; the text says what was looked for and what was found."""

    assumptions: Any = None  # what was read of the model until then
    conditions: Any = ()  # and what was asked of its inputs' sizes


class VerificationError(ResfuseError, AssertionError):
    """A fused model's results are further from fp64 than the tolerance allows."""


class GradientsEnabledWarning(UserWarning):
    """A fused model in eval mode ran block by block, for gradients that nobody may want; the text says what to do."""
