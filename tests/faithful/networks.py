"""Small networks of the kinds that users write."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tests.faithful.twins import conv_norm_relu

CHANNELS = 6
Pair = namedtuple("Pair", "first second")


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(CHANNELS)
        self.conv2, self.bn2 = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(CHANNELS)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x
        return self.relu(y)


class PreActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(CHANNELS), nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.relu(self.norm(x))) + x


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.gate = conv_norm_relu(CHANNELS, CHANNELS), nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.alpha = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        return y * torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True))) * self.alpha + x


class Optional(nn.Module):
    """Branches on arguments and on attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.mode = conv_norm_relu(CHANNELS, CHANNELS), "a"

    def forward(self, x: torch.Tensor, extra: Any = None, *, double: bool = False) -> torch.Tensor:
        y = self.body(x)
        if isinstance(extra, torch.Tensor):
            y = y + extra
        elif extra is not None:
            y = y * extra
        if double or self.mode == "b":
            y = y * 2
        return y


class Keeps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv_norm_relu(CHANNELS, CHANNELS), conv_norm_relu(CHANNELS, CHANNELS)
        self.features: Any = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        self.features = y
        return self.second(y)


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.calls = conv_norm_relu(CHANNELS, CHANNELS), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.body(x) + (0.5 if self.calls % 2 else 0.0)


class Groups(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=2), nn.GroupNorm(2, CHANNELS)
        self.drop = nn.Dropout(0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(F.silu(self.norm(self.conv(x)))) + x.mean(1, keepdim=True)


class Views(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        n, c, h, w = y.shape
        y = y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.last(y) + y.view(n, -1).mean(1).view(n, 1, 1, 1)


class UpAndDown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.join = conv_norm_relu(CHANNELS, CHANNELS, 2), nn.Conv2d(2 * CHANNELS, CHANNELS, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.interpolate(self.down(x), size=x.shape[2:])
        return self.join(torch.cat([x, y], 1))


class Parts(nn.Module):
    """Parts that are joined again, one of which leaves; channels as the last dimension; a question about sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.part = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), conv_norm_relu(CHANNELS // 2, CHANNELS // 2)
        self.norm, self.mix = nn.LayerNorm(CHANNELS), nn.Linear(CHANNELS, CHANNELS)
        self.gamma = nn.Parameter(torch.full((CHANNELS,), 0.5))
        self.kept: Any = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(F.pad(x, (1, 0, 0, 1)))[:, :, :-1, 1:] if x.shape[-1] > 7 else self.conv(x)
        first, second = y.chunk(2, 1)
        self.kept = first
        y = torch.cat([self.part(second), first], 1) * x
        return x + (self.gamma * F.gelu(self.mix(self.norm(y.permute(0, 2, 3, 1))))).permute(0, 3, 1, 2)


class Frozen(nn.Module):
    """A part without gradients, and a detached one."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.last = conv_norm_relu(CHANNELS, CHANNELS), conv_norm_relu(CHANNELS, CHANNELS)
        self.part.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            y = self.part(x)
        return self.last(y) + self.last(x.detach())


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    kind.__name__: kind
    for kind in (Residual, PreActivation, Gate, Optional, Keeps, Counts, Groups, Views, UpAndDown, Parts, Frozen)
}


class Network(nn.Module):
    """A stem, blocks of which one may be there twice, and a head; ``form`` says what it returns."""

    def __init__(self, blocks: list[str], shared: bool, form: str, inplace: bool) -> None:
        super().__init__()
        self.stem = conv_norm_relu(3, CHANNELS)
        self.blocks = nn.ModuleList([BLOCKS[name]() for name in blocks])
        if shared:
            self.blocks.append(self.blocks[0])
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(CHANNELS, 4)
        self.form, self.inplace, self.skip = form, inplace, False

    def forward(self, x: torch.Tensor, extra: Any = None, scale: float | None = None) -> Any:
        if self.inplace:
            x -= 0.5
        y = self.stem(x)
        for block in self.blocks:
            if self.skip and isinstance(block, Residual):
                continue
            y = block(y, extra) if isinstance(block, Optional) else block(y)
        if scale is not None:
            y = y * scale
        if self.form == "map":
            return y
        logits = self.fc(self.pool(y).flatten(1))
        if self.form == "both":
            return {"out": logits, "features": y}
        return Pair(logits, (y, x)) if self.form == "pair" else logits
