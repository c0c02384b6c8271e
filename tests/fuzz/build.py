"""A random model under construction: values with their types and sizes, weights that are shared at times, subgraphs."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZES = ({"n": 2, "s": 5}, {"n": 1, "s": 1}, {"n": 3, "s": 4})
"""What the symbolic dimensions stand for, from sample to sample; static models have the first."""
CHANNELS, SIDE, WIDTH = 4, 6, 8  # images are [n, 4, 6, 6], sequences [n, s, 8]
FAR = 2**63 - 1

Dims = tuple[int | str, ...]


@dataclass(frozen=True)
class V:
    """A value: `dims` may hold the names of symbolic dimensions."""

    name: str
    dtype: str
    dims: Dims


class Builder:
    """Draws a model; every value may be consumed again or become an output.

    Attributes:
        r: the source of all choices, so that a seed names a model.
        float: the floating-point type of the model.
        values: what blocks may build on, those of outer graphs included.
    """

    def __init__(self, seed: int) -> None:
        self.r = random.Random(seed)
        self.opset = self.r.choice((11, 12, 13, 14, 15, 16, 17, 17, 18, 18, 19, 20, 21, 22, 23))
        self.float = self.r.choice(("float32",) * 7 + ("float64", "float16"))
        self.static = self.r.random() < 0.4
        self.overridable = self.r.random() < 0.15
        self.inputs: dict[str, V] = {}
        self.weights: dict[str, np.ndarray] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.values: list[V] = []
        self.depth = 0
        self._count = 0

    # --- values -------------------------------------------------------------------------------------------------

    def dim(self, symbol: str) -> int | str:
        return SIZES[0][symbol] if self.static else symbol

    def input(self, name: str, dtype: str, dims: Dims) -> V:
        """The graph input of that name, made when it is first asked for."""
        if name not in self.inputs:
            self.inputs[name] = V(name, dtype, dims)
            self.values.append(self.inputs[name])
        return self.inputs[name]

    def image(self) -> V:
        return self._recent(lambda v: v.dims[1:] == (CHANNELS, SIDE, SIDE)) or self.input(
            "image", self.float, (self.dim("n"), CHANNELS, SIDE, SIDE))

    def sequence(self) -> V:
        dims = (self.dim("n"), self.dim("s"), WIDTH)
        return self._recent(lambda v: v.dims == dims) or self.input("sequence", self.float, dims)

    def ids(self) -> V:
        return self.input("ids", "int64", (self.dim("n"), self.dim("s")))

    def any(self, floating: bool = True) -> V:
        """Any value, a late one most of the time."""
        found = [v for v in self.values if v.dtype == self.float] if floating else self.values
        if not found:
            return self.r.choice((self.image, self.sequence))()
        return self.r.choice(found[-4:]) if self.r.random() < 0.8 else self.r.choice(found)

    def _recent(self, wanted) -> V | None:
        found = [v for v in self.values if v.dtype == self.float and wanted(v)]
        if not found or self.r.random() < 0.05:
            return None
        return self.r.choice(found[-3:]) if self.r.random() < 0.85 else self.r.choice(found)

    def fresh(self) -> str:
        self._count += 1
        return f"v{self._count}"

    # --- constants ----------------------------------------------------------------------------------------------

    def constant(self, data, dtype: str | None = None) -> V:
        """A constant as an initializer or a Constant node; one of equal content may be there already, and is shared at times."""
        array = np.asarray(data, dtype)
        if self.r.random() < 0.25:
            name = self.fresh()
            self.nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array)))
            return V(name, array.dtype.name, array.shape)
        if self.r.random() < 0.5:
            for name, other in self.weights.items():
                if other.dtype == array.dtype and other.shape == array.shape and other.tobytes() == array.tobytes():
                    return V(name, array.dtype.name, array.shape)
        name = f"w{len(self.weights)}"
        self.weights[name] = array
        return V(name, array.dtype.name, array.shape)

    def scalar(self, number: float, dtype: str | None = None) -> V:
        """A constant of one element, written as exporters do: rank 0, [1], or more ones."""
        shape = self.r.choice(((), (), (), (1,), (1, 1)))
        return self.constant(np.full(shape, number, dtype or self.float))

    def weight(self, *shape: int, scale: float = 0.5, low: float | None = None) -> V:
        """Random weights, at times those of another place."""
        same = [n for n, w in self.weights.items() if w.shape == shape and w.dtype == self.float and n.startswith("p" if low else "q")]
        if same and self.r.random() < 0.2:
            return V(self.r.choice(same), self.float, shape)
        numbers = np.random.default_rng(self.r.randrange(1 << 30))
        data = np.asarray(numbers.standard_normal(shape) * scale if low is None else low + numbers.random(shape))
        if self.r.random() < 0.05 and data.size and low is None:
            data.reshape(-1)[0] = 1e-39 if self.float == "float32" else 0.0
        name = f"{'q' if low is None else 'p'}{len(self.weights)}"
        self.weights[name] = data.astype(self.float)
        return V(name, self.float, shape)

    def ints(self, *numbers: int) -> V:
        return self.constant(np.asarray(numbers, np.int64))

    # --- nodes --------------------------------------------------------------------------------------------------

    def node(self, op_type: str, inputs: Sequence[V | None], dims: Dims, dtype: str | None = None, **attributes) -> V:
        """A node with one output of type `dtype`, or that of its first input."""
        return self.split(op_type, inputs, [dims], dtype, **attributes)[0]

    def split(self, op_type: str, inputs: Sequence[V | None], dims: Sequence[Dims], dtype: str | None = None, **attributes) -> list[V]:
        """A node with several outputs."""
        found = dtype or next(v.dtype for v in inputs if v is not None)
        made = [V(self.fresh(), found, d) for d in dims]
        names = ["" if v is None else v.name for v in inputs]
        name = f"{op_type}_{made[0].name}" if self.r.random() < 0.9 else ""
        self.nodes.append(helper.make_node(op_type, names, [v.name for v in made], name=name, **attributes))
        return made

    def keep(self, *values: V) -> None:
        """Let later blocks build on what a block made."""
        self.values.extend(values)

    def axes(self, op_type: str, x: V, axes: Sequence[int], dims: Dims, **attributes) -> V:
        """An operator with axes, which became an input at some opset."""
        since = 13 if op_type in ("Squeeze", "Unsqueeze", "ReduceSum") else 18
        if self.opset < since:
            return self.node(op_type, [x], dims, axes=list(axes), **attributes)
        return self.node(op_type, [x, self.ints(*axes)], dims, **attributes)

    def mean(self, x: V, axes: Sequence[int], keep: bool = True, kind: str = "ReduceMean") -> V:
        rank = len(x.dims)
        gone = {a % rank for a in axes}
        dims = tuple(1 if i in gone else d for i, d in enumerate(x.dims) if keep or i not in gone)
        return self.axes(kind, x, axes, dims, keepdims=int(keep))

    def unary(self, op_type: str, x: V, **attributes) -> V:
        return self.node(op_type, [x], x.dims, **attributes)

    def binary(self, op_type: str, a: V, b: V, swap: bool = False) -> V:
        """Two values of which the shapes broadcast to that of the larger one."""
        dims = a.dims if len(a.dims) > len(b.dims) or (len(a.dims) == len(b.dims) and b.dims.count(1) >= a.dims.count(1)) else b.dims
        commutes = op_type in ("Add", "Mul", "Max", "Min") and self.r.random() < 0.3
        return self.node(op_type, [b, a] if swap or commutes else [a, b], dims)

    def transpose(self, x: V, *perm: int) -> V:
        return self.node("Transpose", [x], tuple(x.dims[i] for i in perm), perm=list(perm))

    # --- subgraphs ----------------------------------------------------------------------------------------------

    @contextmanager
    def inside(self) -> Iterator[list[onnx.NodeProto]]:
        """A subgraph: its nodes see the values outside, and those made in it end with it."""
        nodes, known = self.nodes, len(self.values)
        self.nodes, self.depth = [], self.depth + 1
        try:
            yield self.nodes
        finally:
            # Inputs of the main graph that were asked for inside stay.
            kept = [v for v in self.values[known:] if v.name in self.inputs]
            self.nodes, self.depth = nodes, self.depth - 1
            self.values[known:] = kept

    # --- the model ----------------------------------------------------------------------------------------------

    def model(self) -> onnx.ModelProto:
        """The model, with one to three of its values as outputs."""
        made = [v for v in self.values if v.name not in self.inputs]
        made = list(dict.fromkeys(made))
        chosen = [made[-1]] + [v for v in self.r.sample(made, min(2, len(made))) if v is not made[-1] and self.r.random() < 0.5]
        outputs = list({v.name: v for v in chosen}.values())
        inputs = [_info(v) for v in self.inputs.values()]
        if self.overridable and self.weights:
            inputs += [_info(V(n, w.dtype.name, w.shape)) for n, w in self.weights.items() if self.r.random() < 0.3]
        weights = [numpy_helper.from_array(w, n) for n, w in self.weights.items()]
        graph = helper.make_graph(self.nodes, "fuzz", inputs, [_info(v) for v in outputs], weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8 if self.opset < 21 else 10)

    def feeds(self) -> list[dict[str, np.ndarray]]:
        """Inputs for each of the sizes."""
        samples = []
        for i, sizes in enumerate(SIZES[:1] if self.static else SIZES):
            numbers = np.random.default_rng(self.r.randrange(1 << 30) + i)
            feed = {}
            for value in self.inputs.values():
                shape = [sizes[d] if isinstance(d, str) else d for d in value.dims]
                if value.dtype == "bool":
                    feed[value.name] = np.asarray(numbers.integers(0, 2, shape), bool)
                elif value.dtype.startswith("int"):
                    feed[value.name] = np.asarray(numbers.integers(0, WIDTH, shape), value.dtype)
                else:
                    feed[value.name] = np.asarray(numbers.standard_normal(shape), value.dtype)
            samples.append(feed)
        return samples


def _info(v: V) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(v.name, helper.np_dtype_to_tensor_dtype(np.dtype(v.dtype)), list(v.dims))


def elem_type(dtype: str) -> int:
    """The ONNX number of an element type."""
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def graph_of(nodes: list[onnx.NodeProto], name: str, inputs: Sequence[V], outputs: Sequence[V], *, bare: bool = False) -> onnx.GraphProto:
    """A subgraph; `bare`: its outputs have no declared shape."""
    infos = [
        helper.make_tensor_value_info(v.name, elem_type(v.dtype), None if bare else list(v.dims)) for v in outputs
    ]
    return helper.make_graph(nodes, name, [_info(v) for v in inputs], infos)


__all__ = ["CHANNELS", "FAR", "SIDE", "SIZES", "WIDTH", "Builder", "TensorProto", "V", "elem_type", "graph_of"]
