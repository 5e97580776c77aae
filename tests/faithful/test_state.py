"""What is done to modules after they were fused: seen at the next call."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrizations, prune

import resfuse
from tests.faithful.twins import Twins, conv_norm_relu, images

pytestmark = pytest.mark.usefixtures("with_and_without_gradients")

FACTOR = 1.0
SETTINGS = {"double": False}


class Config:
    def __init__(self) -> None:
        self.alpha, self.layers, self.nested = 1.0, ["a", "b"], types.SimpleNamespace(flag=False)


class Helper:
    scale = 1.0


def helper(y: torch.Tensor) -> torch.Tensor:
    return y * FACTOR


class Net(nn.Module):
    """Reads all that a forward may read."""

    kind = "plain"

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv_norm_relu(3, 8), conv_norm_relu(8, 8)
        self.pool = nn.MaxPool2d(2)
        self.act = nn.LeakyReLU(0.1)
        self.drop = nn.Dropout(0.0)
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 4)
        self.alpha, self.mode, self.checkpointing = 1.0, "a", False
        self.order = ["a", "b"]
        self.config = Config()
        self.offset = torch.zeros(1)
        self.register_buffer("gain", torch.ones(8, 1, 1))

    @property
    def doubled(self) -> float:
        return 2 * self.alpha

    def middle(self, y: torch.Tensor) -> torch.Tensor:
        return self.pool(self.act(y))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for name in self.order:
            y = getattr(self, name)(y)
        y = helper(self.middle(y)) * self.gain + self.offset
        if self.mode == "b" or SETTINGS["double"]:
            y = y * 2
        if hasattr(self, "extra"):
            y = y + 1.0
        if self.config.nested.flag or self.kind == "other" or Helper.scale != 1.0:
            y = y - 1.0
        y = y * self.alpha * self.config.alpha * self.doubled
        if self.training and self.checkpointing:
            y = y * 3
        return self.fc(self.drop(self.gap(y)).flatten(1))


def set_to(path: str, name: str, value: Any) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        setattr(model.get_submodule(path) if path else model, name, value)

    return change


def _at(path: str, change: Callable[[nn.Module], Any]) -> Callable[[nn.Module], Any]:
    return lambda model: change(model.get_submodule(path))


def _patch(model: nn.Module) -> None:
    original = model.b[0].forward
    model.b[0].forward = lambda x: original(x) * 2


def _patch_method(model: nn.Module) -> None:
    model.middle = types.MethodType(lambda self, y: self.pool(y) - 1.0, model)


def _patch_root(model: nn.Module) -> None:
    original = model.forward
    model.forward = lambda x: original(x) + 1.0


CHANGES: dict[str, Callable[[nn.Module], Any]] = {
    "stride": set_to("a.0", "stride", (2, 2)),
    "stride as a number": set_to("a.0", "stride", 2),
    "padding": set_to("a.0", "padding", (2, 2)),
    "padding same": set_to("a.0", "padding", "same"),
    "padding same and a stride": lambda m: (setattr(m.a[0], "padding", "same"), setattr(m.a[0], "stride", (2, 2))),
    "padding mode": set_to("a.0", "padding_mode", "reflect"),
    "dilation": set_to("a.0", "dilation", (2, 2)),
    "eps": set_to("a.1", "eps", 0.5),
    "momentum": set_to("a.1", "momentum", 0.9),
    "no momentum": set_to("a.1", "momentum", None),
    "track_running_stats": set_to("a.1", "track_running_stats", False),
    "slope": set_to("act", "negative_slope", 0.9),
    "pool stride": set_to("pool", "stride", 1),
    "pool kernel": set_to("pool", "kernel_size", 3),
    "ceil_mode": set_to("pool", "ceil_mode", True),
    "output_size": set_to("gap", "output_size", (1, 1)),
    "bigger output_size": set_to("gap", "output_size", 2),
    "drop rate": set_to("drop", "p", 0.5),
    "inplace": set_to("a.2", "inplace", True),
    "alpha": set_to("", "alpha", 0.25),
    "mode": set_to("", "mode", "b"),
    "checkpointing": set_to("", "checkpointing", True),
    "order": set_to("", "order", ["a"]),
    "order changed": lambda m: m.order.append("b"),
    "config": lambda m: setattr(m.config, "alpha", 0.5),
    "nested config": lambda m: setattr(m.config.nested, "flag", True),
    "another config": lambda m: setattr(m, "config", types.SimpleNamespace(alpha=2.0, nested=m.config.nested)),
    "plain tensor": lambda m: setattr(m, "offset", torch.ones(1)),
    "plain tensor in place": lambda m: m.offset.add_(1.0),
    "buffer": lambda m: setattr(m, "gain", torch.full((8, 1, 1), 2.0)),
    "buffer in place": lambda m: m.gain.mul_(2.0),
    "new attribute": set_to("", "extra", 1),
    "deleted module": lambda m: delattr(m, "fc"),
    "replaced by identity": set_to("b", "1", nn.Identity()),
    "replaced activation": set_to("a", "2", nn.SiLU()),
    "group norm": set_to("a", "1", nn.GroupNorm(2, 8)),
    "appended": lambda m: m.a.append(nn.Conv2d(8, 8, 1)),
    "inserted": lambda m: m.a.insert(1, nn.Conv2d(8, 8, 1)),
    "added module that nobody calls": lambda m: m.add_module("more", nn.Linear(2, 2)),
    "shared": lambda m: setattr(m, "b", nn.Sequential(m.b[0], m.a[1], m.a[2])),
    "wrong channels": set_to("b", "0", nn.Conv2d(5, 8, 3)),
    "no weight": lambda m: setattr(m.b[1], "weight", None),
    "no bias": lambda m: setattr(m.b[1], "bias", None),
    "no running mean": lambda m: setattr(m.b[1], "running_mean", None),
    "no running statistics": lambda m: (setattr(m.b[1], "running_mean", None), setattr(m.b[1], "running_var", None)),
    "a bias of the convolution": lambda m: setattr(m.a[0], "bias", nn.Parameter(torch.ones(8))),
    "double weight": lambda m: m.a[0].double(),
    "shorter weight": lambda m: setattr(m.b[0], "weight", nn.Parameter(torch.randn(6, 8, 3, 3))),
    "bigger kernel": lambda m: setattr(m.b[0], "weight", nn.Parameter(torch.ones(8, 8, 5, 5))),
    "weight as plain attribute": lambda m: (delattr(m.a[0], "weight"), setattr(m.a[0], "weight", torch.ones(8, 3, 3, 3))),
    "channels_last": lambda m: m.to(memory_format=torch.channels_last),
    "train of one": _at("a.1", lambda m: m.train(not m.training)),
    "patched forward": _patch,
    "patched method": _patch_method,
    "patched root": _patch_root,
    "replaced class": lambda m: setattr(m.act, "__class__", nn.ELU) or setattr(m.act, "alpha", 1.0),
    "weight norm": lambda m: parametrizations.weight_norm(m.b[0]),
    "old weight norm": lambda m: nn.utils.weight_norm(m.b[0]),
    "orthogonal": lambda m: parametrizations.orthogonal(m.fc),
    "pruned": lambda m: prune.l1_unstructured(m.a[0], "weight", 0.5),
    "frozen": lambda m: m.a.requires_grad_(False),
    "half": lambda m: m.half(),
    "compiled part": lambda m: m.a.register_forward_hook(lambda *args: None),
}  # fmt: skip


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", CHANGES)
def test_changes_are_seen_at_the_next_call(name: str, training: bool) -> None:
    torch.manual_seed(0)
    twins = Twins(Net().train(training))
    twins.call(images(), backward=training)
    with torch.no_grad():
        torch.manual_seed(1)
        CHANGES[name](twins.plain)
        torch.manual_seed(1)
        CHANGES[name](twins.fused)
    for _ in range(2):
        twins.call(images(), backward=training)
    twins.do(lambda m: m.train(not training)).call(images())


@pytest.mark.parametrize("target", ["global", "dictionary", "class", "class attribute", "helper", "torch's function"])
def test_globals_and_classes_that_forward_reads(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    twins = Twins(Net().eval())
    twins.call(images())
    here = "tests.faithful.test_state"
    if target == "global":
        monkeypatch.setattr(f"{here}.FACTOR", 3.0)
    elif target == "dictionary":
        monkeypatch.setitem(SETTINGS, "double", True)
    elif target == "class":
        monkeypatch.setattr(Net, "middle", lambda self, y: self.pool(y) * 5.0)
    elif target == "class attribute":
        monkeypatch.setattr(Net, "kind", "other")
        monkeypatch.setattr(Helper, "scale", 2.0)
    elif target == "helper":
        monkeypatch.setattr(f"{here}.helper", lambda y: y + 7.0)
    else:
        original = F.leaky_relu
        monkeypatch.setattr(F, "leaky_relu", lambda *args, **kwargs: original(*args, **kwargs) * 2.0)
    twins.call(images())
    monkeypatch.undo()
    twins.call(images())


def test_forward_patched_on_a_class(monkeypatch: pytest.MonkeyPatch) -> None:
    twins = Twins(Net().eval())
    twins.call(images())
    for kind in (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.AdaptiveAvgPool2d, Net):
        original = kind.forward
        monkeypatch.setattr(kind, "forward", lambda self, x, original=original: original(self, x) * 2.0 + 1.0)
        if kind is not Net:  # the fused class has a forward of its own, which runs Net's
            twins.call(images())
        monkeypatch.undo()
        twins.call(images())


def test_toggling_keeps_both_graphs() -> None:
    fast = resfuse.fuse(Net().eval())
    with torch.no_grad():
        for i in range(40):
            fast.alpha = float(i % 2)
            fast(images())
    assert fast.fusion().graphs._lowerings <= 2
    assert resfuse.report(fast).native_calls == 0


def test_state_that_never_stays_runs_natively() -> None:
    fast, plain = resfuse.fuse(Net().eval()), Net().eval()
    plain.load_state_dict(fast.state_dict())
    with torch.no_grad():
        for i in range(120):
            fast.alpha = plain.alpha = float(i)
            torch.testing.assert_close(fast(images()), plain(images()), rtol=1e-3, atol=1e-2)
    report = resfuse.report(fast)
    assert "alpha" in str(report.last_native_reason)
    assert report.native_calls > 50


class Hooks:
    """Registers hooks that write down what they see."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.seen, self.handles = model, [], []

    def note(self, what: str, *values: Any) -> None:
        for value in values:
            for tensor in value if isinstance(value, tuple) else (value,):
                if isinstance(tensor, torch.Tensor):
                    self.seen.append(
                        (what, tuple(tensor.shape), tensor.stride(), round(float(tensor.double().sum()), 2))
                    )

    def add(self, kind: str, path: str) -> None:
        module = self.model.get_submodule(path)
        if kind == "forward":
            handle = module.register_forward_hook(lambda m, a, y: self.note(kind, a, y))
        elif kind == "changing":
            handle = module.register_forward_hook(lambda m, a, y: y * 2)
        elif kind == "pre":
            handle = module.register_forward_pre_hook(lambda m, a: self.note(kind, a))
        elif kind == "pre with keywords":
            handle = module.register_forward_pre_hook(lambda m, a, k: (self.note(kind, a), None)[1], with_kwargs=True)
        elif kind == "full backward":
            handle = module.register_full_backward_hook(lambda m, i, o: self.note(kind, tuple(t.abs() for t in o)))
        elif kind == "backward pre":
            handle = module.register_full_backward_pre_hook(lambda m, o: self.note(kind, tuple(t.abs() for t in o)))
        else:
            handle = torch_module.register_module_forward_hook(
                lambda m, a, y: self.note(kind, y) if m in set(self.model.modules()) else None
            )
        self.handles.append(handle)


@pytest.mark.parametrize("path", ["", "a", "a.0", "b.1", "gap", "fc"])
@pytest.mark.parametrize(
    "kind", ["forward", "changing", "pre", "pre with keywords", "full backward", "backward pre", "global"]
)
def test_hooks_of_every_kind(kind: str, path: str) -> None:
    twins = Twins(Net().train())
    twins.call(images(), backward=True)
    hooks = [Hooks(model) for model in (twins.plain, twins.fused)]
    for registered in hooks:
        registered.add(kind, path)
    twins.call(images(), backward=True)
    assert len(hooks[0].seen) == len(hooks[1].seen)
    runs = torch.is_grad_enabled() or "backward" not in kind
    assert bool(hooks[0].seen) == (runs and kind != "changing")
    for theirs, ours in zip(sorted(hooks[0].seen), sorted(hooks[1].seen), strict=True):
        assert ours[:3] == theirs[:3]
        assert ours[3] == pytest.approx(theirs[3], rel=2e-2, abs=0.5)
    for registered in hooks:
        registered.handles[0].remove()
    twins.call(images(), backward=True)
    assert resfuse.report(twins.fused).native == resfuse.report(resfuse.fuse(Net().train())).native


def test_state_dict_hooks_work_as_they_did() -> None:
    fast = resfuse.fuse(Net().eval())
    seen: list[str] = []
    fast.a.register_state_dict_post_hook(lambda module, state, prefix, meta: seen.append(prefix))
    fast.a.register_load_state_dict_post_hook(lambda module, keys: seen.append("loaded"))
    fast.load_state_dict(fast.state_dict())
    assert seen == ["a.", "loaded"]
    with torch.no_grad():
        fast(images())
    assert resfuse.report(fast).native_calls == 0
