"""RepVGG-A0 with its training-time branches. Ding et al., "RepVGG: making VGG-style ConvNets great again", 2021."""

from __future__ import annotations

from torch import Tensor, nn

from models.recipes.recipe import scale_convolutions
from models.recipes.resnet import conv_norm

DEPTHS = (2, 4, 14, 1)
WIDTHS = (48, 96, 192, 1280)


class RepVGGBlock(nn.Module):
    """Sum of a 3x3 convolution, a 1x1 convolution and the input, each through its own BatchNorm, then ReLU.

    The identity branch is there only where the shape stays; all branches together equal one 3x3 convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.dense = conv_norm(inputs, outputs, 3, stride)
        self.point = conv_norm(inputs, outputs, 1, stride)
        self.identity = nn.BatchNorm2d(inputs) if inputs == outputs and stride == 1 else None
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.dense(x) + self.point(x)
        if self.identity is not None:
            y = y + self.identity(x)
        return self.relu(y)


class RepVGG(nn.Module):
    """float32 image [batch, 3, height, width] to logits [batch, 1000]; 22 blocks."""

    def __init__(self, divisor: int) -> None:
        super().__init__()
        blocks = [RepVGGBlock(3, 48 // divisor, 2)]
        channels = 48 // divisor
        for depth, width in zip(DEPTHS, WIDTHS, strict=True):
            for index in range(depth):
                blocks.append(RepVGGBlock(channels, width // divisor, 2 if index == 0 else 1))
                channels = width // divisor
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, 1000)
        scale_convolutions(self)
        for block in blocks:
            # Each of the branches adds its variance; together they must leave it as it was.
            for conv in (block.dense[0], block.point[0]):
                conv.weight.data.mul_(0.3)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.blocks(image).mean((2, 3)))


def repvgg_a0(divisor: int = 1) -> RepVGG:
    """RepVGG-A0, its widths divided by `divisor`."""
    return RepVGG(divisor)
