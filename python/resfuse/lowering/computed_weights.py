"""Weights that a model's code computes from its parameters: standardised ones, scaled ones, weight norm.

The nodes that compute them run as they did, on torch, and the layer takes what comes out as its weights. In inference
that is done once: the result is kept until one of the parameters changes.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from resfuse.engine.weights import PLAIN_TENSORS, Snapshot
from resfuse.lowering.native import NativeCall, native_call, run_native
from resfuse.lowering.op import COMPUTED, overwrites, value_of
from resfuse.lowering.transposed import PhaseWeights

# Modules whose functions give the same for the same arguments, but for random ones.
_PURE = ("torch", "operator", "_operator", "builtins", "math", "resfuse")
_WEIGHTS = ("weight", "bias")
_LAYERS = ("conv2d", "linear", "convolution")


def mark_computed_weights(graph: fx.Graph, model: nn.Module) -> dict[fx.Node, bool]:
    """Marks the nodes that compute weights and biases of layers from parameters alone, and gives them in their order.

    True stands for those whose value a layer reads; such a node's ``meta`` says what shape it has.
    """
    values: dict[fx.Node, torch.Tensor] = {}
    for node in graph.nodes:
        value = value_of(node, model) if node.op == "get_attr" else _computed(node, values, model)
        if isinstance(value, torch.Tensor) and not any(overwrites(user) for user in node.users):
            values[node] = value
    # Of those that compute what a layer reads as weights, and nothing else.
    found: dict[fx.Node, bool] = {}
    for node in reversed(list(graph.nodes)):
        if node.op == "get_attr" or node not in values or not node.users:
            continue
        of_layers = [user for user in node.users if user not in found]
        if all(_is_weight(node, user) for user in of_layers):
            found[node] = bool(of_layers)
    for node, read in found.items():
        if read:
            node.meta[COMPUTED] = values[node].to("meta")
    return dict(reversed(found.items()))


def _computed(node: fx.Node, values: Mapping[fx.Node, torch.Tensor], model: nn.Module) -> Any:
    """The value of a node that reads nothing but such values, and gives the same for the same ones; or None."""
    if node.op not in ("call_function", "call_method") or overwrites(node) or not node.all_input_nodes:
        return None
    home = str(getattr(node.target, "__module__", None) or "torch").split(".")[0]
    if home not in _PURE or not all(source in values for source in node.all_input_nodes):
        return None
    before = torch.get_rng_state()
    try:
        with torch.no_grad():
            value = run_native(native_call(node, model), model, {n.name: values[n] for n in node.all_input_nodes})
    except Exception:  # whatever the user's own call says, it says it when the model runs
        return None
    if torch.equal(torch.get_rng_state(), before):
        return value
    torch.set_rng_state(before)
    return None


def _is_weight(node: fx.Node, layer: fx.Node) -> bool:
    """Whether all that a layer reads of a node are its weights or its bias."""
    name = str(getattr(layer.target, "__name__", layer.target)).split(".")[0]
    if name == "mul":  # by a parameter of another shape
        return node in layer.args and layer.args.count(node) == 1 and not layer.kwargs
    if layer.op != "call_function" or name not in _LAYERS:
        return False
    places = [i for i, argument in enumerate(layer.args) if argument is node]
    return all(i in (1, 2) for i in places) and all(k in _WEIGHTS for k, v in layer.kwargs.items() if v is node)


class ComputedWeights:
    """The nodes of one model's graph that compute weights."""

    def __init__(self, nodes: Mapping[fx.Node, bool], model: nn.Module) -> None:
        self._calls: list[NativeCall] = [native_call(node, model) for node in nodes]
        self.nodes = frozenset(node.name for node in nodes)
        self._read = [node.name for node, read in nodes.items() if read]
        self._sources = {n.name: str(n.target) for node in nodes for n in node.all_input_nodes if n.op == "get_attr"}
        self._kernels = {
            str(source.target): node.target.kernel_size
            for node in nodes
            for source in node.all_input_nodes
            if isinstance(node.target, PhaseWeights)
        }
        self._kept: tuple[Snapshot, dict[str, Any]] | None = None

    def reason(self, model: nn.Module) -> str | None:
        """Why the graph is not that of the model's present parameters, or None."""
        for path, kernel_size in self._kernels.items():
            weight = operator.attrgetter(path)(model)
            if tuple(weight.shape[2:]) != kernel_size:
                return f"{path}: its kernel is {tuple(weight.shape[2:])}, want {kernel_size}"
        return None

    def sources(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """The parameters and buffers that they are computed from, by the names of the graph's nodes."""
        return {name: operator.attrgetter(target)(model) for name, target in self._sources.items()}

    def values(self, model: nn.Module, learns: bool) -> dict[str, Any]:
        """The weights by the names of their nodes; ``learns``: differentiable ones, computed anew."""
        named = self.sources(model)
        sources = list(named.values())
        if learns or not all([type(t) in PLAIN_TENSORS and t.is_cpu for t in sources]):
            return self._run(model, named)
        kept = self._kept
        if kept is None or not kept[0].holds(sources):
            snapshot = Snapshot.of(sources)
            with torch.no_grad():
                kept = snapshot, self._run(model, named)
            # Another thread may have written meanwhile: mixed values must not be kept.
            self._kept = kept if snapshot.held_meanwhile(sources) else None
        return kept[1]

    def _run(self, model: nn.Module, sources: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        env: dict[str, Any] = dict(sources)
        for call in self._calls:
            env[call.name] = run_native(call, model, env)
        return {name: env[name] for name in self._read}
