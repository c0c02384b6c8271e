"""Train the digits classifier: `python -m models.digits.train [--out DIR]`, about a minute on two cores.

Data: scikit-learn's digits (the test set of UCI's "Optical recognition of handwritten digits"), 1,797 images of
8 x 8. A quarter, drawn by label, is held out and written to `heldout.npz`; training never sees it, and nothing
(epochs, widths, weights) is chosen by it: the weights after the last epoch are the ones kept.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from models.exporting import export_module

SEED = 7
EPOCHS = 60
BATCH = 64


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    """Two 3x3 convolutions with BatchNorm, and the input added to them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = _conv(channels, channels, 3), _conv(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(F.relu(self.first(x))))


class Separable(nn.Module):
    """A depthwise convolution that halves height and width, then a pointwise one; BatchNorm behind each."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.depthwise = _conv(inputs, inputs, 3, stride=2, groups=inputs)
        self.pointwise = _conv(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.pointwise(F.relu(self.depthwise(x))))


class DigitsNet(nn.Module):
    """float32 image [batch, 1, 8, 8] in [0, 1] to logits [batch, 10]; nine convolutions with BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(1, 24, 3)
        self.body = nn.Sequential(Residual(24), Separable(24, 48), Residual(48), Separable(48, 96))
        self.head = nn.Linear(96, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.body(F.relu(self.stem(image)))
        return self.head(x.mean((2, 3)))


def split() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images float32 [n, 1, 8, 8] in [0, 1] and labels int64 [n]: for training, then held out."""
    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)
    labels = digits.target.astype(np.int64)
    train, held = train_test_split(np.arange(len(labels)), test_size=0.25, stratify=labels, random_state=SEED)
    return images[train], labels[train], images[held], labels[held]


def _augment(images: Tensor, random: torch.Generator) -> Tensor:
    """Rotate by up to 12 degrees, scale and shift a little, as hands do."""
    count = len(images)
    angle = (torch.rand(count, generator=random) - 0.5) * 0.42
    scale = 1 + (torch.rand(count, generator=random) - 0.5) * 0.2
    shift = (torch.rand(count, 2, generator=random) - 0.5) * 0.4
    cosine, sine = angle.cos() * scale, angle.sin() * scale
    rows = [torch.stack([cosine, -sine, shift[:, 0]], 1), torch.stack([sine, cosine, shift[:, 1]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def train(images: np.ndarray, labels: np.ndarray) -> DigitsNet:
    """The net trained on `images` [n, 1, 8, 8] and `labels` [n], in eval mode."""
    torch.manual_seed(SEED)
    random = torch.Generator().manual_seed(SEED)
    net = DigitsNet()
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.02)
    steps = EPOCHS * -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps)
    for epoch in range(EPOCHS):
        total = 0.0
        for chosen in torch.randperm(len(x), generator=random).split(BATCH):
            logits = net(_augment(x[chosen], random))
            loss = F.cross_entropy(logits, y[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(chosen)
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1}: training loss {total / len(x):.4f}", flush=True)
    return net.eval()


def main() -> None:
    """Train, export with BatchNorm kept, write the held-out samples, say the accuracy."""
    parser = argparse.ArgumentParser(prog="python -m models.digits.train", description="Train the digits model.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, metavar="DIR")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    train_images, train_labels, images, labels = split()
    net = train(train_images, train_labels)
    with torch.no_grad():
        right = (net(torch.from_numpy(images)).argmax(1).numpy() == labels).mean()
    np.savez_compressed(folder / "heldout.npz", image=images, label=labels)
    example = {"image": torch.from_numpy(images[:2])}
    export_module(net, example, folder / "digits.onnx", "legacy", outputs=["logits"], dynamic={"image": {0: "batch"}})
    print(f"held-out accuracy {right:.4f} on {len(labels)} samples")


if __name__ == "__main__":
    main()
