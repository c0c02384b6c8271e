"""An ONNX model as a torch module whose weights are tuned, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, fx
from torch.nn import functional

from graphopt.errors import InputError
from graphopt.importing import to_torch
from graphopt.importing.operators.normalization import batch_normalization
from graphopt.recovery.tuning.batches import Feeds

_ZEROS = 0.1  # share of exact zeros from which on they are there on purpose


class Net:
    """A model as a module; it gives its outputs, and then inner values.

    Attributes:
        module: takes the inputs in order.
        outputs: how many outputs there are before the inner values.
    """

    def __init__(self, model: ir.Model, inner: Sequence[str] = ()) -> None:
        """model: left alone. inner: names of values in its main graph.

        Raises:
            InputError: torch is not installed, an operator cannot be imported, or there is no such value.
        """
        model = model.clone()
        self.outputs = len(model.graph.outputs)
        if inner:
            values = {v.name: v for node in model.graph for v in node.outputs}
            for name in inner:
                if name not in values:
                    raise InputError(f"tuning: there is no value {name!r} in the graph")
                model.graph.outputs.append(values[name])
        self.module = to_torch(model)
        self._inputs: list[str] = self.module.meta["onnx"]["inputs"]

    def __call__(self, feeds: Feeds) -> list[Tensor]:
        """What it gives on feeds, as tensors."""
        found = self.module(*(torch.from_numpy(np.ascontiguousarray(feeds[name])) for name in self._inputs if name in feeds))
        return list(found) if isinstance(found, tuple) else [found]


class Student(Net):
    """A model whose weights are tuned: float32 initializers that no caller may override."""

    def __init__(self, model: ir.Model, inner: Sequence[str] = (), *, keep_zeros: bool = True) -> None:
        super().__init__(model, inner)
        self.model = model
        self.weights: dict[str, torch.nn.Parameter] = {}  # by the name of the initializer
        known = dict(self.module.named_parameters())
        for name, path in self.module.meta["onnx"]["tensors"].items():
            if path not in known:
                continue
            value = model.graph.initializers.get(name)
            tuned = value is not None and not value.is_graph_input() and known[path].dtype == torch.float32
            known[path].requires_grad_(tuned)
            if tuned:
                self.weights[name] = known[path]
        self._zeros = {}
        if keep_zeros:
            for name, weight in self.weights.items():
                zeros = weight == 0
                if weight.dim() > 1 and float(zeros.float().mean()) >= _ZEROS:
                    self._zeros[name] = zeros
        self._norms = _normalizations(self.module)

    # --- what can be tuned --------------------------------------------------------------------------------------

    def check(self, feeds: Feeds) -> list[str]:
        """Raises InputError where no gradient reaches any weight, by the operator that stops it; names of weights without one."""
        if not self.weights:
            raise InputError("tuning: the model has no float32 weights to tune")
        found = [a for a in self(feeds) if a.is_floating_point()]
        if not any(a.requires_grad for a in found):
            raise InputError(f"tuning: no gradient reaches the weights: {self._stopped(feeds)} cannot be differentiated")
        sum(a.float().sum() for a in found if a.requires_grad).backward()  # type: ignore[union-attr]
        missing = [name for name, weight in self.weights.items() if weight.grad is None]
        self.module.zero_grad(set_to_none=True)
        for name in missing:
            self.weights.pop(name).requires_grad_(False)
        return missing

    def _stopped(self, feeds: Feeds) -> str:
        """The first operator that loses the gradient."""
        stopped: list[str] = []

        class Watch(fx.Interpreter):
            def run_node(self, node: fx.Node) -> Any:
                made = super().run_node(node)
                if isinstance(made, Tensor) and not made.requires_grad and node.op == "call_function" and not stopped:
                    read = [self.env[n] for n in node.all_input_nodes]
                    if any(isinstance(a, Tensor) and a.requires_grad for a in read):
                        name, kind = node.meta.get("onnx", (node.name, node.name))
                        stopped.append(f"{kind} ({name or node.name})")
                return made

        inputs = [torch.from_numpy(np.ascontiguousarray(feeds[name])) for name in self._inputs if name in feeds]
        Watch(self.module, garbage_collect_values=False).run(*inputs)
        return stopped[0] if stopped else "an operator"

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """The weights that are tuned."""
        return iter(self.weights.values())

    @torch.no_grad()
    def after_step(self) -> None:
        """Zeros that are there on purpose stay."""
        for name, zeros in self._zeros.items():
            if name in self.weights:
                self.weights[name].masked_fill_(zeros, 0.0)

    # --- BatchNormalization -------------------------------------------------------------------------------------

    def train_normalizations(self, on: bool) -> None:
        """Whether BatchNormalization takes the batch's statistics, and moves the running ones."""
        for norm in self._norms:
            norm.training = on

    @torch.no_grad()
    def estimate_normalizations(self, batches: Iterator[Feeds]) -> None:
        """Running statistics anew: the mean over the batches (Wu and Johnson 2021, "Rethinking Batch in BatchNorm", section 3)."""
        if not self._norms:
            return
        self.train_normalizations(True)
        for number, feeds in enumerate(batches):
            for norm in self._norms:
                norm.momentum = 1 / (number + 1)
            self(feeds)
        for norm in self._norms:
            norm.momentum = None
        self.train_normalizations(False)

    # --- state, and the way back --------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """A copy of everything that tuning changes."""
        kept = {name: weight.detach().clone() for name, weight in self.weights.items()}
        return kept | {f"buffer {name}": a.clone() for name, a in self.module.named_buffers() if self._norms and a.is_floating_point()}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go back to a state."""
        buffers = dict(self.module.named_buffers())
        for name, tensor in state.items():
            (buffers[name[7:]] if name.startswith("buffer ") else self.weights[name]).copy_(tensor)

    def write_back(self) -> None:
        """The weights as they are now become the initializers of the model."""
        changed: dict[str, Tensor] = dict(self.weights)
        if self._norms:
            buffers = dict(self.module.named_buffers())
            changed |= {name: buffers[path] for name, path in self.module.meta["onnx"]["tensors"].items() if path in buffers}
        for name, tensor in changed.items():
            value = self.model.graph.initializers.get(name)
            if value is None or value.is_graph_input() or tensor.dtype != torch.float32:
                continue
            array = tensor.detach().numpy().copy()
            old = value.const_value
            assert old is not None and tuple(old.shape.numpy()) == array.shape
            value.const_value = ir.Tensor(array, name=value.name)


class _Normalization:
    """A BatchNormalization that can be in training mode."""

    def __init__(self, momentum: float) -> None:
        self.training = False
        self.momentum: float | None = None  # None: the model's own
        self._own = momentum
        self.__name__ = "batch_normalization"

    def __call__(self, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor, **keywords: Any) -> tuple[Tensor, ...]:
        if not self.training:
            return batch_normalization(x, scale, bias, mean, var, **keywords)
        momentum = self._own if self.momentum is None else self.momentum
        epsilon = keywords.get("epsilon", 1e-5)
        return (functional.batch_norm(x, mean, var, scale, bias, training=True, momentum=momentum, eps=epsilon),)


def _normalizations(module: fx.GraphModule) -> list[_Normalization]:
    found = []
    for node in module.graph.nodes:
        if node.op == "call_function" and node.target is batch_normalization:
            node.target = _Normalization(1 - node.kwargs.get("momentum", 0.9))
            found.append(node.target)
    if found:
        module.recompile()
    return found
