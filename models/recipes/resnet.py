"""ResNet in plain torch. He et al., "Deep residual learning for image recognition", 2015."""

from __future__ import annotations

from torch import Tensor, nn

from models.recipes.recipe import scale_convolutions


def conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution without a bias, then BatchNorm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Block(nn.Module):
    """A residual block: the given convolutions with ReLU between them, plus a skip that matches their shape."""

    def __init__(self, body: list[nn.Sequential], skip: nn.Sequential | None) -> None:
        super().__init__()
        self.body = nn.ModuleList(body)
        self.skip = skip
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for conv in self.body[:-1]:
            y = self.relu(conv(y))
        y = self.body[-1](y)
        return self.relu(y + (x if self.skip is None else self.skip(x)))


def _basic(inputs: int, width: int, stride: int) -> tuple[list[nn.Sequential], int]:
    return [conv_norm(inputs, width, 3, stride), conv_norm(width, width, 3)], width


def _bottleneck(inputs: int, width: int, stride: int) -> tuple[list[nn.Sequential], int]:
    outputs = 4 * width
    return [conv_norm(inputs, width, 1), conv_norm(width, width, 3, stride), conv_norm(width, outputs, 1)], outputs


class ResNet(nn.Module):
    """float32 image [batch, 3, height, width] to logits [batch, classes]; any height and width from 32."""

    def __init__(self, depths: tuple[int, ...], bottleneck: bool, width: int, classes: int) -> None:
        super().__init__()
        make = _bottleneck if bottleneck else _basic
        self.stem = conv_norm(3, width, 7, 2)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(3, 2, 1)
        blocks, channels = [], width
        for stage, depth in enumerate(depths):
            for index in range(depth):
                stride = 2 if stage and not index else 1
                body, outputs = make(channels, width << stage, stride)
                same = stride == 1 and channels == outputs
                blocks.append(Block(body, None if same else conv_norm(channels, outputs, 1, stride)))
                channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, classes)
        scale_convolutions(self)
        for block in blocks:
            # A weaker branch: the sums of residuals do not grow from block to block.
            block.body[-1][0].weight.data.mul_(0.3)

    def forward(self, image: Tensor) -> Tensor:
        x = self.blocks(self.pool(self.relu(self.stem(image))))
        return self.head(x.mean((2, 3)))


def resnet18(width: int = 64) -> ResNet:
    """ResNet-18: 20 convolutions with BatchNorm, basic blocks."""
    return ResNet((2, 2, 2, 2), False, width, 1000)


def resnet50(width: int = 64) -> ResNet:
    """ResNet-50: 53 convolutions with BatchNorm, bottleneck blocks."""
    return ResNet((3, 4, 6, 3), True, width, 1000)
