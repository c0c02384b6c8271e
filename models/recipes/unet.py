"""U-Net with BatchNorm. Ronneberger et al., "U-Net: convolutional networks for biomedical image segmentation", 2015."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from models.recipes.recipe import scale_convolutions


def _conv(inputs: int, outputs: int) -> nn.Sequential:
    # Here the convolutions have a bias of their own before BatchNorm.
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())


def _double(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(*_conv(inputs, outputs), *_conv(outputs, outputs))


def _up(inputs: int, outputs: int, bias: bool) -> nn.Sequential:
    return nn.Sequential(nn.ConvTranspose2d(inputs, outputs, 2, 2, bias=bias), nn.BatchNorm2d(outputs), nn.ReLU())


class UNet(nn.Module):
    """float32 image [batch, 3, height, width] to a mask [batch, 1, height, width] in [0, 1].

    Height and width must be multiples of 16. Each upsampling is a ConvTranspose with BatchNorm behind it.
    """

    LEVELS = 4

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width << level for level in range(self.LEVELS + 1)]
        self.stem = _double(3, width)
        self.down = nn.ModuleList(_double(a, b) for a, b in itertools.pairwise(widths))
        self.up = nn.ModuleList(_up(b, a, bias=index % 2 == 0) for index, (a, b) in enumerate(itertools.pairwise(widths)))
        self.join = nn.ModuleList(_double(2 * a, a) for a in widths[:-1])
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Conv2d(width, 1, 1)
        scale_convolutions(self)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        skips = []
        for down in self.down:
            skips.append(x)
            x = down(self.pool(x))
        for up, join, skip in zip(reversed(self.up), reversed(self.join), reversed(skips), strict=True):
            x = join(torch.cat([skip, up(x)], dim=1))
        return torch.sigmoid(self.head(x))


def unet(width: int = 32) -> UNet:
    """A U-Net of four levels."""
    return UNet(width)
