"""Checkpoints of torch.distributed. Training on several processes: the examples, in test_docs.py."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp

import resfuse


def _model() -> resfuse.models.ResNet:
    return resfuse.models.ResNet("basic", [1, 1], width=16, num_classes=5, stem="cifar").eval()


def test_distributed_checkpoints_of_plain_and_fused_models_are_the_same(tmp_path: Path) -> None:
    model, other = _model(), _model()
    fast, again = resfuse.fuse(model), resfuse.fuse(other)
    x = torch.randn(2, 3, 20, 20)
    with torch.no_grad():
        again(x)  # weights of before are packed
        dcp.save({"model": fast.state_dict()}, checkpoint_id=str(tmp_path))
        state = {"model": again.state_dict()}
        dcp.load(state, checkpoint_id=str(tmp_path))
        again.load_state_dict(state["model"])
        assert torch.equal(again(x), fast(x))
        plain = _model()
        state = {"model": plain.state_dict()}
        dcp.load(state, checkpoint_id=str(tmp_path))
        plain.load_state_dict(state["model"])
        torch.testing.assert_close(plain(x), fast(x), rtol=1e-4, atol=1e-5)


def test_a_distributed_checkpoint_loads_in_place(tmp_path: Path) -> None:
    """`dcp.load` writes to the very tensors of the state dict: the next call must see them."""
    fast, again = resfuse.fuse(_model()), resfuse.fuse(_model())
    x = torch.randn(2, 3, 20, 20)
    with torch.no_grad():
        again(x)
        dcp.save(fast.state_dict(), checkpoint_id=str(tmp_path))
        dcp.load(again.state_dict(), checkpoint_id=str(tmp_path))
        assert torch.equal(again(x), fast(x))
