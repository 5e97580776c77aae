"""What lowering makes of a graph: an ordered list of fused programs and native nodes."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from torch import fx

from resfuse.engine.spec import ProgramSpec

if TYPE_CHECKING:
    from resfuse.capture.tracer import Trace


@dataclasses.dataclass(frozen=True)
class ParameterPath:
    """A parameter or buffer: the path of its module in the model and its name there."""

    module: str
    name: str


@dataclasses.dataclass(frozen=True)
class NodeParameter:
    """A parameter or buffer that is an argument of the graph: the name of its placeholder."""

    name: str


@dataclasses.dataclass(frozen=True)
class NormMode:
    """What says whether a batch norm takes the batch's statistics: its module, or the call itself."""

    module: str | None
    training: bool = False
    momentum: float | None = None


@dataclasses.dataclass(frozen=True)
class ProgramStep:
    """Nodes that run as one program. ``nodes`` maps each layer to the last graph node that it computes."""

    spec: ProgramSpec
    text: str
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    aliases: tuple[tuple[fx.Node, fx.Node], ...]  # nodes of the same value as one of the outputs
    parameters: tuple[ParameterPath | NodeParameter, ...]
    norms: tuple[NormMode | None, ...]  # one for each layer
    nodes: tuple[fx.Node, ...]
    all_nodes: tuple[fx.Node, ...]  # that it stands for, in order


@dataclasses.dataclass(frozen=True)
class NativeStep:
    """A node that runs as it did, and why."""

    node: fx.Node
    reason: str
    computes_weight: bool = False  # from parameters alone
    is_weight: bool = False  # that a layer reads


Step = ProgramStep | NativeStep


@dataclasses.dataclass(frozen=True)
class Lowered:
    """A model's graph for calls of one pattern, and the steps that compute it."""

    graph: fx.Graph
    steps: tuple[Step, ...]
    trace: Trace | None = None  # None: of a graph that others traced
    # Steps in the graph's own order, where those above are not: of a native node that raises, batch norms behind it
    # must not have seen the batch.
    in_order: Lowered | None = None

    @property
    def programs(self) -> list[ProgramStep]:
        """The fused steps, in order."""
        return [step for step in self.steps if isinstance(step, ProgramStep)]

    @property
    def natives(self) -> list[NativeStep]:
        """The native steps, in order, but for those that compute weights."""
        return [step for step in self.steps if isinstance(step, NativeStep) and not step.computes_weight]

    @property
    def computed_weights(self) -> dict[fx.Node, bool]:
        """The nodes that compute weights, and whether a layer reads their value."""
        steps = [step for step in self.steps if isinstance(step, NativeStep) and step.computes_weight]
        return {step.node: step.is_weight for step in steps}
