"""Random programs for tests of plans: chains of layers with residuals, pools, gates and several outputs."""

from __future__ import annotations

from hypothesis import strategies as st

from resfuse.engine.spec import (
    AffineSpec,
    AvgPoolSpec,
    ConvSpec,
    GlobalAvgPoolSpec,
    MaxPoolSpec,
    OutputSpec,
    ProgramSpec,
)

KINDS = ("three", "one", "stride", "sum", "grouped", "affine", "gate", "max", "avg")


@st.composite
def program_specs(draw: st.DrawFn) -> ProgramSpec:
    """Of one input, up to eight layers and a head."""
    channels = [draw(st.sampled_from([3, 8, 20]))]
    halvings = [0]  # of each buffer's sides: buffers of as many have one size
    layers: list[ConvSpec | MaxPoolSpec | AvgPoolSpec | AffineSpec | GlobalAvgPoolSpec] = []

    def add(layer: ConvSpec | MaxPoolSpec | AvgPoolSpec | AffineSpec | GlobalAvgPoolSpec, c: int, halved: int) -> int:
        layers.append(layer)
        channels.append(c)
        halvings.append(halved)
        return len(channels) - 1

    def conv(source: int, c: int, kernel: int, stride: int = 1, groups: int = 1, residual: int | None = None) -> int:
        pad = kernel // 2
        layer = ConvSpec(
            f"layer{len(layers)}", source, len(channels), channels[source], c, 0, kernel_size=(kernel, kernel),
            stride=(stride, stride), padding=(pad, pad, pad, pad), groups=groups, activation="relu", residual=residual,
        )  # fmt: skip
        return add(layer, c, halvings[source] + (stride == 2))

    last = conv(0, draw(st.sampled_from([8, 24, 64])), 3)
    for kind in draw(st.lists(st.sampled_from(KINDS), max_size=8)):
        c, name = channels[last], f"layer{len(layers)}"
        if kind in ("three", "one"):
            last = conv(last, draw(st.sampled_from([8, 24, 128])), 3 if kind == "three" else 1)
        elif kind == "stride":
            last = conv(last, c, 3, 2)
        elif kind == "grouped":
            last = conv(last, c, 3, groups=c)
        elif kind == "sum":
            fits = [b for b in range(1, len(channels)) if channels[b] == c and halvings[b] == halvings[last] >= 0]
            last = conv(last, c, 3, residual=draw(st.sampled_from(fits)))
        elif kind == "affine":
            last = add(AffineSpec(name, last, len(channels), activation="silu"), c, halvings[last])
        elif kind == "gate":
            pooled = add(GlobalAvgPoolSpec(name, last, len(channels)), c, -1)
            gate = conv(pooled, c, 1)
            last = add(AffineSpec(f"layer{len(layers)}", last, len(channels), gate=gate), c, halvings[last])
        elif kind == "max":
            last = add(
                MaxPoolSpec(name, last, len(channels), (3, 3), (2, 2), (1, 1), (1, 1, 1, 1), False),
                c,
                halvings[last] + 1,
            )
        else:
            last = add(
                AvgPoolSpec(name, last, len(channels), (3, 3), (2, 2), (1, 1, 1, 1), False, True), c, halvings[last] + 1
            )
    outputs = sorted({last, *draw(st.lists(st.integers(1, len(channels) - 1), max_size=2))})
    return ProgramSpec((channels[0],), tuple(layers), tuple(OutputSpec(b) for b in outputs))
