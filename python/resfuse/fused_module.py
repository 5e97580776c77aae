"""The class of a fused model: its own class with a forward that runs programs where it can."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

from resfuse.arguments import require_module
from resfuse.calls import asks_for_gradients, native_reason, train_program
from resfuse.errors import GradientsEnabledWarning, UnsupportedModelError
from resfuse.lowering.binding import Binding, ModeChangedError, ProgramRunner, StructureChangedError
from resfuse.lowering.lower import lower
from resfuse.lowering.steps import Lowered
from resfuse.runtime.weights import require_plain

_RUNTIME = "_resfuse_runtime"
_MOST_GRAPHS = 4


@dataclasses.dataclass
class Fusion:
    """What is derived from a model's modules, and how its calls went. Never pickled or copied; rebuilt on demand."""

    binding: Binding
    fused_calls: int = 0
    native_calls: int = 0
    native_reason: str | None = None
    warned: bool = False


class FusedModule(nn.Module):
    """Mixed into a module's class: ``forward`` runs the fused programs, ``native_forward`` the original code.

    In fp32 on the CPU everything that was lowered runs fused: as whole programs in eval mode where no gradient is asked
    for, block by block with autograd otherwise. What runs natively is named by `resfuse.report`.
    """

    _resfuse_algorithm = "auto"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # The signature of the code that is replaced: for inspect, torch.fx and torch.export.
        plain = next(c for c in cls.__mro__ if "forward" in vars(c) and not issubclass(c, FusedModule))
        original = vars(plain)["forward"]

        @functools.wraps(original)
        def forward(self: FusedModule, *args: Any, **kwargs: Any) -> Any:
            return FusedModule.forward(self, *args, **kwargs)

        cls.forward = forward  # type: ignore[method-assign]

    def native_forward(self, *args: Any, **kwargs: Any) -> Any:
        """The original forward."""
        return super().forward(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The same result as the original forward."""
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)]
        if len(tensors) < len(args) + len(kwargs) and any(isinstance(a, fx.Proxy) for a in (*args, *kwargs.values())):
            return self.native_forward(*args, **kwargs)
        try:
            runtime = self._runtime()
        except UnsupportedModelError:  # in a mode in which its code cannot be traced
            return self.native_forward(*args, **kwargs)
        if torch.compiler.is_compiling():
            if runtime.binding.native_reason() is not None:
                return self.native_forward(*args, **kwargs)
            learns = torch.is_grad_enabled() or runtime.binding.trains()
            return runtime.binding.run(self, args, kwargs, train_program if learns else None)
        reason = runtime.binding.native_reason() or native_reason(tensors)
        if reason is None:
            try:
                runner = _runner(runtime, tensors, self.training)
                if runner is not None:  # a whole program's weights are checked when they are packed
                    for bound in runtime.binding.programs:
                        require_plain(bound.parameters())
                result = runtime.binding.run(self, args, kwargs, runner)
                runtime.fused_calls += 1
                return result
            except ValueError as error:
                # The input or a parameter fits no program. If the original modules take it, it was not wrong (a sum
                # that broadcasts, parameters of another type).
                misfit = error
            try:
                result = self.native_forward(*args, **kwargs)
            except Exception:
                raise misfit from None
            reason = str(misfit)
        else:
            result = self.native_forward(*args, **kwargs)
        runtime.native_calls += 1
        runtime.native_reason = reason
        return result

    def adopt(self, lowered: Lowered, algorithm: str) -> None:
        """Takes over an already lowered form of this very structure."""
        self._resfuse_algorithm = algorithm
        self.__dict__[_RUNTIME] = (Fusion(Binding(lowered, self)),)

    def fusion(self) -> Fusion:
        """What is fused at present; lowers the model if that has not been done."""
        return self._runtime()

    def _runtime(self) -> Fusion:
        others: list[Fusion] = []  # a model whose graph depends on train modes has one for each
        for runtime in self.__dict__.get(_RUNTIME, ()):
            try:
                runtime.binding.check_structure()
                return runtime  # type: ignore[no-any-return]
            except ModeChangedError:
                others.append(runtime)
            except StructureChangedError:
                pass
        runtime = Fusion(Binding(lower(self, self._resfuse_algorithm), self))
        self.__dict__[_RUNTIME] = (runtime, *others[: _MOST_GRAPHS - 1])
        return runtime

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state.pop(_RUNTIME, None)
        return state


def _runner(runtime: Fusion, tensors: list[torch.Tensor], training: bool) -> ProgramRunner | None:
    """What runs a program: None for the whole of it at once, or block by block where something is to be learnt."""
    if runtime.binding.trains():
        return train_program
    if not torch.is_grad_enabled():
        return None
    parameters = [p for bound in runtime.binding.programs for p in bound.parameters()]
    if not asks_for_gradients([*tensors, *parameters]):
        return None
    if not training and not runtime.warned:
        runtime.warned = True
        warnings.warn(
            "a fused model in eval mode ran block by block because gradients are enabled; "
            "call it under torch.no_grad() or torch.inference_mode() to run it as one program",
            GradientsEnabledWarning,
            stacklevel=4,
        )
    return train_program


def fused_parts(model: nn.Module, path: str = "") -> Iterator[tuple[str, FusedModule]]:
    """The fused modules of a model with their paths; not those inside another."""
    if isinstance(model, FusedModule):
        yield path, model
        return
    for name, child in model.named_children():
        yield from fused_parts(child, f"{path}.{name}".lstrip("."))


def require_fused(name: str, model: nn.Module) -> dict[str, FusedModule]:
    """The fused modules of a model by their paths; raises TypeError or UnsupportedModelError where there are none."""
    require_module(name, model)
    parts = dict(fused_parts(model))
    if not parts:
        raise UnsupportedModelError(f"{name}: {type(model).__name__} is not fused; want what resfuse.fuse returned")
    return parts


@functools.cache
def fused_class(cls: type[nn.Module]) -> type[nn.Module]:
    """The fused subclass of a module class: same name, same isinstance relations."""
    if issubclass(cls, FusedModule):
        return cls

    def reduce_ex(self: FusedModule, protocol: int) -> tuple[Any, ...]:
        return _rebuild, (cls,), self.__getstate__()

    return type(
        cls.__name__,
        (FusedModule, cls),
        {"__reduce_ex__": reduce_ex, "__module__": cls.__module__, "__doc__": cls.__doc__},
    )


def _rebuild(cls: type[nn.Module]) -> nn.Module:
    fused: type[nn.Module] = fused_class(cls)  # type: ignore[arg-type]  # classes do hash
    return fused.__new__(fused)
