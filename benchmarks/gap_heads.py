"""Global average pooling + linear against flatten + fully connected, on real images.

    python benchmarks/gap_heads.py [--seeds 3] [--epochs 8] [--picture docs/images/gap-heads.png]

The same small ResNet is trained with three heads, from the same seeds, on scikit-learn's handwritten digits (enlarged
to 24x24): with all training images and with a tenth of them. Prints a Markdown table (docs/global-average-pooling.md
holds its output) and draws what each head looked at.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import nn
from torch.nn import functional as F

import resfuse
from resfuse.bench.digits import Digits, load_digits
from resfuse.bench.timing import interleaved

SIZE, WIDTH, BATCH = 24, 32, 32
FEATURES, SIDE = 4 * WIDTH, SIZE // 4  # of the last feature maps


def make_head(kind: str) -> nn.Module:
    """A classifier of the last feature maps [N, FEATURES, SIDE, SIDE]."""
    if kind == "GAP + linear":
        return nn.Sequential(resfuse.nn.GlobalAvgPool2d(keepdim=False), nn.Linear(FEATURES, 10))
    if kind == "flatten + linear":
        return nn.Sequential(nn.Flatten(), nn.Linear(FEATURES * SIDE**2, 10))
    hidden = nn.Linear(FEATURES * SIDE**2, 512)
    return nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, 10))


HEADS = ("GAP + linear", "flatten + linear", "flatten + 512 + linear")


class Net(nn.Module):
    """The ResNet's stages and one of the heads."""

    def __init__(self, head: str) -> None:
        super().__init__()
        resnet = resfuse.models.ResNet("basic", [1, 1, 1], width=WIDTH, num_classes=10, stem="cifar")
        self.features = nn.Sequential(
            resnet.conv1, resnet.bn1, resnet.relu, resnet.layer1, resnet.layer2, resnet.layer3
        )
        self.head = make_head(head)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x))


def train(head: str, digits: Digits, images: int, epochs: int, seed: int) -> Net:
    """Trains on the first `images` images, as many steps whatever their number."""
    torch.manual_seed(seed)
    net = Net(head)
    steps = epochs * (len(digits.train_x) // BATCH)
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        batch = torch.randint(images, (BATCH,))
        loss = F.cross_entropy(net(digits.train_x[batch]), digits.train_y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


def shift(x: torch.Tensor, pixels: int) -> torch.Tensor:
    """Moves images right and down over their background (-1)."""
    return F.pad(x, (pixels, 0, pixels, 0), value=-1.0)[..., :SIZE, :SIZE]


@torch.no_grad()
def accuracy(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Percent."""
    return 100 * float((net(x).argmax(1) == y).float().mean())


def head_times(batch: int = 64) -> dict[str, float]:
    """Microseconds of each head alone, forward, and forward + backward (as ``... training``)."""
    x = torch.randn(batch, FEATURES, SIDE, SIDE).to(memory_format=torch.channels_last)
    heads = {kind: make_head(kind).eval() for kind in HEADS}

    def forward(head: nn.Module) -> None:
        with torch.no_grad():
            for _ in range(20):
                head(x)

    def backward(head: nn.Module) -> None:
        leaf = x.detach().requires_grad_()
        for _ in range(20):
            head(leaf).sum().backward()

    contenders = {kind: lambda h=head: forward(h) for kind, head in heads.items()}
    contenders |= {f"{kind} training": lambda h=head: backward(h) for kind, head in copy.deepcopy(heads).items()}
    return {name: timing.median / 20 * 1e6 for name, timing in interleaved(contenders, 15).items()}


def contribution_maps(net: Net, x: torch.Tensor) -> torch.Tensor:
    """What each place adds to the winning class's score [N, SIDE, SIDE]; exact for both linear heads.

    With pooling this is the class activation map (Zhou et al., 2016, eq. 2); with flatten every place has weights of
    its own.
    """
    with torch.no_grad():
        features = net.features(x)
        linear = net.head[-1]
        weight = linear.weight[net.head(features).argmax(1)]
        if weight.shape[1] == FEATURES:
            return torch.einsum("nk,nkhw->nhw", weight, features)
        return (weight.reshape(features.shape) * features).sum(1)


def draw(nets: dict[str, Net], digits: Digits, path: Path) -> None:
    """Eight held-out images, as they are and shifted, with the maps of both linear heads."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    count = 8
    figure, axes = plt.subplots(6, count, figsize=(1.3 * count, 8.4), layout="constrained")
    for half, (name, x) in enumerate((("", digits.test_x[:count]), ("shifted, ", shift(digits.test_x[:count], 4)))):
        rows = [("image", None), *((kind, contribution_maps(nets[kind], x)) for kind in HEADS[:2])]
        for r, (kind, maps) in enumerate(rows):
            for i in range(count):
                axis = axes[3 * half + r, i]
                axis.imshow(x[i].mean(0), cmap="gray")
                axis.set_xticks([])
                axis.set_yticks([])
                if maps is not None:
                    with torch.no_grad():
                        said = int(nets[kind](x[i : i + 1]).argmax())
                    whole = F.interpolate(maps[i][None, None], size=SIZE, mode="bilinear", align_corners=False)
                    axis.imshow(whole[0, 0], cmap="inferno", alpha=0.6)
                    axis.set_title(f"says {said}", fontsize=8, color="black" if said == digits.test_y[i] else "red")
            axes[3 * half + r, 0].set_ylabel(f"{name}{kind}", fontsize=8)
    figure.suptitle("What adds to the winning class, place by place (red title: wrong)")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Trains, measures, prints and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each head (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=8, help="of all training images (default: %(default)s)")
    parser.add_argument("--picture", type=Path, default=Path("docs/images/gap-heads.png"))
    options = parser.parse_args()

    console = Console(stderr=True)
    digits = load_digits(size=SIZE)
    tenth = len(digits.train_x) // 10
    scores: dict[str, list[list[float]]] = {kind: [] for kind in HEADS}
    nets: dict[str, Net] = {}
    jobs = [(kind, seed) for seed in range(options.seeds) for kind in HEADS]
    for kind, seed in track(jobs, "training", console=console):
        net = train(kind, digits, len(digits.train_x), options.epochs, seed)
        few = train(kind, digits, tenth, options.epochs, seed)
        nets.setdefault(kind, net)
        scores[kind].append(
            [
                accuracy(net, digits.test_x, digits.test_y),
                accuracy(few, digits.test_x, digits.test_y),
                accuracy(net, shift(digits.test_x, 4), digits.test_y),
            ]
        )
    times = head_times()
    print(
        f"| head | parameters | head, 64 images | with its gradient | {len(digits.train_x)} images | {tenth} images "
        "| shifted by 4 pixels |"
    )
    print("|---|---|---|---|---|---|---|")
    for kind in HEADS:
        count = sum(p.numel() for p in nets[kind].head.parameters())
        training = times[f"{kind} training"]
        cells = [
            f"{statistics.mean(column):.1f} % ({min(column):.1f} to {max(column):.1f})"
            for column in zip(*scores[kind], strict=True)
        ]
        print(
            f"| {kind} | {count:,} ({4 * count / 1024:,.0f} KiB) | {times[kind]:.0f} us | {training:.0f} us "
            f"| {' | '.join(cells)} |"
        )
    body = sum(p.numel() for p in nets[HEADS[0]].features.parameters())
    larger = F.interpolate(digits.test_x, size=32, mode="bilinear", align_corners=False)
    print(
        f"\nThe convolutions before each head: {body:,} parameters. Held-out accuracy: mean over {options.seeds} seeds "
        f"(lowest to highest), {len(digits.test_x)} images.\n"
        f"At 32x32, untrained for: GAP + linear {accuracy(nets[HEADS[0]], larger, digits.test_y):.1f} %; "
        "the others cannot take another size."
    )
    draw(nets, digits, options.picture)


if __name__ == "__main__":
    main()
