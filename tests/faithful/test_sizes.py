"""Code that asks for its inputs' sizes while it runs: branches, checks that raise, parts by number."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import resfuse
from tests.faithful.twins import Twins, conv_norm_relu


class Branches(nn.Module):
    """Another path for wide images, and for batches of several."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.wide = conv_norm_relu(3, 8), conv_norm_relu(3, 8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[-2:]
        y = self.wide(x) if width > height * 2 else self.small(x)
        return y * 2 if x.size(0) > 1 and x.dim() == 4 else y


class Checks(nn.Module):
    """As segmentation-models-pytorch does."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = conv_norm_relu(3, 8, 2), conv_norm_relu(11, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[-2:]
        if height % 2 != 0 or width % 2 != 0:
            raise RuntimeError(f"height={height}, width={width} are not even")
        y = F.interpolate(self.down(x), size=(height, width), mode="nearest")
        return self.up(torch.cat([x, y], 1))


class Parts(nn.Module):
    """Lists of parts, as YOLO's blocks keep them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = conv_norm_relu(3, 8), conv_norm_relu(4, 4), conv_norm_relu(12, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = list(self.first(x).chunk(2, 1))
        y.append(self.second(y[-1]))
        return self.last(torch.cat(y, 1))


@torch.no_grad()
def test_branches_follow_sizes() -> None:
    twins = Twins(Branches().eval())
    for shape in [(1, 8, 8), (1, 8, 20), (2, 8, 8), (2, 8, 20), (1, 8, 8), (2, 8, 20)] * 2:
        twins.call(torch.randn(shape[0], 3, *shape[1:]))
    report = resfuse.report(twins.fused)
    assert report.native_calls == 0
    assert twins.fused.fusion().graphs._lowerings <= 4


def test_branches_follow_sizes_in_training() -> None:
    twins = Twins(Branches().train())
    for size in (8, 20, 8):
        twins.call(torch.randn(2, 3, 8, size, requires_grad=True), backward=True)


@torch.no_grad()
def test_checks_of_sizes_raise_as_they_did() -> None:
    twins = Twins(Checks().eval())
    twins.call(torch.randn(1, 3, 8, 12))
    with pytest.raises(RuntimeError, match="height=7, width=12 are not even"):
        twins.fused(torch.randn(1, 3, 7, 12))
    twins.call(torch.randn(1, 3, 6, 4))
    assert not resfuse.report(twins.fused).native


@torch.no_grad()
def test_lists_of_parts_are_one_program() -> None:
    twins = Twins(Parts().eval())
    twins.call(torch.randn(2, 3, 9, 7))
    report = resfuse.report(twins.fused)
    assert not report.native
    assert [row.what for row in report.rows if "conc" in row.what] == ["concatenate 2"]


@torch.no_grad()
def test_sizes_under_compile() -> None:
    """Dynamo guards sizes itself."""
    twins = Twins(Branches().eval())
    compiled = torch.compile(twins.fused, backend="eager")
    for width in (8, 20):
        x = torch.randn(1, 3, 8, width)
        torch.testing.assert_close(compiled(x), twins.plain(x), rtol=1e-3, atol=1e-4)
