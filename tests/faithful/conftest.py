"""What tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(params=["gradients", "no_grad"])
def with_and_without_gradients(request: pytest.FixtureRequest) -> Iterator[None]:
    """Without gradients calls run whole programs, and begin before it is known that nothing has changed."""
    with torch.set_grad_enabled(request.param == "gradients"):
        yield
