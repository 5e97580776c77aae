"""Results cannot be told from torch's: memory formats, types, aliasing, storages."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import resfuse
from resfuse.layers.same import Conv2dSame
from tests.faithful.twins import Twins, conv_norm_relu, images


class Layers(nn.Module):
    """Layers one after the other, each of whose results is returned."""

    def __init__(self, layers: list[nn.Module], gate: bool) -> None:
        super().__init__()
        self.layers, self.gate = nn.ModuleList(layers), gate

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        results = []
        for layer in self.layers:
            y = layer(x)
            if isinstance(layer, nn.BatchNorm2d) and self.gate:
                y = y * torch.sigmoid(y.mean((2, 3), keepdim=True)) + y
            results.append(y)
            x = y
        return results


@st.composite
def layer_lists(draw: st.DrawFn) -> tuple[list[nn.Module], tuple[int, int, int]]:
    channels, height, width = draw(st.sampled_from([1, 2, 5])), draw(st.integers(1, 6)), draw(st.integers(1, 6))
    shape = channels, height, width
    layers: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["conv", "one", "same", "norm", "relu", "max", "avg", "gap", "silu"]))
        if kind in ("conv", "one", "same"):
            outputs = draw(st.sampled_from([1, 3, 4]))
            layers.append(
                nn.Conv2d(channels, outputs, 3, draw(st.sampled_from([1, 2])), 1, bias=False) if kind == "conv"
                else Conv2dSame(channels, outputs, 3, 2) if kind == "same" else nn.Conv2d(channels, outputs, 1)
            )  # fmt: skip
            channels = outputs
        else:
            layers.append({
                "norm": partial(nn.BatchNorm2d, channels), "relu": nn.ReLU, "silu": nn.SiLU,
                "max": lambda: nn.MaxPool2d(3, 2, 1), "avg": lambda: nn.AvgPool2d(3, 2, 1),
                "gap": lambda: nn.AdaptiveAvgPool2d(1),
            }[kind]())  # fmt: skip
    return [*layers, nn.Conv2d(channels, 4, 3, padding=1)], shape


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "every second row": lambda x: torch.cat([x, x], 2)[:, :, ::2],
    "channels_last, every second row": lambda x: torch.cat([x, x], 2).to(memory_format=torch.channels_last)[:, :, ::2],
    "one image for all": lambda x: x[:1].expand_as(x),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "channels of another": lambda x: torch.cat([x, x], 1)[:, ::2],
    "backwards": lambda x: torch.randn(*x.shape, dtype=torch.complex64).conj().imag,
}


@given(layer_lists(), st.integers(1, 3), st.sampled_from(list(LAYOUTS)), st.booleans(), st.booleans(), st.booleans())
@settings(max_examples=300, derandomize=True, deadline=None)
def test_memory_formats_are_torchs(
    case: tuple[list[nn.Module], tuple[int, int, int]], batch: int, layout: str, weights: bool, gate: bool, grad: bool
) -> None:
    layers, shape = case
    model = Layers(layers, gate).eval()
    if weights:
        model = model.to(memory_format=torch.channels_last)
    try:
        twins = Twins(model)
    except resfuse.UnsupportedModelError:
        return
    twins.call(LAYOUTS[layout](torch.randn(batch, *shape, generator=torch.Generator().manual_seed(1))), backward=grad)


class Tells(nn.Module):
    """Its code can tell which memory format a feature map has."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b, self.how = conv_norm_relu(3, 8), conv_norm_relu(8, 8), how
        self.up = nn.Upsample(scale_factor=2)

    def forward(self, x: torch.Tensor) -> Any:
        y = self.a(x)
        if self.how == "view":
            return y.view(y.size(0), -1), self.b(y)
        if self.how == "view of two":
            return (y + y).view(y.size(0), -1), torch.cat([self.up(y), self.up(self.b(y))], 1).view(-1)
        if self.how == "stride":
            return y.stride(), self.b(y)
        if self.how == "is_contiguous":
            return y.is_contiguous(), self.b(y)
        if self.how == "as_strided":
            return y.as_strided((4, 4), (4, 1)), self.b(y)
        if self.how == "flatten":
            flat = y.flatten(1)
            flat += 1.0
            return flat, y
        if self.how == "reshape":
            z = y.reshape(y.shape[0], -1)
            z.mul_(2.0)
            return self.b(y)
        if self.how == "contiguous":
            z = y.contiguous()
            z += 1.0
            return self.b(y), z
        if self.how == "permute":
            return self.b(y.permute(0, 1, 3, 2)), y.permute(0, 2, 3, 1), y[:, ::2], y.transpose(1, 2)
        if self.how == "shuffle":
            n, c, h, w = y.shape
            return self.b(y.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w))
        if self.how == "dropout":
            return self.b(F.dropout(y, 0.5, True))
        if self.how == "like":
            return self.b(y + torch.randn_like(y) + torch.empty_like(y).fill_(1.0)), torch.zeros_like(y)
        if self.how == "unfold":
            return F.unfold(y, 3), F.pixel_shuffle(y, 2), F.pixel_unshuffle(y, 2), F.fold(F.unfold(y, 2), (16, 16), 2)
        if self.how == "where":
            return torch.where(y > 0.5, y, -y), y.clamp(0, 1), y.abs(), y.sum(1), y.mean((2, 3), keepdim=True), y.max(1)
        if self.how == "stack":
            return torch.stack([y, self.b(y)]), torch.cat([y, self.b(y)], 1), y.split(4, 1), y.chunk(2, 0)
        if self.how == "norms":
            return F.layer_norm(y, y.shape[1:]), F.instance_norm(y), F.group_norm(y, 2), F.normalize(y, dim=1)
        if self.how == "resize":
            up = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)
            return (
                up,
                F.interpolate(y, size=(5, 7)),
                F.adaptive_avg_pool2d(y, 3),
                F.adaptive_max_pool2d(y, 2),
                F.pad(y, (1, 2)),
            )
        if self.how == "clone":
            return y.clone(), y.detach(), y.to(torch.float64), y.float(), y.data
        return y.numpy(force=True).sum() > -1e9, y.tolist()[0][0][0][0] < 1e9


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    "how",
    ["view", "view of two", "stride", "is_contiguous", "as_strided", "flatten", "reshape", "contiguous", "permute",
     "shuffle", "dropout", "like", "unfold", "where", "stack", "norms", "resize", "clone", "numpy"],
)  # fmt: skip
def test_code_that_can_tell(how: str, layout: str, training: bool) -> None:
    twins = Twins(Tells(how).train(training))
    x = LAYOUTS[layout](images())
    twins.call(x)
    if how not in ("flatten", "reshape", "contiguous", "numpy", "stride", "is_contiguous"):
        twins.call(x, backward=True)


class Tagged(torch.Tensor):
    """A subclass without data of its own."""

    def __deepcopy__(self, memo: Any) -> Tagged:
        return self.clone().as_subclass(Tagged)


def test_tensor_subclasses_stay_what_they_are() -> None:
    twins = Twins(nn.Sequential(conv_norm_relu(3, 8), conv_norm_relu(8, 8)).eval())
    assert type(twins.call(images().as_subclass(Tagged))) is Tagged
    assert type(twins.call(nn.Parameter(images()))) is torch.Tensor
    twins.call(images().requires_grad_())


def test_aliases_of_results() -> None:
    class Aliases(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.pool = conv_norm_relu(3, 8), nn.AdaptiveAvgPool2d(1)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            y = self.pool(self.a(x))
            return x, y, y.flatten(1), y, self.a[0].weight

    model = Aliases().eval()
    fast = resfuse.fuse(model)
    x = images()
    with torch.no_grad():
        for m in (model, fast):
            same, pooled, flat, again, weight = m(x)
            assert same is x
            assert again is pooled
            assert flat.data_ptr() == pooled.data_ptr()
            assert weight is m.a[0].weight


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_storages_of_inputs_and_outputs_can_be_resized(layout: str, training: bool) -> None:
    fast = resfuse.fuse(nn.Sequential(conv_norm_relu(3, 8), conv_norm_relu(8, 8)).train(training))
    x = torch.empty(0)
    torch.cat([images()], out=x)
    x = LAYOUTS[layout](x)
    with torch.set_grad_enabled(training):
        y = fast(x)
    if training:
        y.sum().backward()
        y = y.detach()
    for tensor in (x, y):
        tensor.untyped_storage().resize_(4 * tensor.numel() * 2)
    buffer = torch.empty(0)
    torch.cat([images()], out=buffer)
    with torch.no_grad():
        fast(buffer)
    buffer.resize_(0)
    torch.cat([images(), images()], out=buffer)


def test_outputs_of_a_model_are_new_at_each_call() -> None:
    fast = resfuse.fuse(nn.Sequential(conv_norm_relu(3, 8)).eval())
    with torch.no_grad():
        first = fast(images())
        kept = first.clone()
        second = fast(images(seed=4))
    assert first.data_ptr() != second.data_ptr()
    assert torch.equal(first, kept)


def test_copies_of_a_fused_model_answer_alike() -> None:
    twins = Twins(Tells("view").eval())
    twins.fused = copy.deepcopy(twins.fused)
    twins.call(images())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_empty_batches(training: bool, memory_format: torch.memory_format) -> None:
    """Their strides follow rules of their own."""
    torch.manual_seed(0)
    plain = nn.Sequential(conv_norm_relu(3, 8), conv_norm_relu(8, 8)).to(memory_format=memory_format).train(training)  # type: ignore[call-overload]
    fast = resfuse.fuse(copy.deepcopy(plain))
    for x in (
        torch.ones(0, 3, 8, 8),
        torch.ones(0, 3, 8, 8).to(memory_format=memory_format),
        torch.ones(0, 3, 9, 8)[:, :, :-1],
    ):
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                results = []
                for model in (plain, fast):
                    try:
                        y = model(x)
                        results.append((y.shape, y.stride(), y.requires_grad))
                    except Exception as error:
                        results.append(type(error))
            assert results[0] == results[1]


class Summed(nn.Module):
    """Programs before and after a native module and a sum, which hands its gradient's memory format on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop = nn.Conv2d(3, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.Dropout(0.0)
        self.second = nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.drop(F.silu(self.norm(self.first(x))))
        return self.second(torch.tanh(y + x.mean(1, keepdim=True)))


def test_hooks_see_gradients_in_torchs_memory_format_through_native_nodes() -> None:
    twins = Twins(Summed())
    seen: list[list[Any]] = [[], []]
    for model, notes in zip((twins.plain, twins.fused), seen, strict=True):
        model.drop.register_full_backward_pre_hook(lambda _, grads, notes=notes: notes.append(grads[0].stride()))
        model.norm.register_full_backward_hook(lambda _, grads, out, notes=notes: notes.append(out[0].stride()))
    twins.call(images().requires_grad_(), backward=True)
    assert seen[0] == seen[1]
