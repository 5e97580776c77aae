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


class Skips(nn.Module):
    """As many U-Nets do: what came up is padded where it is not as large as what it joins."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.middle, self.up = conv_norm_relu(3, 8), conv_norm_relu(8, 8, 2), conv_norm_relu(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = self.down(x)
        y = F.interpolate(self.middle(skip), scale_factor=2.0, mode="nearest")
        if y.shape[2:] != skip.shape[2:]:
            y = y[:, :, : skip.shape[2], : skip.shape[3]]
        return self.up(torch.cat([skip, y], 1))


class Anchors(nn.Module):
    """A detector's head, which keeps what depends on the size of its feature map alone."""

    def __init__(self) -> None:
        super().__init__()
        self.boxes, self.scores = conv_norm_relu(8, 4), conv_norm_relu(8, 6)
        self.shape: torch.Size | None = None
        self.anchors = torch.empty(0)
        self.made = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        boxes = self.boxes(x).flatten(2)
        scores = self.scores(x).flatten(2)
        if self.shape != x.shape:
            self.anchors = torch.arange(x.shape[2] * x.shape[3], dtype=torch.float32)
            self.shape = x.shape
            self.made += 1
        return torch.cat([boxes * self.anchors, scores.sigmoid()], 1)


@torch.no_grad()
def test_sizes_of_feature_maps_inside() -> None:
    twins = Twins(Skips().eval())
    for size in (8, 9, 12, 9, 8):
        twins.call(torch.randn(2, 3, size, size))
    report = resfuse.report(twins.fused)
    assert report.native_calls == 0
    assert not report.native
    assert twins.fused.fusion().graphs._lowerings == 1  # for the odd sizes


def test_sizes_of_feature_maps_inside_in_training() -> None:
    twins = Twins(Skips().train())
    for size in (8, 9):
        twins.call(torch.randn(2, 3, size, size, requires_grad=True), backward=True)


@torch.no_grad()
def test_heads_that_keep_what_sizes_ask_for() -> None:
    """A call that makes anchors runs the head natively; the next one of that size is one program again."""
    twins = Twins(nn.Sequential(conv_norm_relu(3, 8, 2), Anchors()).eval())
    for size in (8, 8, 8, 12, 12, 12, 8, 8, 8):
        twins.call(torch.randn(1, 3, size, size))
        head, own = twins.fused[1], twins.plain[1]
        assert (head.made, head.shape) == (own.made, own.shape)
        assert torch.equal(head.anchors, own.anchors)
    report = resfuse.report(twins.fused)
    assert report.native_calls == 0
    assert sum("conv" in row.what for row in report.fused) == 3
    assert len(twins.fused.fusion().binding.programs) == 1  # what is native between its layers waits for them
    resfuse.verify(twins.plain, twins.fused, torch.randn(1, 3, 8, 8))
    resfuse.verify(twins.plain, twins.fused, torch.randn(2, 3, 10, 10))


@torch.no_grad()
def test_code_that_counts_its_calls_is_not_traced_in_each() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.calls = conv_norm_relu(8, 8), 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return self.body(x)

    twins = Twins(nn.Sequential(conv_norm_relu(3, 8), Counts(), conv_norm_relu(8, 8)).eval())
    for call in range(20):
        twins.call(torch.randn(1, 3, 8, 8))
        assert twins.fused[1].calls == call + 1
    assert twins.fused.fusion().graphs._lowerings <= 4
    assert resfuse.report(twins.fused).native_calls == 0


@torch.no_grad()
def test_hooks_are_not_called_for_sizes() -> None:
    twins = Twins(Skips().eval())
    calls: list[int] = []
    for model in (twins.plain, twins.fused):
        model.middle.register_forward_hook(lambda *_: calls.append(1))
    twins.call(torch.randn(2, 3, 9, 9))
    twins.call(torch.randn(2, 3, 9, 9))
    assert len(calls) == 4
