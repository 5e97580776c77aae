"""`resfuse.refresh`: for whoever changes parameters where torch does not notice."""

from __future__ import annotations

from torch import nn

from resfuse.engine.weights import forget_packed_weights
from resfuse.fused.module import require_fused


def refresh(model: nn.Module) -> None:
    """Makes the next call read all parameters and buffers anew.

    Whatever torch counts (in-place operations, optimizers, ``load_state_dict``, assignments) is seen without this. What
    it does not count is a write through ``.data``, a NumPy view or another process. A change of a whole tensor by such
    a write is seen at the next call, a change of single elements in one of the next 31 (61 of a large model); after
    ``refresh`` both are seen at once. Other fused models of the process read theirs anew as well.

    Args:
        model: what `resfuse.fuse` returned.

    Raises:
        TypeError: ``model`` is no module.
        UnsupportedModelError: ``model`` is not fused.
    """
    require_fused("model", model)
    forget_packed_weights()
