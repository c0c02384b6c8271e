"""Random torch modules through the passes on ATen graphs, beside eager torch: `python -m tests.fuzz.modules --minutes 5 [--seed N]`.

Modules compute in double precision, so that a wrong answer is told from rounding. A module is a list of steps, each a function of
values before it; what steps there are is weighted to what passes look for, and to what should make them refuse: shared modules,
values with several users, outputs on the way, writing in place, buffers that change.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from graphopt.aten import Program
from graphopt.model import Model
from graphopt.pipeline.presets import Pipeline, load_preset
from graphopt.pipeline.runner import run_pipeline
from tests.support import REGISTRY

Shape = tuple[int, int, int]  # channels, height, width
Step = Callable[[nn.Module, list[torch.Tensor]], torch.Tensor]
RTOL = 1e-9


class Random(nn.Module):
    """Steps over a growing list of values; the outputs are some of these."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList()
        self.steps: list[Step] = []
        self.outputs: list[int] = []

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values = [x]
        for step in self.steps:
            values.append(step(self, values))
        return tuple(values[i] for i in self.outputs)


@dataclass
class Builder:
    """Draws a module: `shapes` of its values, without their batch."""

    draw: random.Random
    module: Random = field(default_factory=Random)
    shapes: list[Shape] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def build(self) -> tuple[Random, tuple[int, ...]]:
        first = (self.draw.choice([2, 4, 6]), self.draw.choice([5, 6, 8]), self.draw.choice([5, 6, 8]))
        self.shapes.append(first)
        for _ in range(self.draw.randint(3, 9)):
            getattr(self, self.draw.choice(BLOCKS))()
        module = self.module
        count = len(module.steps)
        module.outputs = sorted({count, *(self.draw.randrange(1, count + 1) for _ in range(self.draw.choice([0, 0, 1, 2])))})
        for parameter in [*module.parameters(), *module.buffers()]:
            if parameter.is_floating_point():
                parameter.requires_grad_(False).uniform_(0.3, 1.2)
                parameter.mul_(torch.sign(torch.randn(parameter.shape)) if parameter.dim() > 1 else 1.0)
        return module.double().eval(), first

    # --- helpers ------------------------------------------------------------------------------------------------

    def source(self) -> int:
        """A value, mostly the last one."""
        return len(self.shapes) - 1 if self.draw.random() < 0.75 else self.draw.randrange(len(self.shapes))

    def part(self, module: nn.Module) -> int:
        self.module.parts.append(module)
        return len(self.module.parts) - 1

    def buffer(self, *shape: int) -> str:
        name = f"held{len(self.names)}"
        self.names.append(name)
        self.module.register_buffer(name, torch.ones(shape))
        return name

    def add(self, shape: Shape, step: Step) -> int:
        self.module.steps.append(step)
        self.shapes.append(shape)
        return len(self.shapes) - 1

    def apply(self, part: int, at: int, shape: Shape) -> int:
        return self.add(shape, lambda m, v: m.parts[part](v[at]))

    def elementwise(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        at = self.source()
        self.add(self.shapes[at], lambda m, v: function(v[at]))

    def conv_of(self, at: int, out: int | None = None, kernel: int | None = None, bias: bool | None = None) -> int:
        channels, height, width = self.shapes[at]
        kernel = kernel if kernel is not None else self.draw.choice([1, 1, 3])
        out = out if out is not None else self.draw.choice([2, 4, channels])
        groups = 2 if channels % 2 == 0 and out % 2 == 0 and self.draw.random() < 0.2 else 1
        padded = kernel // 2 if self.draw.random() < 0.8 or min(height, width) < kernel + 1 else 0
        bias = self.draw.random() < 0.5 if bias is None else bias
        made = self.part(nn.Conv2d(channels, out, kernel, padding=padded, groups=groups, bias=bias))
        lost = kernel - 1 - 2 * padded
        return self.apply(made, at, (out, height - lost, width - lost))

    def norm_of(self, at: int) -> int:
        channels = self.shapes[at][0]
        made = nn.BatchNorm2d(channels, eps=self.draw.choice([1e-5, 1e-3]), affine=self.draw.random() < 0.8)
        return self.apply(self.part(made), at, self.shapes[at])

    # --- blocks -------------------------------------------------------------------------------------------------

    def conv_norm(self) -> None:
        at = self.norm_of(self.conv_of(self.source()))
        if self.draw.random() < 0.5:
            inplace = self.draw.random() < 0.3
            self.add(self.shapes[at], lambda m, v: F.relu(v[at].clone() if inplace else v[at], inplace=inplace))

    def shared(self) -> None:
        """One convolution called twice, with a normalization of its own behind each."""
        at = self.source()
        channels = self.shapes[at][0]
        first = self.conv_of(at, channels, 1, True)
        used = len(self.module.parts) - 1
        a = self.norm_of(first)
        b = self.norm_of(self.apply(used, a, self.shapes[first]))
        self.add(self.shapes[b], lambda m, v: v[a] + v[b])

    def repvgg(self) -> None:
        at = self.source()
        channels, height, width = self.shapes[at]
        big = self.apply(self.part(nn.Conv2d(channels, channels, 3, padding=1, bias=False)), at, (channels, height, width))
        one = self.apply(self.part(nn.Conv2d(channels, channels, 1, bias=False)), at, (channels, height, width))
        branches = [self.norm_of(big), self.norm_of(one), self.norm_of(at)][: self.draw.choice([2, 3])]
        self.add(self.shapes[at], lambda m, v: F.relu(sum(v[b] for b in branches[1:]) + v[branches[0]]))

    def parallel(self) -> None:
        at = self.source()
        branches = [self.conv_of(at, self.draw.choice([2, 4]), 1) for _ in range(2)]
        channels = sum(self.shapes[b][0] for b in branches)
        self.add((channels, *self.shapes[branches[0]][1:]), lambda m, v: torch.cat([v[b] for b in branches], 1))

    def consecutive(self) -> None:
        self.conv_of(self.conv_of(self.source(), 6, 1), 2, self.draw.choice([1, 3]))

    def padded(self) -> None:
        at = self.source()
        channels, height, width = self.shapes[at]
        pads, value = self.draw.choice([(1, 1, 1, 1), (0, 1, 0, 1), (1, 0, 0, 0)]), self.draw.choice([0.0, 0.0, 0.5])
        shape = (channels, height + sum(pads[2:]), width + sum(pads[:2]))
        at = self.add(shape, lambda m, v, at=at: F.pad(v[at], pads, value=value))
        self.conv_of(at)

    def affine(self) -> None:
        at = self.source()
        channels = self.shapes[at][0]
        scale, bias = self.buffer(1, channels, 1, 1), self.buffer(channels, 1, 1)
        factor, turned = self.draw.choice([1.0, 2.0, -0.5]), self.draw.random() < 0.5
        at = self.add(self.shapes[at], lambda m, v, at=at: v[at] * getattr(m, scale) * factor + getattr(m, bias))
        at = self.add(self.shapes[at], lambda m, v, at=at: (3.0 - v[at]) if turned else (v[at] - 0.25) / 4)
        if self.draw.random() < 0.6:
            self.conv_of(at)

    def nothing(self) -> None:
        self.elementwise(self.draw.choice([
            lambda x: x * 1, lambda x: x + 0, lambda x: x / 1, lambda x: F.dropout(x, 0.3, False), lambda x: x.clone(),
            lambda x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2), lambda x: x.reshape(x.shape[0], -1).reshape(x.shape),
            lambda x: x.double(), lambda x: torch.cat([x[:, :1], x[:, 1:]], 1), lambda x: -(-x), lambda x: F.relu(F.relu(x)),
            lambda x: x.transpose(2, 3).transpose(3, 2), lambda x: torch.where(torch.logical_not(x > 0), -x, x),
            lambda x: x.unsqueeze(1).squeeze(1),
        ]))  # fmt: skip

    def activation(self) -> None:
        self.elementwise(self.draw.choice([
            lambda x: x * torch.clamp(x + 3, 0, 6) / 6, lambda x: torch.clamp(x + 3, 0, 6) / 6, lambda x: x * torch.sigmoid(x),
            lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))), lambda x: x * 0.5 * (1 + torch.erf(x * math.sqrt(0.5))),
            lambda x: x.clamp(0, 6).clamp(1, 5), lambda x: F.hardsigmoid(x) * x, lambda x: torch.sigmoid(1.5 * x) * x, F.silu, F.relu,
        ]))  # fmt: skip

    def normalized(self) -> None:
        at = self.source()
        channels = self.shapes[at][0]
        axes = self.draw.choice([(2, 3), (3,), (1, 2, 3), (1,)])
        scale = self.buffer(1, channels, 1, 1)

        def step(m: nn.Module, v: list[torch.Tensor]) -> torch.Tensor:
            d = v[at] - v[at].mean(axes, keepdim=True)
            return d / torch.sqrt((d * d).mean(axes, keepdim=True) + 1e-4) * getattr(m, scale)

        self.add(self.shapes[at], step)

    def softmaxed(self) -> None:
        axis, logarithm = self.draw.choice([1, 2, 3]), self.draw.random() < 0.3

        def function(x: torch.Tensor) -> torch.Tensor:
            d = x - x.amax(axis, keepdim=True)
            e = d.exp()
            return d - e.sum(axis, keepdim=True).log() if logarithm else e / e.sum(axis, keepdim=True)

        self.elementwise(function)

    def attention(self) -> None:
        at = self.source()
        channels = self.shapes[at][0]
        queries, keys, values = (self.part(nn.Linear(channels, channels, bias=self.draw.random() < 0.5)) for _ in range(3))
        scale = self.draw.choice([channels**-0.5, 0.3, 1.0])

        def step(m: Random, v: list[torch.Tensor]) -> torch.Tensor:
            tokens = v[at].flatten(2).transpose(1, 2)
            q, k, w = (m.parts[i](tokens).unsqueeze(1) for i in (queries, keys, values))
            found = torch.softmax(q @ k.transpose(-1, -2) * scale, -1) @ w
            return found.squeeze(1).transpose(1, 2).reshape(v[at].shape)

        self.add(self.shapes[at], step)

    def constants(self) -> None:
        at = self.source()
        channels = self.shapes[at][0]
        a, b = self.buffer(channels, 1, 1), self.buffer(channels, 1, 1)
        self.add(self.shapes[at], lambda m, v: v[at] * (getattr(m, a) * 2 + getattr(m, b)).abs().sqrt())

    def twice(self) -> None:
        """The same computed twice."""
        self.elementwise(lambda x: torch.tanh(x * 0.3) + torch.tanh(x * 0.3) * x.abs())

    def joined(self) -> None:
        at = self.source()
        like = [i for i, shape in enumerate(self.shapes) if shape == self.shapes[at]]
        other = self.draw.choice(like)
        function = self.draw.choice([torch.add, torch.mul, torch.sub, torch.maximum])
        self.add(self.shapes[at], lambda m, v: function(v[at], v[other]))

    def written(self) -> None:
        """Into a value that others may use, or into a buffer."""
        at = self.source()
        if self.draw.random() < 0.5:
            self.add(self.shapes[at], lambda m, v: v[at].clone().mul_(0.5).add_(v[at]))
            return
        held = self.buffer(1)

        def step(m: nn.Module, v: list[torch.Tensor]) -> torch.Tensor:
            getattr(m, held).mul_(0.5).add_(1.0)
            return v[at] * getattr(m, held)

        self.add(self.shapes[at], step)


BLOCKS = (
    "conv_norm", "conv_norm", "conv_norm", "shared", "repvgg", "parallel", "consecutive", "padded", "affine", "affine", "nothing",
    "nothing", "activation", "activation", "normalized", "softmaxed", "attention", "constants", "twice", "joined", "joined", "written",
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """What is wrong with the module of a seed, and the passes without any one of which it is not."""

    seed: int
    text: str
    passes: tuple[str, ...] = ()


class RejectedError(Exception):
    """torch does not export the module, or its answers are not finite."""


def drawn(seed: int) -> tuple[Random, list[torch.Tensor], Any]:
    """The module of a seed, inputs of two sizes, and its functional program. Raises RejectedError."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module, shape = Builder(random.Random(seed)).build()
        inputs = [torch.randn(batch, *shape, dtype=torch.float64) for batch in (2, 3)]
    with torch.no_grad():
        if not all(torch.isfinite(y).all() for x in inputs for y in copy.deepcopy(module)(x)):
            raise RejectedError("the answers are not finite")
    try:
        program = torch.export.export(module, (inputs[0],), dynamic_shapes=(({0: torch.export.Dim.AUTO}),))
        program = program.run_decompositions({})
        program.module()(inputs[1])  # it may have been made for one size alone
        return module, inputs, program
    except Exception as error:
        raise RejectedError(f"{type(error).__name__}: {str(error).splitlines()[0]}") from error


def check(seed: int, pipeline: Pipeline) -> Finding | None:
    """Whether the module of a seed computes, after the passes, what it did, call after call. Raises RejectedError."""
    module, inputs, program = drawn(seed)
    text, applied = difference(module, inputs, program, pipeline)
    if not text:
        return None
    culprits = []
    for name in applied:
        steps = [step for step in pipeline.steps if step.name != name]
        if not difference(module, inputs, program, Pipeline.of("less", steps, pipeline.rounds))[0]:
            culprits.append(name)
    return Finding(seed, text, tuple(culprits))


def difference(module: Random, inputs: list[torch.Tensor], program: Any, pipeline: Pipeline) -> tuple[str, list[str]]:
    """What is not as it was ("": all is), and the passes that changed something."""
    candidate = run_pipeline(lambda: Model(Program(program), kind="torch"), pipeline)
    applied = list(dict.fromkeys(a.pass_name for a in candidate.applications))
    failed = [f"{run.name}: {run.note}" for run in candidate.runs if run.status == "failed"]
    if failed:
        return failed[0], applied
    try:
        eager, made = copy.deepcopy(module), candidate.model.graph.export().module()
        with torch.no_grad():
            for x in inputs:  # one after the other: buffers go on changing
                for i, (a, b) in enumerate(zip(eager(x.clone()), made(x.clone()), strict=True)):
                    atol = RTOL * max(1.0, float(a.abs().max()))
                    torch.testing.assert_close(b, a, rtol=RTOL, atol=atol, msg=lambda m, i=i: f"output {i}: {m}")
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", applied
    return "", applied


def run(seconds: float, seed: int, *, limit: int | None = None, stop: int = 5) -> tuple[int, int, list[Finding]]:
    """Check modules from `seed` on; how many were checked, how many were turned down, and the findings."""
    pipeline = load_preset("default", REGISTRY)
    started, checked, rejected, findings = time.monotonic(), 0, 0, []
    while time.monotonic() - started < seconds and len(findings) < stop and (limit is None or checked < limit):
        try:
            found = check(seed, pipeline)
            checked += 1
        except RejectedError:
            found, rejected = None, rejected + 1
        if found is not None:
            findings.append(found)
            print(f"seed {seed}: {found.text}; gone without {', '.join(found.passes) or '-'}", flush=True)
        seed += 1
    return checked, rejected, findings


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.modules", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0, help="the first seed; one is added from module to module")
    parser.add_argument("--modules", type=int, help="stop after this many")
    given = parser.parse_args()
    checked, rejected, findings = run(given.minutes * 60, given.seed, limit=given.modules)
    print(f"{checked} modules checked, {rejected} turned down, {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
