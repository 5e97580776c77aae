"""Fixtures of the tests of lowering."""

from __future__ import annotations

from typing import Any

import pytest

from resfuse.compiler import CompiledGraph


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[CompiledGraph]:
    """The fused graphs that a test makes."""
    made: list[CompiledGraph] = []
    original = CompiledGraph.__init__

    def init(self: CompiledGraph, *args: Any) -> None:
        original(self, *args)
        made.append(self)

    monkeypatch.setattr(CompiledGraph, "__init__", init)
    return made
