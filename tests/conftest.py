"""Shared fixtures."""

from __future__ import annotations

import os

# Before torch brings OpenMP: tests of more threads than cores, or beside other tests, would wait for threads that spin.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import hypothesis
import pytest
import torch

import resfuse  # noqa: F401
from resfuse import _core

hypothesis.settings.register_profile("resfuse", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("resfuse")


def examples(count: int) -> int:
    """How many examples a test takes: of so many, the share RESFUSE_EXAMPLES; sanitizers are slow and need fewer."""
    return max(round(count * float(os.environ.get("RESFUSE_EXAMPLES", "1"))), 1)


ISAS = _core.available_isas()


@pytest.fixture(autouse=True)
def _fixed_state():
    """Every test starts from the same random numbers and two threads."""
    torch.manual_seed(0)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(2)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    """Each instruction-set level that this CPU has."""
    return request.param
