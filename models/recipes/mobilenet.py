"""MobileNetV2 in plain torch. Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks", 2018."""

from __future__ import annotations

from torch import Tensor, nn

from models.recipes.recipe import scale_convolutions
from models.recipes.resnet import conv_norm

# expansion, output channels, repeats, stride of the first
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """Expand by a 1x1 convolution, filter depthwise, project without an activation."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = inputs * expand
        layers: list[nn.Module] = [conv_norm(inputs, wide, 1), nn.ReLU6()] if expand > 1 else []
        layers += [conv_norm(wide, wide, 3, stride, groups=wide), nn.ReLU6(), conv_norm(wide, outputs, 1)]
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class MobileNetV2(nn.Module):
    """float32 image [batch, 3, height, width] to logits [batch, 1000]; 52 convolutions with BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_norm(3, 32, 3, 2), nn.ReLU6()]
        channels = 32
        for expand, outputs, repeats, stride in STAGES:
            for index in range(repeats):
                layers.append(InvertedResidual(channels, outputs, stride if index == 0 else 1, expand))
                channels = outputs
        layers += [conv_norm(channels, 1280, 1), nn.ReLU6()]
        self.layers = nn.Sequential(*layers)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(1280, 1000)
        scale_convolutions(self)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.dropout(self.layers(image).mean((2, 3))))


def mobilenet_v2() -> MobileNetV2:
    """MobileNetV2 of width 1.0."""
    return MobileNetV2()
