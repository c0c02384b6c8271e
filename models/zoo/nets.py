"""The nets whose published weights are torch files, in plain torch, under the weights' own parameter names.

`build(net, weights)` gives the module in eval mode with `weights` loaded, and how to export it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.recipes.bert import Bert, BertConfig


@dataclass(frozen=True)
class Built:
    """A module in eval mode, example inputs by argument name, output names, and symbolic axes by input."""

    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    dynamic: dict[str, dict[int, str]] = field(default_factory=dict)


class SameConv(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding for a known input size, as an explicit pad before it."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, size: int, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)
        pad = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        low, high = pad // 2, pad - pad // 2
        self.static_padding = nn.ZeroPad2d((low, high, low, high)) if pad else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.static_padding(x))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class LiteBlock(nn.Module):
    """Inverted residual of EfficientNet-Lite: expand, depthwise, project; no squeeze-and-excitation."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expand: int, size: int) -> None:
        super().__init__()
        wide = inputs * expand
        self.expands = expand != 1
        if self.expands:
            self._expand_conv = SameConv(inputs, wide, 1, 1, size)
            self._bn0 = _norm(wide)
        self._depthwise_conv = SameConv(wide, wide, kernel, stride, size, groups=wide)
        self._bn1 = _norm(wide)
        self._project_conv = SameConv(wide, outputs, 1, 1, size)
        self._bn2 = _norm(outputs)
        self.residual = stride == 1 and inputs == outputs
        self.relu6 = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        skip = x
        if self.expands:
            x = self.relu6(self._bn0(self._expand_conv(x)))
        x = self.relu6(self._bn1(self._depthwise_conv(x)))
        x = self._bn2(self._project_conv(x))
        return x + skip if self.residual else x


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0: float32 [batch, 3, 224, 224] to ImageNet logits [batch, 1000].

    After the TPU reference, https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite.
    """

    # repeats, kernel, stride, expansion, input channels, output channels
    STAGES = (
        (1, 3, 1, 1, 32, 16),
        (2, 3, 2, 6, 16, 24),
        (2, 5, 2, 6, 24, 40),
        (3, 3, 2, 6, 40, 80),
        (3, 5, 1, 6, 80, 112),
        (4, 5, 2, 6, 112, 192),
        (1, 3, 1, 6, 192, 320),
    )

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv(3, 32, 3, 2, 224)
        self._bn0 = _norm(32)
        size, blocks = 112, []
        for repeats, kernel, stride, expand, inputs, outputs in self.STAGES:
            for index in range(repeats):
                step = stride if index == 0 else 1
                blocks.append(LiteBlock(outputs if index else inputs, outputs, kernel, step, expand, size))
                size = -(-size // step)
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = SameConv(320, 1280, 1, 1, size)
        self._bn1 = _norm(1280)
        self._fc = nn.Linear(1280, 1000)
        self.relu6 = nn.ReLU6()
        self.dropout = nn.Dropout(0.2)

    def forward(self, image: Tensor) -> Tensor:
        x = self.relu6(self._bn0(self._conv_stem(image)))
        for block in self._blocks:
            x = block(x)
        x = self.relu6(self._bn1(self._conv_head(x)))
        x = F.adaptive_avg_pool2d(x, 1)
        return self._fc(self.dropout(x.view(x.size(0), -1)))


class Crepe(nn.Module):
    """CREPE pitch tracker: float32 [batch, 1024] normalised frames to [batch, 360] salience in 20-cent bins.

    BatchNorm follows the ReLU here. Kim et al., "CREPE: a convolutional representation for pitch estimation", 2018.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.features = 4 * widths[-1]
        for index, (inputs, outputs) in enumerate(zip((1, *widths), widths, strict=False), start=1):
            kernel, stride = (512, 4) if index == 1 else (64, 1)
            self.add_module(f"conv{index}", nn.Conv2d(inputs, outputs, (kernel, 1), (stride, 1)))
            self.add_module(f"conv{index}_BN", nn.BatchNorm2d(outputs, eps=0.0010000000474974513))
        self.classifier = nn.Linear(self.features, 360)

    def forward(self, frames: Tensor) -> Tensor:
        x = frames[:, None, :, None]
        for index in range(1, 7):
            x = F.pad(x, (0, 0, 254, 254) if index == 1 else (0, 0, 31, 32))
            x = F.relu(self.get_submodule(f"conv{index}")(x))
            x = F.max_pool2d(self.get_submodule(f"conv{index}_BN")(x), (2, 1), (2, 1))
        x = x.permute(0, 2, 1, 3).reshape(-1, self.features)
        return torch.sigmoid(self.classifier(x))


class PNet(nn.Module):
    """MTCNN's proposal net: float32 [batch, 3, height, width] in [-1, 1] to boxes [batch, 4, h, w] and faces [batch, 2, h, w].

    Zhang et al., "Joint face detection and alignment using multi-task cascaded convolutional networks", 2016.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 10, 3), nn.PReLU(10)
        self.pool1 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.conv2, self.prelu2 = nn.Conv2d(10, 16, 3), nn.PReLU(16)
        self.conv3, self.prelu3 = nn.Conv2d(16, 32, 3), nn.PReLU(32)
        self.conv4_1, self.conv4_2 = nn.Conv2d(32, 2, 1), nn.Conv2d(32, 4, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = self.pool1(self.prelu1(self.conv1(image)))
        x = self.prelu3(self.conv3(self.prelu2(self.conv2(x))))
        faces = F.softmax(self.conv4_1(x), dim=1)
        return self.conv4_2(x), faces


class ONet(nn.Module):
    """MTCNN's output net: float32 [batch, 3, 48, 48] in [-1, 1] to boxes [batch, 4], landmarks [batch, 10], faces [batch, 2].

    Zhang et al., as for `PNet`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 32, 3), nn.PReLU(32)
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2, self.prelu2 = nn.Conv2d(32, 64, 3), nn.PReLU(64)
        self.pool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv3, self.prelu3 = nn.Conv2d(64, 64, 3), nn.PReLU(64)
        self.pool3 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.conv4, self.prelu4 = nn.Conv2d(64, 128, 2), nn.PReLU(128)
        self.dense5, self.prelu5 = nn.Linear(1152, 256), nn.PReLU(256)
        self.dense6_1, self.dense6_2, self.dense6_3 = nn.Linear(256, 2), nn.Linear(256, 4), nn.Linear(256, 10)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.pool1(self.prelu1(self.conv1(image)))
        x = self.pool2(self.prelu2(self.conv2(x)))
        x = self.pool3(self.prelu3(self.conv3(x)))
        x = self.prelu4(self.conv4(x)).permute(0, 3, 2, 1).contiguous()
        x = self.prelu5(self.dense5(x.view(x.shape[0], -1)))
        return self.dense6_2(x), self.dense6_3(x), F.softmax(self.dense6_1(x), dim=1)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file of float32 and int64 tensors: eight bytes of header size, JSON, then the data."""
    kinds = {"F32": np.dtype("<f4"), "I64": np.dtype("<i8")}
    raw = np.fromfile(path, dtype=np.uint8)
    start = 8 + int(raw[:8].view("<u8")[0])
    header = json.loads(raw[8:start].tobytes())
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            low, high = (start + offset for offset in entry["data_offsets"])
            # A copy: an offset in the file need not be aligned for its type.
            values = np.frombuffer(raw[low:high].tobytes(), dtype=kinds[entry["dtype"]])
            tensors[name] = torch.from_numpy(values.reshape(entry["shape"]).copy())
    return tensors


def _minilm(weights: Path) -> Built:
    config = BertConfig(vocabulary=30522, width=384, depth=6, heads=12, hidden=1536, positions=512)
    module = Bert(config)
    state = read_safetensors(weights)
    state.pop("embeddings.position_ids", None)
    module.load_state_dict(state)
    shape = (2, 16)
    inputs = {
        "input_ids": torch.full(shape, 1000),
        "attention_mask": torch.ones(shape, dtype=torch.int64),
        "token_type_ids": torch.zeros(shape, dtype=torch.int64),
    }
    axes = {0: "batch", 1: "seq"}
    return Built(module.eval(), inputs, ("last_hidden_state", "pooler_output"), dict.fromkeys(inputs, axes))


def _convolutional(
    make: Callable[[], nn.Module],
    example: dict[str, tuple[int, ...]],
    outputs: tuple[str, ...],
    axes: dict[int, str],
) -> Callable[[Path], Built]:
    def build(weights: Path) -> Built:
        module = make()
        module.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        inputs = {name: torch.zeros(shape) for name, shape in example.items()}
        return Built(module.eval(), inputs, outputs, dict.fromkeys(inputs, axes))

    return build


_BATCH = {0: "batch"}
_FULL = (1024, 128, 128, 128, 256, 512)
_TINY = (128, 16, 16, 16, 32, 64)

_BUILDERS: dict[str, Callable[[Path], Built]] = {
    "crepe_full": _convolutional(lambda: Crepe(_FULL), {"frames": (2, 1024)}, ("salience",), _BATCH),
    "crepe_tiny": _convolutional(lambda: Crepe(_TINY), {"frames": (2, 1024)}, ("salience",), _BATCH),
    "effnet_lite0": _convolutional(EfficientNetLite0, {"image": (2, 3, 224, 224)}, ("logits",), _BATCH),
    "minilm": _minilm,
    "onet": _convolutional(ONet, {"image": (2, 3, 48, 48)}, ("boxes", "landmarks", "faces"), _BATCH),
    "pnet": _convolutional(PNet, {"image": (2, 3, 60, 80)}, ("boxes", "faces"), {0: "batch", 2: "height", 3: "width"}),
}


def build(net: str, weights: Path) -> Built:
    """The net called `net` in the zoo's table, with the weights of the file `weights`."""
    return _BUILDERS[net](weights)
