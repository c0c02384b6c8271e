"""Attention spelled out, in the spellings of exporters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from tests.support import array, model, node

B, S, T, N, H = 2, 5, 5, 4, 8
LOWEST = float(np.finfo(np.float32).min)
CAUSAL = np.tril(np.ones((16, 16), bool))


@dataclass
class Spelled:
    """What to spell; `build` gives the model.

    Attributes:
        groups: heads of key and value, repeated for those of the query.
        scale: "div", "mul", "query" (on the query), "both" (its root on query and key), "late" (behind the mask), "none".
        transpose: how the key comes to its transpose: "one" (with the split), "two", "flat" (batch and heads made one).
        mask: "", "padding" [B, 1, 1, T] added, "full" [B, 1, S, T], "heads" [1, N, S, T], "matrix" [S, T], "choice" (a bool of
            [B, 1, S, T]), and causal ones: "table" (a cut of a bool table), "added-table", "compared", "trilu", "trilu-added", "static".
        fill: what removed scores become.
        guard: whether NaN after the softmax is made 0.
        flat: whether the products run on [B*N, S, H].
        split: how query, key and value are split from the input: "" (three inputs), "qkv" (one input, as in ViT), "products".
        merge: what stands behind: "packed" [B, S, N*H], "rows" [B*S, N*H], "none".
        extra: outputs of the graph in the middle.
    """

    heads: int = N
    groups: int = N
    size: int = H
    value_size: int = H
    lengths: tuple[Any, Any] = (S, T)
    batch: Any = B
    scale: str = "div"
    transpose: str = "one"
    mask: str = ""
    fill: float = LOWEST
    guard: bool = False
    flat: bool = False
    split: str = ""
    merge: str = "packed"
    axis: int = -1
    extra: tuple[str, ...] = ()
    opset: int = 17
    dtype: int = onnx.TensorProto.FLOAT  # of everything that is a float
    given: dict[str, np.ndarray] = field(default_factory=dict)  # constants in the place of others
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(node(kind, inputs, [output], **attributes))
        return output

    def const(self, name: str, data: Any, dtype: Any = np.float32) -> str:
        self.constants.setdefault(name, np.asarray(data, dtype))
        return name

    def ints(self, name: str, *data: int) -> str:
        return self.const(name, data, np.int64)

    def build(self) -> onnx.ModelProto:
        self.nodes, self.constants, self.inputs, self.types = [], dict(self.given), {}, {}
        query, key, value = self._by_heads()
        q, k, v = self._scaled(query, "q"), self._transposed(key), value
        scores = self.add("MatMul", [self._flattened(q, "q"), self._flattened(k, "k")], "scores")
        if self.flat:
            scores = self.add("Reshape", [scores, self.ints("scores_shape", -1, self.heads, *self._sizes())], "scores4")
        if self.scale in ("div", "mul"):
            root = self.const("root", self.size**0.5 if self.scale == "div" else self.size**-0.5)
            scores = self.add(self.scale.capitalize(), [scores, root], "scaled")
        scores = self._masked(scores)
        if self.scale == "late":
            scores = self.add("Mul", [scores, self.const("root", self.size**-0.5)], "scaled")
        p = self.add("Softmax", [scores], "p", axis=self.axis)
        if self.guard:
            p = self.add("Where", [self.add("IsNaN", [p], "nan"), self.const("zero", 0.0), p], "guarded")
        out = self.add("MatMul", [self._flattened(p, "p"), self._flattened(v, "v")], "mixed")
        if self.flat:
            out = self.add("Reshape", [out, self.ints("mixed_shape", -1, self.heads, self._sizes()[0], self.value_size)], "mixed4")
        if self.merge != "none":
            out = self.add("Transpose", [out], "swapped", perm=[0, 2, 1, 3])
            rows = (-1,) if self.merge == "rows" else (0, 0)
            out = self.add("Reshape", [out, self.ints("merged_shape", *rows, self.heads * self.value_size)], "merged")
        self.add("Identity", [out], "y")
        outputs: dict[str, Any] = {"y": None} | dict.fromkeys(self.extra)
        numpy_type = onnx.helper.tensor_dtype_to_np_dtype(self.dtype)
        self.constants = {n: a.astype(numpy_type) if a.dtype == np.float32 else a for n, a in self.constants.items()}
        self.types = dict.fromkeys((*self.inputs, *outputs), self.dtype) | self.types
        return model(self.nodes, self.inputs, outputs, self.constants, opset=self.opset, types=self.types)

    def feeds(self, seed: int = 0, **sizes: int) -> dict[str, np.ndarray]:
        """Inputs at given sizes of symbolic dimensions; masks remove the last keys of all sequences but the first."""
        found = {}
        for i, (name, dims) in enumerate(self.inputs.items()):
            shape = [sizes.get(d, d) if isinstance(d, str) else d for d in dims]
            if self.types.get(name) == onnx.TensorProto.BOOL:
                found[name] = np.ones(shape, bool)
                found[name][1:, ..., -2:] = False
            elif name == "mask":
                found[name] = array(*shape, seed=seed + i)
                found[name][1:, ..., -2:] = self.fill
            else:
                found[name] = array(*shape, seed=seed + i)
        return found

    def _sizes(self) -> tuple[int, int]:
        return tuple(d if isinstance(d, int) else -1 for d in self.lengths)  # type: ignore[return-value]

    def _by_heads(self) -> list[str]:
        s, t = self.lengths
        if self.split == "qkv":
            width = self.heads * self.size
            self.inputs["x"] = [self.batch, s, 3 * width]
            x = self.add("Reshape", ["x", self.ints("x_shape", 0, 0, 3, self.heads, self.size)], "x5")
            x = self.add("Transpose", [x], "stacked", perm=[2, 0, 3, 1, 4])
            return [self.add("Gather", [x, self.const(f"index{i}", i, np.int64)], f"part{i}", axis=0) for i in range(3)]
        made = []
        kinds = ("q", s, self.heads, self.size), ("k", t, self.groups, self.size), ("v", t, self.groups, self.value_size)
        for name, length, heads, size in kinds:
            if self.split == "products":
                self.inputs["x"] = [self.batch, s, 12]
                source = self.add("MatMul", ["x", self.const(f"w{name}", array(12, heads * size, seed=ord(name)))], f"{name}_product")
                source = self.add("Add", [source, self.const(f"b{name}", array(heads * size, seed=ord(name) + 1))], f"{name}_biased")
            else:
                source = f"{name}0"
                self.inputs[source] = [self.batch, length, heads * size]
            x = self.add("Reshape", [source, self.ints(f"{name}_shape", 0, 0, heads, size)], f"{name}_split")
            if name == "k" and self.transpose == "one" and self.groups == self.heads:
                made.append(x)
                continue
            x = self.add("Transpose", [x], f"{name}_heads", perm=[0, 2, 1, 3])
            if name != "q" and self.groups != self.heads:
                x = self._repeated(x, name, size)
            made.append(x)
        return made

    def _repeated(self, x: str, name: str, size: int) -> str:
        times = self.heads // self.groups
        x = self.add("Unsqueeze", [x, self.ints("two", 2)], f"{name}_wide")
        x = self.add("Expand", [x, self.ints("times", 1, 1, times, 1, 1)], f"{name}_expanded")
        return self.add("Reshape", [x, self.ints(f"{name}_repeated_shape", 0, self.heads, -1, size)], f"{name}_repeated")

    def _scaled(self, x: str, name: str) -> str:
        power = {"query": -0.5, "both": -0.25}.get(self.scale)
        if power is None or (name == "k" and self.scale == "query"):
            return x
        return self.add("Mul", [x, self.const("root", self.size**power)], f"{name}_scaled")

    def _transposed(self, key: str) -> str:
        if self.transpose == "one" and self.groups == self.heads and self.split != "qkv":
            x = self.add("Transpose", [key], "k_transposed", perm=[0, 2, 3, 1])
        elif self.transpose == "flat":
            t = self._sizes()[1]
            x = self.add("Reshape", [key, self.ints("k_flat_shape", -1, t, self.size)], "k_flat")
            x = self.add("Transpose", [x], "k_flat_transposed", perm=[0, 2, 1])
            x = self.add("Reshape", [x, self.ints("k_back_shape", -1, self.heads, self.size, t)], "k_transposed")
        else:
            x = self.add("Transpose", [key], "k_transposed", perm=[0, 1, 3, 2])
        return self._scaled(x, "k")

    def _flattened(self, x: str, name: str) -> str:
        if not self.flat:
            return x
        s, t = self._sizes()
        last = {"q": (s, self.size), "k": (self.size, t), "p": (s, t), "v": (t, self.value_size)}[name]
        return self.add("Reshape", [x, self.ints(f"{name}_merged_shape", -1, *last)], f"{name}_merged")

    def _masked(self, scores: str) -> str:
        s, t = self.lengths
        fill = self.const("fill", self.fill)
        shapes = {"padding": [self.batch, 1, 1, t], "full": [self.batch, 1, s, t], "heads": [1, self.heads, s, t], "matrix": [s, t]}
        if self.mask in shapes:
            self.inputs["mask"] = shapes[self.mask]
            return self.add("Add", [scores, "mask"], "masked")
        if self.mask == "choice":
            self.inputs["keep"], self.types["keep"] = shapes["full"], onnx.TensorProto.BOOL
            return self.add("Where", ["keep", scores, fill], "masked")
        if self.mask == "chosen":
            self.inputs["keep"], self.types["keep"] = shapes["full"], onnx.TensorProto.BOOL
            return self.add("Add", [self.add("Where", ["keep", self.const("zero", 0.0), fill], "bias"), scores], "masked")
        if self.mask == "static":
            table = self.const("table", np.where(CAUSAL[:s, :t], 0, self.fill))
            return self.add("Add", [table, scores], "masked")
        if self.mask == "table":
            return self.add("Where", [self._cut(self.const("table", CAUSAL, bool)), scores, fill], "masked")
        if self.mask == "not-table":
            cut = self.add("Not", [self._cut(self.const("table", CAUSAL, bool))], "above")
            return self.add("Where", [cut, fill, scores], "masked")
        if self.mask == "added-table":
            return self.add("Add", [scores, self._cut(self.const("table", np.where(CAUSAL, 0, self.fill)))], "masked")
        if self.mask == "compared":
            count = self.add("Range", [self.const("c0", 0, np.int64), self._length(), self.const("c1", 1, np.int64)], "count")
            rows = self.add("Unsqueeze", [count, self.ints("last", 1)], "rows")
            columns = self.add("Unsqueeze", [count, self.ints("first", 0)], "columns")
            below = self.add("LessOrEqual", [columns, rows], "below")
            return self.add("Add", [scores, self.add("Where", [below, self.const("zero", 0.0), fill], "bias")], "masked")
        if self.mask in ("trilu", "trilu-added"):
            one = self.const("one", [1.0 if self.mask == "trilu" else self.fill])
            square = self.add("Concat", [self._length(vector=True)] * 2, "square", axis=0)
            filled = self.add("Expand", [one, square], "filled")
            if self.mask == "trilu":
                kept = self.add("Cast", [self.add("Trilu", [filled], "lower", upper=0)], "kept", to=onnx.TensorProto.BOOL)
                return self.add("Where", [kept, scores, fill], "masked")
            return self.add("Add", [scores, self.add("Trilu", [filled, self.const("c1", 1, np.int64)], "upper", upper=1)], "masked")
        assert not self.mask, self.mask
        return scores

    def _length(self, vector: bool = False) -> str:
        source = next(iter(self.inputs))
        self.add("Shape", [source], "shape")
        index = self.ints("index", 1) if vector else self.const("index", 1, np.int64)
        return self.add("Gather", ["shape", index], "length", axis=0)

    def _cut(self, table: str) -> str:
        length = self._length(vector=True)
        x = self.add("Slice", [table, self.ints("zero_vector", 0), length, self.ints("axis0", 0)], "cut0")
        return self.add("Slice", [x, "zero_vector", length, self.ints("axis1", 1)], "cut1")
