"""EfficientNet-B0 in plain torch. Tan and Le, "EfficientNet: rethinking model scaling", 2019."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.recipes.recipe import scale_convolutions
from models.recipes.resnet import conv_norm

# expansion, kernel, stride of the first, output channels, repeats
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


class SqueezeExcite(nn.Module):
    """Scale channels by a gate that two 1x1 convolutions make of their means. Hu et al., 2017."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)
        self.activation = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        gate = self.activation(self.reduce(x.mean((2, 3), keepdim=True)))
        return x * torch.sigmoid(self.expand(gate))


class MBConv(nn.Module):
    """Expand, filter depthwise, squeeze and excite, project."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = inputs * expand
        layers: list[nn.Module] = [conv_norm(inputs, wide, 1), nn.SiLU()] if expand > 1 else []
        layers += [
            conv_norm(wide, wide, kernel, stride, groups=wide),
            nn.SiLU(),
            SqueezeExcite(wide, max(1, inputs // 4)),
            conv_norm(wide, outputs, 1),
        ]
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class EfficientNetB0(nn.Module):
    """float32 image [batch, 3, height, width] to logits [batch, 1000]; 49 convolutions with BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_norm(3, 32, 3, 2), nn.SiLU()]
        channels = 32
        for expand, kernel, stride, outputs, repeats in STAGES:
            for index in range(repeats):
                layers.append(MBConv(channels, outputs, kernel, stride if index == 0 else 1, expand))
                channels = outputs
        layers += [conv_norm(channels, 1280, 1), nn.SiLU()]
        self.layers = nn.Sequential(*layers)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(1280, 1000)
        scale_convolutions(self)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.dropout(self.layers(image).mean((2, 3))))


def efficientnet_b0() -> EfficientNetB0:
    """EfficientNet-B0."""
    return EfficientNetB0()
