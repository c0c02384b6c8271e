"""What a recipe is: an architecture with seeded weights, its inputs, and what of their shapes may vary."""

from __future__ import annotations

import importlib
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

# Sizes of symbolic axes by the `size` that `example_inputs` is asked for. Height and width are multiples
# of 32 so that every net's strides divide them.
SIZES: Mapping[str, Mapping[str, int]] = {
    "small": {"batch": 2, "seq": 12, "seq_out": 7, "height": 64, "width": 96},
    "medium": {"batch": 1, "seq": 48, "seq_out": 10, "height": 160, "width": 128},
    "large": {"batch": 4, "seq": 128, "seq_out": 32, "height": 224, "width": 224},
    "single": {"batch": 1, "seq": 128, "seq_out": 32, "height": 224, "width": 224},
}


@dataclass(frozen=True)
class Input:
    """One input: its shape, symbolic axes by name, and for an int64 input the ids' upper bound.

    `bound` 0 means float32 values of a standard normal; `kind` "mask" means ones, with ragged zeros at the
    ends of rows but the first.
    """

    shape: tuple[int | str, ...]
    bound: int = 0
    kind: str = ""

    @property
    def axes(self) -> dict[int, str]:
        """The symbolic axes, by position."""
        return {axis: name for axis, name in enumerate(self.shape) if isinstance(name, str)}


@dataclass(frozen=True)
class Recipe:
    """An architecture in plain torch. Nothing imports torch before `build` or `example_inputs` is called.

    `factory` is "module:function" within `models.recipes`; `options` and, for the small variant,
    `small_options` are its keyword arguments. `outputs` are the names of the outputs, in order. `fixed` names,
    by exporter, symbolic axes that it cannot keep: there they have the sizes of `SIZES["small"]`.
    """

    name: str
    factory: str
    inputs: Mapping[str, Input]
    outputs: tuple[str, ...]
    options: Mapping[str, int] = field(default_factory=dict)
    small_options: Mapping[str, int] = field(default_factory=dict)
    fixed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    seed: int = 0

    def build(self, small: bool = False) -> nn.Module:
        """The module, float32, in eval mode, weights and BatchNorm statistics random but the same every time.

        `small` makes it thinner and shallower where `small_options` says how; the structure stays.
        """
        import torch

        module_name, function = self.factory.split(":")
        factory = getattr(importlib.import_module(f"models.recipes.{module_name}"), function)
        options = {**self.options, **(self.small_options if small else {})}
        # The caller's random state is left as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(zlib.crc32(f"{self.name}/{self.seed}".encode()))
            module = factory(**options)
            randomize_norms(module)
        return module.eval()

    def example_inputs(self, seed: int = 0, size: str = "small", how: str = "") -> dict[str, torch.Tensor]:
        """Seeded inputs by name; `size`, a key of `SIZES`, gives the symbolic axes' sizes.

        With `how`, an exporter, axes that are fixed in its exports keep their size.
        """
        import torch

        random = torch.Generator().manual_seed(seed)
        fixed = self.fixed.get(how, ())
        sizes = {axis: SIZES["small" if axis in fixed else size][axis] for axis in SIZES[size]}
        made = {}
        for name, spec in self.inputs.items():
            shape = [sizes[axis] if isinstance(axis, str) else axis for axis in spec.shape]
            if spec.kind == "mask":
                made[name] = _ragged_mask(shape, random)
            elif spec.bound:
                made[name] = torch.randint(spec.bound, shape, generator=random)
            else:
                made[name] = torch.randn(shape, generator=random)
        return made

    def dynamic(self, how: str = "") -> dict[str, dict[int, str]]:
        """Symbolic axes by input, `{"image": {0: "batch"}}`; with `how`, those that this exporter keeps."""
        fixed = self.fixed.get(how, ())
        return {name: {axis: symbol for axis, symbol in spec.axes.items() if symbol not in fixed} for name, spec in self.inputs.items()}


def _ragged_mask(shape: list[int], random: torch.Generator) -> torch.Tensor:
    import torch

    mask = torch.ones(shape, dtype=torch.int64)
    for row in range(1, shape[0]):
        mask[row, int(torch.randint(shape[1] // 2, shape[1], (), generator=random)) :] = 0
    return mask


def randomize_norms(module: nn.Module) -> None:
    """Give every BatchNorm random statistics and affine parameters, drawn from torch's global generator.

    Variances and scales lie around 1 and means and shifts around 0, so that activations keep their order of
    magnitude while no BatchNorm is the identity: folding one wrongly shows.
    """
    import torch

    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
                part.running_mean.normal_(0, 0.2)
                part.running_var.uniform_(0.6, 1.6)
                part.weight.uniform_(0.7, 1.3)
                part.bias.normal_(0, 0.1)


def scale_convolutions(module: nn.Module) -> None:
    """He initialisation of every convolution: the variance of activations holds through ReLU."""
    from torch import nn

    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            kernel = math.prod(part.kernel_size)
            reach = kernel * part.in_channels / part.groups
            if isinstance(part, nn.ConvTranspose2d):
                # An output pixel is reached from one place in each stride-sized cell of the kernel.
                reach /= math.prod(part.stride)
            nn.init.normal_(part.weight, std=math.sqrt(2 / reach))
            if part.bias is not None:
                nn.init.normal_(part.bias, std=0.1)
