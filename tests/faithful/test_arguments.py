"""Arguments that are no tensors: a graph for each pattern."""

from __future__ import annotations

import enum
from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
from torch import nn

import resfuse
from tests.faithful.twins import Twins, conv_norm_relu, images

pytestmark = pytest.mark.usefixtures("with_and_without_gradients")

Features = namedtuple("Features", "low high")


class Mode(enum.Enum):
    PLAIN = 1
    DOUBLE = 2


class Flexible(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv_norm_relu(3, 8), conv_norm_relu(8, 8)

    def forward(
        self, x: Any, double: Any = None, *more: torch.Tensor, flag: bool = False, scale: float = 1.0,
        mode: Any = Mode.PLAIN, names: Any = ("y",), shift: torch.Tensor | None = None, **rest: Any,
    ) -> Any:  # fmt: skip
        if isinstance(x, (list, tuple)):
            x = torch.cat(list(x), 0)
        if isinstance(x, dict):
            x = x["image"]
        assert isinstance(x, torch.Tensor)
        y = self.b(self.a(x))
        if double is not None:
            y = y * 2 if not isinstance(double, torch.Tensor) else y * double
        for other in more:
            y = y + other
        if flag:
            y = y + 1.0
        if mode is Mode.DOUBLE:
            y = y * 2
        if shift is not None:
            y = y + shift
        y = y * scale
        if "pool" in rest:
            y = y.mean((2, 3))
        if names == ("low", "high"):
            return Features(y, y + 1.0)
        if names == ["dict"]:
            return OrderedDict(out=y, same=y, none=None, number=3)
        return y


x, y = images(), images(2, 8, 16, 16, seed=1)
CALLS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((x,), {}),
    ((x, 1), {}),
    ((x, None), {}),
    ((x, y), {}),
    ((x, None, y), {}),
    ((x, None, y, y), {}),
    ((x,), {"double": 3.0}),
    ((x,), {"flag": True}),
    ((x,), {"flag": 1}),
    ((x,), {"scale": 0.5}),
    ((x,), {"scale": float("nan")}),
    ((x,), {"mode": Mode.DOUBLE}),
    ((x,), {"names": ("low", "high")}),
    ((x,), {"names": ["dict"]}),
    ((x,), {"shift": y}),
    ((x,), {"shift": y[:, :, :1, :1]}),
    ((x,), {"shift": torch.tensor(2.0)}),
    ((x,), {"pool": True}),
    (([x, x],), {}),
    (((x[:1], x[1:]),), {}),
    (({"image": x},), {}),
    ((), {"x": x}),
    ((x,), {"x": x}),
    ((), {}),
    ((None,), {}),
    ((3,), {}),
    (("text",), {}),
]


@pytest.mark.parametrize("training", [False, True])
def test_every_pattern_gets_what_it_asks_for(training: bool) -> None:
    twins = Twins(Flexible().train(training))
    for _ in range(2):
        for args, kwargs in CALLS:
            twins.call(*args, backward=training, **kwargs)


def test_patterns_run_fused_and_are_kept() -> None:
    fast = resfuse.fuse(Flexible().eval())
    with torch.no_grad():
        for _ in range(3):
            for args, kwargs in CALLS[:4]:
                fast(*args, **kwargs)
    report = resfuse.report(fast)
    assert (report.fused_calls, report.native_calls) == (12, 0)
    assert fast.fusion().graphs._lowerings == 3  # and the one of `fuse`


class Own:
    """An object of the user's, with tensors."""

    def __init__(self, tensors: torch.Tensor, double: bool = False) -> None:
        self.tensors, self.double = tensors, double


class TakesObjects(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv_norm_relu(3, 8)

    def forward(self, own: Any) -> torch.Tensor:
        y = self.a(own.tensors if isinstance(own, Own) else own)
        if isinstance(own, Own) and own.double:
            y = y * 2
        return y


def test_objects_are_inputs() -> None:
    twins = Twins(TakesObjects().eval())
    for own in (x, Own(x), Own(x, True), Own(y)):
        twins.call(own)


class SameTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv_norm_relu(3, 3)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x += 1.0
        return self.a(y) + x


@torch.no_grad()
def test_one_tensor_passed_twice() -> None:
    twins = Twins(SameTwice().eval())
    twins.call(images(), images(seed=3))
    z = images()
    same = [model(z.clone().requires_grad_(False), z) for model in (twins.plain, twins.fused)]
    torch.testing.assert_close(*same)
    both = []
    for model in (twins.plain, twins.fused):
        w = z.clone()
        both.append(model(w, w))
    torch.testing.assert_close(*both)


class ChangesArguments(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv_norm_relu(3, 8)

    def forward(self, x: torch.Tensor, seen: list[torch.Tensor]) -> torch.Tensor:
        y = self.a(x)
        seen.append(y)
        return y


def test_lists_that_a_forward_changes() -> None:
    twins = Twins(ChangesArguments().eval())
    for model in (twins.plain, twins.fused):
        seen: list[torch.Tensor] = []
        with torch.no_grad():
            model(x, seen)
        assert [type(item) for item in seen] == [torch.Tensor]
