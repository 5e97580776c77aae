"""Random networks, and random sequences of what users do to them and to their fused copies.

``scripts/state-machine 10000`` runs that many sequences, others each time. ``RESFUSE_MACHINE_PLAIN=1`` compares the plain
model with a plain copy, which must never fail.
"""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import random
import types
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, reject, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrizations, prune
from torch.utils._pytree import tree_flatten

import resfuse
from tests.faithful.networks import BLOCKS, CHANNELS, Network
from tests.faithful.twins import assert_alike

PLAIN = bool(os.environ.get("RESFUSE_MACHINE_PLAIN"))
SEQUENCES = int(os.environ.get("RESFUSE_MACHINE", "200"))

LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "sliced": lambda x: torch.cat([x, x], 3)[:, :, :, ::2],
    "transposed": lambda x: x.transpose(2, 3),
    "cropped": lambda x: torch.cat([x, x], 2)[:, :, 1:-1],
}
SHAPES = [(2, 3, 8, 8), (1, 3, 8, 8), (5, 3, 6, 10), (2, 3, 7, 5), (0, 3, 8, 8), (2, 4, 8, 8), (3, 8, 8), (2, 3, 1, 1)]
ATTRIBUTES: list[tuple[type, str, list[Any]]] = [
    (nn.Conv2d, "stride", [(1, 1), (2, 2), 1]), (nn.Conv2d, "padding", [(1, 1), (0, 0), (2, 1)]),
    (nn.Conv2d, "dilation", [(1, 1), (2, 1)]), (nn.Conv2d, "padding_mode", ["zeros", "circular"]),
    (nn.BatchNorm2d, "eps", [1e-5, 0.1]), (nn.BatchNorm2d, "momentum", [0.1, 0.5, None]),
    (nn.BatchNorm2d, "track_running_stats", [True, False]), (nn.ReLU, "inplace", [True, False]),
    (nn.AdaptiveAvgPool2d, "output_size", [1, (1, 1)]), (BLOCKS["Gate"], "alpha", [1.0, 0.5]),  # type: ignore[list-item]
    (BLOCKS["Optional"], "mode", ["a", "b"]), (Network, "skip", [True, False]),  # type: ignore[list-item]
    (Network, "form", ["map", "both", "pair", "logits"]),
]  # fmt: skip


class Noted:
    """A hook that writes down what it sees, or changes it; as an object of a class, so that models can be pickled."""

    # In a model in channels_last torch's gradients come in either format, as sums of gradients take that of the first.
    notes_formats_of_gradients = True

    def __init__(self, kind: str, seen: list[Any]) -> None:
        self.kind, self.seen = kind, seen

    def __deepcopy__(self, memo: Any) -> Noted:
        return self

    def __reduce__(self) -> Any:
        return Noted, (self.kind, [])

    def __call__(self, module: nn.Module, *values: Any) -> Any:
        tensors = [t for t in tree_flatten(values)[0] if isinstance(t, torch.Tensor)]
        formats = self.notes_formats_of_gradients or not self.kind.startswith("backward")
        self.seen.append(
            (self.kind, [(tuple(t.shape), t.stride() if formats else (), t.dtype, t.requires_grad) for t in tensors])
        )
        if self.kind == "changing":
            return tree_map_first(values[1])
        return None


def tree_map_first(output: Any) -> Any:
    return output * 1.5 if isinstance(output, torch.Tensor) else output


class Faithful(RuleBasedStateMachine):
    """Everything is done to both models; calls compare them."""

    @initialize(
        blocks=st.lists(st.sampled_from(list(BLOCKS)), min_size=1, max_size=3), shared=st.booleans(),
        form=st.sampled_from(["map", "both", "pair", "logits"]), inplace=st.booleans(), training=st.booleans(),
    )  # fmt: skip
    def build(self, blocks: list[str], shared: bool, form: str, inplace: bool, training: bool) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        Noted.notes_formats_of_gradients = True
        plain = Network(blocks, shared, form, inplace).train(training)
        other = copy.deepcopy(plain)
        self.models = [plain, other if PLAIN else resfuse.fuse(other)]
        self.seen: list[list[Any]] = [[], []]
        self.handles: list[list[Any]] = []
        self.dtype = torch.float32

    # Helpers.

    def each(self, change: Callable[[nn.Module], Any]) -> None:
        """The same to both; what fails must fail in the same way."""
        errors = []
        for model in self.models:
            torch.manual_seed(3)
            try:
                with torch.no_grad():
                    change(model)
                errors.append(None)
            except Exception as error:
                errors.append(type(error))
        assert errors[0] is errors[1], errors

    def paths(self, kind: type | tuple[type, ...] = nn.Module) -> list[str]:
        return [
            path for path, m in self.models[0].named_modules(remove_duplicate=False) if path and isinstance(m, kind)
        ]

    def run(self, model: nn.Module, make: Callable[[], tuple[Any, Any]], grad: bool, context: Any = None) -> Any:
        args, kwargs = make()
        random.seed(5)
        np.random.seed(5)
        torch.manual_seed(5)
        model.zero_grad()
        result: Any
        with warnings.catch_warnings(), context() if context else contextlib.nullcontext():
            warnings.simplefilter("ignore")
            with torch.set_grad_enabled(grad):
                try:
                    result = model(*args, **kwargs)
                    leaves = [t for t in tree_flatten(result)[0] if isinstance(t, torch.Tensor) and t.requires_grad]
                    if grad and leaves:
                        sum(
                            (t.double() * torch.linspace(0.5, 1.5, t.numel()).view(t.shape)).sum() for t in leaves
                        ).backward()
                except Exception as error:
                    result = error
        return result, args, torch.get_rng_state()

    def compare(self, make: Callable[[], tuple[Any, Any]], grad: bool, context: Any = None) -> None:
        (plain, plain_args, plain_state), (fused, args, state) = (self.run(m, make, grad, context) for m in self.models)
        if "BackwardHookFunction is a view and is being modified inplace" in str(plain):
            reject()  # a program writes to no memory that a hook has seen, so it may go on
        # In bf16, torch rounds several times a layer.
        half = context is _autocast or self.dtype is torch.bfloat16
        error = 1e-1 if half else 1e-4
        if isinstance(plain, Exception):
            assert type(fused) is type(plain), (fused, plain)
        else:
            assert_near(fused, plain, error)
            assert_near(args, plain_args)
        assert torch.equal(plain_state, state), "random numbers"
        for (name, theirs), (other, ours) in zip(
            self.models[0].named_buffers(), self.models[1].named_buffers(), strict=True
        ):
            assert name == other
            rtol, atol = (3e-2, 3e-2) if half else (1e-3, 1e-4)
            torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol, equal_nan=True, msg=name)
            if half:  # so that they do not drift apart
                with torch.no_grad():
                    ours.copy_(theirs)
        if grad and not isinstance(plain, Exception):
            self.compare_gradients(make, context, half)
        assert len(self.seen[0]) == len(self.seen[1])
        for theirs, ours in zip(*self.seen, strict=True):
            assert str(theirs) == str(ours)
        for path, module in self.models[0].named_modules():
            other_module = self.models[1].get_submodule(path)
            for name in ("features", "calls"):
                if name in vars(module):
                    value = vars(module)[name]  # perhaps of an earlier call, under autocast
                    noted_half = isinstance(value, torch.Tensor) and value.dtype is torch.bfloat16
                    assert_near(vars(other_module).get(name), value, 1e-1 if noted_half else error)

    def compare_gradients(self, make: Callable[[], tuple[Any, Any]], context: Any, half: bool) -> None:
        pairs = list(zip(self.models[0].named_parameters(), self.models[1].parameters(), strict=True))
        scale = max([float(p.grad.norm()) for (_, p), _ in pairs if p.grad is not None], default=0.0)
        moves: dict[str, float] | None = None
        for (name, theirs), ours in pairs:
            assert (theirs.grad is None) == (ours.grad is None), name
            if theirs.grad is not None and bool(theirs.grad.isfinite().all()):
                error = float((theirs.grad - ours.grad).norm())
                if error <= (2e-1 if half else 3e-2) * max(float(theirs.grad.norm()), 0.05 * scale) + 1e-5:
                    continue
                # Where an input of a ReLU is all but zero, rounding decides its sign: torch's gradients jump, too.
                if moves is None:
                    moves = self.rounded_gradients(make, context, 2.0**-10 if half else 3e-7)
                assert error <= 3 * moves[name], f"{name}: {error}, where torch's own move by {moves[name]}"

    def rounded_gradients(self, make: Callable[[], tuple[Any, Any]], context: Any, least: float) -> dict[str, float]:
        """By how much the plain model's gradients change where its parameters do so in their last bits."""
        model = self.models[0]
        parameters = {name: (p, p.grad, p.detach().clone()) for name, p in model.named_parameters()}
        buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        written = [
            (vars(m), name, vars(m)[name]) for m in model.modules() for name in ("features", "calls") if name in vars(m)
        ]
        heard = [len(seen) for seen in self.seen]
        moves = dict.fromkeys(parameters, 0.0)
        for trial in range(8):
            generator = torch.Generator().manual_seed(trial)
            with torch.no_grad():
                for p, _, value in parameters.values():
                    size = least * (4 if least < 1e-6 else 2) ** (trial // 2)
                    noise = size * torch.randn(p.shape, generator=generator).to(p.dtype)
                    # Also of zeros: where a bias is one, windows of zeros lie at a ReLU's edge.
                    p.copy_(value * (1 + noise) + 0.1 * noise.flip(0))
            self.run(model, make, True, context)
            for name, (p, grad, _) in parameters.items():
                if grad is not None and p.grad is not None:
                    moves[name] = max(moves[name], float((p.grad - grad).norm()))
        with torch.no_grad():
            for p, grad, value in parameters.values():
                p.copy_(value)
                p.grad = grad
            for buffer, value in buffers:
                buffer.copy_(value)
        for attributes, name, value in written:
            attributes[name] = value
        for seen, length in zip(self.seen, heard, strict=True):
            del seen[length:]
        return moves

    # Calls.

    @rule(
        shape=st.sampled_from(SHAPES), layout=st.sampled_from(list(LAYOUTS)), grad=st.booleans(),
        extra=st.sampled_from(["none", "missing", "number", "map", "keyword"]), seed=st.integers(0, 3),
        dtype=st.sampled_from(["own", "own", "own", "own", "float64", "int64", "bfloat16"]), leaf=st.booleans(),
    )  # fmt: skip
    def call(
        self, shape: tuple[int, ...], layout: str, grad: bool, extra: str, seed: int, dtype: str, leaf: bool
    ) -> None:
        def make() -> tuple[Any, Any]:
            generator = torch.Generator().manual_seed(seed)
            x = torch.randn(shape, generator=generator)
            x = LAYOUTS[layout](x) if x.dim() == 4 else x
            x = x.to(self.dtype if dtype == "own" else getattr(torch, dtype))
            if leaf and grad and x.is_floating_point():
                x = x.requires_grad_() * 1.0
            args: list[Any] = [x]
            if extra == "none":
                args.append(None)
            elif extra == "number":
                args.append(0.5)
            elif extra == "map":
                args.append(torch.ones(1, CHANNELS, 1, 1, dtype=x.dtype))
            return tuple(args), {"scale": 0.5} if extra == "keyword" else {}

        self.compare(make, grad)

    @rule(times=st.integers(1, 3))
    def call_again(self, times: int) -> None:
        for i in range(times):
            self.compare(
                lambda i=i: ((torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(i)).to(self.dtype),), {}),
                False,
            )

    @rule()
    def call_with_a_wrong_keyword(self) -> None:
        self.compare(lambda: ((torch.ones(1, 3, 8, 8).to(self.dtype),), {"unknown": 1}), False)

    @rule()
    def call_under_autocast(self) -> None:
        self.compare(lambda: ((torch.ones(1, 3, 8, 8).to(self.dtype),), {}), False, _autocast)

    @rule()
    def call_in_inference_mode(self) -> None:
        self.compare(
            lambda: ((torch.linspace(-1, 1, 384).view(2, 3, 8, 8).to(self.dtype),), {}), False, torch.inference_mode
        )

    @rule(autocast=st.booleans())
    def train_step(self, autocast: bool) -> None:
        context = _autocast if autocast else None
        self.compare(lambda: ((torch.linspace(-1, 1, 384).view(2, 3, 8, 8).to(self.dtype) * 1.0,), {}), True, context)
        for model in self.models:
            with torch.no_grad():
                for p, q in zip(model.parameters(), self.models[0].parameters(), strict=True):
                    if q.grad is not None:
                        p.sub_(0.01 * q.grad.clamp(-1, 1))

    # State.

    @rule(data=st.data())
    def set_attribute(self, data: st.DataObject) -> None:
        kind, name, values = data.draw(st.sampled_from(ATTRIBUTES))
        paths = [""] if kind is Network else self.paths(kind)
        if paths:
            path, value = data.draw(st.sampled_from(paths)), data.draw(st.sampled_from(values))
            self.each(lambda m: setattr(m.get_submodule(path), name, value))

    @rule(training=st.booleans())
    def switch(self, training: bool) -> None:
        self.each(lambda m: m.train(training))

    @rule(data=st.data(), training=st.booleans())
    def switch_one(self, data: st.DataObject, training: bool) -> None:
        path = data.draw(st.sampled_from(self.paths()))
        self.each(lambda m: m.get_submodule(path).train(training))

    @rule(data=st.data(), kind=st.sampled_from(["forward", "pre", "changing", "backward", "backward pre"]))
    def add_hook(self, data: st.DataObject, kind: str) -> None:
        path = data.draw(st.sampled_from(["", *self.paths()]))
        handles = []
        for model, seen in zip(self.models, self.seen, strict=True):
            module, hook = model.get_submodule(path), Noted(kind, seen)
            handles.append(
                module.register_forward_pre_hook(hook) if kind == "pre"
                else module.register_full_backward_hook(hook) if kind == "backward"
                else module.register_full_backward_pre_hook(hook) if kind == "backward pre"
                else module.register_forward_hook(hook)
            )  # fmt: skip
        self.handles.append(handles)

    @rule()
    def add_global_hook(self) -> None:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            for model, seen in zip(self.models, self.seen, strict=True):
                if isinstance(module, nn.Conv2d) and any(module is m for m in model.modules()):
                    seen.append(("global", tuple(output.shape), output.stride()))

        handle = torch_module.register_module_forward_hook(note)
        try:
            self.compare(lambda: ((torch.linspace(-1, 1, 384).view(2, 3, 8, 8).to(self.dtype),), {}), False)
        finally:
            handle.remove()

    @precondition(lambda self: self.handles)
    @rule(data=st.data())
    def remove_hook(self, data: st.DataObject) -> None:
        handles = self.handles.pop(data.draw(st.integers(0, len(self.handles) - 1)))
        for handle in handles:
            handle.remove()

    @rule(data=st.data())
    def patch_forward(self, data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(self.paths()))

        def patch(model: nn.Module) -> None:
            module = model.get_submodule(path)
            module.forward = types.MethodType(_doubled, module)

        if "forward" not in vars(self.models[0].get_submodule(path)):
            self.each(patch)

    @rule(data=st.data())
    def remove_patch(self, data: st.DataObject) -> None:
        paths = [path for path in self.paths() if "forward" in vars(self.models[0].get_submodule(path))]
        if paths:
            path = data.draw(st.sampled_from(paths))
            self.each(lambda m: delattr(m.get_submodule(path), "forward"))

    @rule(kind=st.sampled_from([nn.Conv2d, nn.BatchNorm2d, nn.ReLU, BLOCKS["Gate"], BLOCKS["Residual"]]))
    def patch_class(self, kind: Any) -> None:
        original = kind.forward
        kind.forward = lambda self, x: original(self, x) * 1.25
        try:
            self.compare(lambda: ((torch.linspace(-1, 1, 384).view(2, 3, 8, 8).to(self.dtype),), {}), False)
        finally:
            kind.forward = original

    # Modules.

    @rule(
        data=st.data(),
        what=st.sampled_from(["identity", "silu", "conv", "conv", "group norm", "batch norm", "batch norm", "delete"]),
    )
    def replace_module(self, data: st.DataObject, what: str) -> None:
        paths = self.paths((nn.Conv2d, nn.BatchNorm2d, nn.ReLU))
        if not paths:
            return
        path = data.draw(st.sampled_from(paths))
        parent, _, name = path.rpartition(".")

        def change(model: nn.Module) -> None:
            holder = model.get_submodule(parent)
            if what == "delete":
                delattr(holder, name)
                return
            old = getattr(holder, name)
            inputs = getattr(old, "in_channels", CHANNELS)
            new = {
                "identity": nn.Identity, "silu": nn.SiLU, "group norm": lambda: nn.GroupNorm(2, CHANNELS),
                "batch norm": lambda: nn.BatchNorm2d(CHANNELS), "conv": lambda: nn.Conv2d(inputs, CHANNELS, 3, padding=1),
            }[what]()  # fmt: skip
            setattr(holder, name, new.to(self.dtype).train(old.training))

        self.each(change)

    @rule(data=st.data(), kind=st.sampled_from(list(BLOCKS)))
    def append_block(self, data: st.DataObject, kind: str) -> None:
        if len(self.models[0].blocks) < 5:
            self.each(lambda m: m.blocks.append(BLOCKS[kind]().to(self.dtype).train(m.training)))

    @rule()
    def share_block(self) -> None:
        if len(self.models[0].blocks) < 5:
            self.each(lambda m: m.blocks.append(m.blocks[0]))

    @rule(data=st.data())
    def reduce_precision(self, data: st.DataObject) -> None:
        dtype = data.draw(st.sampled_from([torch.float64, torch.bfloat16, torch.float32, torch.float32, torch.float32]))
        self.dtype = dtype
        self.each(lambda m: m.to(dtype))

    @rule(memory_format=st.sampled_from([torch.channels_last, torch.contiguous_format]))
    def change_layout(self, memory_format: torch.memory_format) -> None:
        Noted.notes_formats_of_gradients = False
        self.each(lambda m: m.to(memory_format=memory_format))

    # Parameters.

    @rule(
        data=st.data(), how=st.sampled_from(["in place", "one", "data", "data one", "assign", "new", "frozen", "none"])
    )
    def edit(self, data: st.DataObject, how: str) -> None:
        names = [name for name, _ in self.models[0].named_parameters()]
        name = data.draw(st.sampled_from(names))
        path, _, last = name.rpartition(".")

        def change(model: nn.Module) -> None:
            module = model.get_submodule(path)
            p = getattr(module, last)
            if how == "in place":
                p.mul_(1.1)
            elif how == "one":
                p.view(-1)[0] += 1.0
            elif how == "data":
                p.data.mul_(0.9)
            elif how == "data one":
                p.data.view(-1)[-1] += 1.0
            elif how == "assign":
                p.data = p.data * 0.8
            elif how == "new":
                setattr(module, last, nn.Parameter(p.detach() * 1.2))
            elif how == "frozen":
                p.requires_grad_(not p.requires_grad)
            elif last == "bias":
                setattr(module, last, None)

        self.each(change)
        if not PLAIN and how.startswith("data"):
            resfuse.refresh(self.models[1])

    @rule(data=st.data(), how=st.sampled_from(["in place", "new", "none", "back"]))
    def edit_buffer(self, data: st.DataObject, how: str) -> None:
        paths = self.paths(nn.BatchNorm2d)
        if not paths:
            return
        path = data.draw(st.sampled_from(paths))

        def change(model: nn.Module) -> None:
            norm = model.get_submodule(path)
            if how == "back":
                norm.running_mean, norm.running_var = (
                    torch.zeros(CHANNELS).to(self.dtype),
                    torch.ones(CHANNELS).to(self.dtype),
                )
            elif how == "none":
                norm.running_mean = norm.running_var = None
            elif norm.running_mean is not None:
                norm.running_mean = norm.running_mean + 0.1 if how == "new" else norm.running_mean.add_(0.1)

        self.each(change)

    @rule(assign=st.booleans())
    def load(self, assign: bool) -> None:
        state = {
            key: value.clone() * 1.01 if value.is_floating_point() else value
            for key, value in self.models[0].state_dict().items()
        }
        self.each(lambda m: m.load_state_dict({k: v.clone() for k, v in state.items()}, strict=False, assign=assign))

    @rule(data=st.data(), how=st.sampled_from(["prune", "remove", "norm", "old norm", "plain"]))
    def reparametrize(self, data: st.DataObject, how: str) -> None:
        paths = self.paths(nn.Conv2d)
        if not paths:
            return
        path = data.draw(st.sampled_from(paths))

        def change(model: nn.Module) -> None:
            conv = model.get_submodule(path)
            if how == "prune":
                prune.ln_structured(conv, "weight", 0.3, 2, 0)
            elif how == "remove":
                prune.remove(conv, "weight")
            elif how == "norm":
                parametrizations.weight_norm(conv)
            elif how == "old norm":
                nn.utils.weight_norm(conv)
            else:
                nn.utils.parametrize.remove_parametrizations(conv, "weight")

        self.each(change)

    # Copies.

    @precondition(lambda self: not self.handles)
    @rule(how=st.sampled_from(["deepcopy", "pickle", "copy"]))
    def copy_both(self, how: str) -> None:
        features = [
            (m, m.__dict__.pop("features")) for model in self.models for m in model.modules() if "features" in vars(m)
        ]
        for module, _ in features:
            module.features = None
        with contextlib.suppress(Exception):
            self.models = [
                copy.deepcopy(m)
                if how == "deepcopy"
                else copy.copy(m)
                if how == "copy"
                else pickle.loads(pickle.dumps(m))
                for m in self.models
            ]


def _doubled(self: nn.Module, *args: Any) -> Any:
    return type(self).forward(self, *args) * 2.0


def _autocast() -> Any:
    return torch.autocast("cpu", torch.bfloat16)


def assert_near(fused: Any, plain: Any, error: float = 1e-4) -> None:
    """`assert_alike`, where the numbers may have grown in many steps."""
    if isinstance(plain, torch.Tensor) and not plain.isfinite().all():
        assert isinstance(fused, torch.Tensor)
        assert fused.shape == plain.shape
        return
    assert_alike(fused, plain, error)


Faithful.TestCase.settings = settings(
    max_examples=SEQUENCES, stateful_step_count=15, deadline=None, derandomize="RESFUSE_MACHINE" not in os.environ,
    suppress_health_check=list(HealthCheck), print_blob=True, report_multiple_bugs=False,
    # What fails by chance is run again faster than it is shrunk.
    phases=[Phase.explicit, Phase.reuse, Phase.generate, *([Phase.shrink] if "RESFUSE_SHRINK" in os.environ else [])],
)  # fmt: skip
TestFaithful = Faithful.TestCase
