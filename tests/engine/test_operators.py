"""The operators as torch sees them."""

from __future__ import annotations

import pytest
import torch

from resfuse.engine.spec import BatchNormSpec, ConvSpec, GlobalAvgPoolSpec, MaxPoolSpec, OutputSpec, ProgramSpec

LAYERS = (
    ConvSpec("stem", 0, 1, 3, 8, 0, batch_norm=BatchNormSpec(1, 2, 3, 4, 1e-5), kernel_size=(3, 3), stride=(2, 2), padding=None, activation="relu"),
    MaxPoolSpec("pool", 1, 2, (3, 3), (2, 2), (1, 1), (1, 1, 1, 1), True),
    ConvSpec("conv", 2, 3, 8, 8, 5, kernel_size=(3, 3), padding=(1, 1, 1, 1), residual=2, activation="relu"),
    GlobalAvgPoolSpec("gap", 3, 4),
    ConvSpec("fc", 4, 5, 8, 4, 6, 7, activation="tanh"),
)  # fmt: skip
SPEC = ProgramSpec((3,), LAYERS, (OutputSpec(3), OutputSpec(5, rank=2)))


def _parameters() -> list[torch.Tensor]:
    return [
        torch.randn(8, 3, 3, 3),
        *(torch.rand(8) + 0.5 for _ in range(4)),
        torch.randn(8, 8, 3, 3),
        torch.randn(4, 8),
        torch.randn(4),
    ]


@pytest.mark.parametrize("size", [(9, 12), (16, 16), (5, 7)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_opcheck(size: tuple[int, int], memory_format: torch.memory_format) -> None:
    x = torch.randn(2, 3, *size).to(memory_format=memory_format)
    torch.library.opcheck(torch.ops.resfuse.program.default, ([x], _parameters(), SPEC.to_text()))


def test_text_round_trip() -> None:
    assert ProgramSpec.from_text(SPEC.to_text()) == SPEC


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"inputs":[3],"layers":[{"kind":"no"}],"outputs":[]}'])
def test_bad_text(text: str) -> None:
    with pytest.raises(ValueError, match="program"):
        torch.ops.resfuse.program([torch.randn(1, 3, 8, 8)], [], text)


@pytest.mark.parametrize(
    ("x", "error", "text"),
    [
        (torch.randn(1, 3, 8, 8).double(), TypeError, "got dtype torch.float64, want torch.float32"),
        (torch.randn(1, 4, 8, 8), ValueError, r"got shape \[1, 4, 8, 8\], want \[N, 3, H, W\]"),
        (torch.randn(3, 8, 8), ValueError, r"got shape \[3, 8, 8\]"),
        (torch.randn(1, 3, 0, 8), ValueError, "no pixels"),
        (torch.randn(1, 3, 8, 8).to_sparse(), TypeError, "sparse"),
    ],
)
def test_bad_input(x: torch.Tensor, error: type[Exception], text: str) -> None:
    with pytest.raises((error, NotImplementedError), match=text if not x.is_sparse else None):
        torch.ops.resfuse.program([x], _parameters(), SPEC.to_text())


def test_wrong_number_of_inputs() -> None:
    with pytest.raises(ValueError, match="got 2 tensors, want 1"):
        torch.ops.resfuse.program([torch.randn(1, 3, 8, 8)] * 2, _parameters(), SPEC.to_text())
