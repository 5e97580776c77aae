"""A saved model as a torch module."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from resfuse import runtime
from resfuse.deploy.file import read
from resfuse.engine import ops
from resfuse.engine.executor import DTYPES

_FUNCTIONS: dict[str, Any] = {"softmax": torch.softmax, "log_softmax": torch.log_softmax, "argmax": torch.argmax}


class LoadedModel(nn.Module):
    """The program of a file over parameters that have the names of the model that was saved.

    Runs what `resfuse.runtime` runs, bit for bit up to the functions behind the program, on torch tensors; inference
    only. Its parameters may be changed: the next call sees it.
    """

    def __init__(self, description: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self._text = json.dumps(description["program"], separators=(",", ":"))
        self._dtype = next(dtype for dtype, name in DTYPES.items() if name == description["dtype"])
        self._ranks = [output["rank"] for output in description["program"]["outputs"]]
        self._sizes = [None if i["size"] is None else tuple(i["size"]) for i in description["inputs"]]
        self._names = list(description["parameters"])
        self.input_names = [i["name"] for i in description["inputs"]]
        self.outputs = [(o["name"], o["output"], tuple(o["functions"])) for o in description["outputs"]]
        self.labels: list[str] = list(description["labels"])
        given = description["preprocessing"]
        self.preprocessing = None if given is None else runtime.Preprocessing(**given)
        for name in self._names:
            _place(self, name, tensors[name])
        super().train(False)

    def forward(self, *inputs: torch.Tensor) -> Any:
        """The output for tensors [N, C, H, W], or a dictionary of outputs where there are several."""
        if len(inputs) != len(self.input_names):
            raise ValueError(f"inputs: got {len(inputs)}, want {len(self.input_names)} ({', '.join(self.input_names)})")
        for name, x in zip(self.input_names, inputs, strict=True):
            if not isinstance(x, torch.Tensor):
                raise TypeError(f"{name}: got {type(x).__name__}, want a tensor")
        if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
            raise ValueError("inputs: got a tensor that requires gradients; a loaded model computes inference only")
        for name, size, x in zip(self.input_names, self._sizes, inputs, strict=True):
            if size is not None and tuple(x.shape[2:]) != size:
                raise ValueError(f"{name}: got {tuple(x.shape[2:])}, the model takes images of {size} only")
        last = inputs[0].is_contiguous(memory_format=torch.channels_last) and not inputs[0].is_contiguous()
        planes = () if last else tuple(i for i, rank in enumerate(self._ranks) if rank == 4)
        parameters = [self._tensor(name) for name in self._names]
        with torch.no_grad():
            made = ops.run_program(inputs, parameters, self._text, planes, self._dtype)
            results = {name: _behind(made[index], functions) for name, index, functions in self.outputs}
        return next(iter(results.values())) if len(results) == 1 else results

    def train(self, mode: bool = True) -> LoadedModel:
        """Refuses training, as the modules of torch.export do."""
        if mode:
            raise NotImplementedError("train: a loaded model computes inference only")
        return super().train(False)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As of any module; takes the ``state_dict`` of the saved model, whose batch norms count batches too."""
        own = {name: value for name, value in state_dict.items() if not name.endswith(".num_batches_tracked")}
        return super().load_state_dict(own, strict, assign)

    def _tensor(self, name: str) -> torch.Tensor:
        module, _, leaf = name.rpartition(".")
        tensor: torch.Tensor = getattr(self.get_submodule(module), leaf)
        return tensor

    def extra_repr(self) -> str:
        """What a program it is."""
        return f"{', '.join(self.input_names)} -> {', '.join(name for name, _, _ in self.outputs)}, {self._dtype}"


def load(path: str | os.PathLike[str]) -> LoadedModel:
    """A model that `resfuse.save` has written, as a torch module that computes inference.

    Its ``state_dict`` has the names of the saved model's. `resfuse.runtime.load` is for processes without torch.

    Raises:
        OSError: for a file that cannot be read.
        ValueError: for one that holds no model, or that a newer version has written.
    """
    runtime.load(path)  # checks all of it
    return LoadedModel(*read(Path(path)))


def _place(root: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """A tensor as a parameter, or a buffer where it is of integers or a batch norm's statistic, at a dotted name."""
    *path, leaf = name.split(".")
    for part in path:
        child = root._modules.get(part)
        if child is None:
            child = nn.Module()
            root.add_module(part, child)
        root = child
    if tensor.is_floating_point() and not leaf.startswith("running_"):
        root.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
    else:
        root.register_buffer(leaf, tensor)


def _behind(x: torch.Tensor, functions: tuple[str, ...]) -> torch.Tensor:
    for name in functions:
        x = torch.sigmoid(x) if name == "sigmoid" else _FUNCTIONS[name](x, dim=1)
    return x
