"""Rounding moves the mean of what a layer gives: the bias takes that back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.model import IN_FLOAT
from graphopt.rewriting import Context, Editor, Effect, Match, Pass, Refuse, constant_tensor, guards, option, use_count

_CONVOLUTIONS = ("Conv", "ConvTranspose", "Gemm")
_PRODUCTS = (*_CONVOLUTIONS, "MatMul", "MatMulNBits")
_LARGEST = 2**31 - 1

#: Gives the editor the new bias: what is added to each channel.
Add = Callable[[Editor, np.ndarray], None]


@dataclass(frozen=True)
class CorrectBias(Pass):
    """Put back, into the biases of quantized layers, the mean of each channel that rounding and clipping moved.

    Nagel et al. 2019, "Data-Free Quantization through Weight Equalization and Bias Correction", section 4.2, in the
    empirical form of its appendix D: in the order of the graph, each with all before it corrected. It needs the means that
    `record-means` notes before the graph is quantized.
    """

    name = "correct-bias"
    effect = Effect.LOSSY
    corrects = True
    calibrates = True

    operators: str = option("convolutions", "Conv and Gemm, or MatMul too, whose means single tokens may decide",
                            choices=("convolutions", "all"))  # fmt: skip

    def run(self, context: Context) -> None:
        wanted: dict[ir.Value, tuple[int, np.ndarray]] = {}
        places: dict[ir.Value, tuple[ir.Node, Add]] = {}
        samples = None
        for node in context.model.graph:
            if node.op_type not in (_PRODUCTS if self.operators == "all" else _CONVOLUTIONS) or not _quantized(node):
                continue
            value = node.outputs[0]
            known = value.meta.get(IN_FLOAT)
            try:
                guards.require(known is not None, "the mean in float is not known: record-means was not run, or it is not finite")
                place = _bias(node, known["mean"].size, context)  # type: ignore[index]
            except Refuse as refusal:
                context.log.refuse(node, refusal.reason)
                continue
            if not context.log.permit(node):
                continue
            context.log.settled(node)
            samples = known["samples"]  # type: ignore[index]
            wanted[value] = (1 if node.op_type.startswith("Conv") else -1), known["mean"]  # type: ignore[index]
            places[value] = node, place
        if not wanted:
            return
        moved = []
        for value, shift in context.mean_shifts(wanted, samples=samples).items():
            node, add = places[value]
            if not np.isfinite(shift).all():
                context.log.refuse(node, "what it gives is not finite on the samples")
                continue
            editor = Editor(context, Match(node, []))
            add(editor, shift)
            editor.commit()
            moved.append(float(np.sqrt(np.mean(shift**2)) / max(np.sqrt(np.mean(wanted[value][1] ** 2)), 1e-30)))
        if moved:
            share = f"{np.median(moved):.2%} of the means in the median, {max(moved):.2%} at most"
            context.log.note(f"{len(moved)} biases corrected, by {share}")


def _quantized(node: ir.Node) -> bool:
    if node.op_type == "MatMulNBits":
        return node.domain == "com.microsoft"
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    return weight is not None and _dequantizing(weight) is not None


def _dequantizing(value: ir.Value) -> ir.Node | None:
    """The DequantizeLinear of a constant, or of anything else, that gives a value."""
    node = value.producer()
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _bias(node: ir.Node, channels: int, context: Context) -> Add:
    """How a bias is added to what a node gives; refuses where it has none and can have none."""
    if node.op_type in ("MatMul", "MatMulNBits"):
        return _behind(node, channels, context)
    guards.require(node.op_type != "Gemm" or guards.attribute(node, "beta", 1.0) == 1.0, "its bias is scaled by beta")
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None:
        return _without(node)
    if (stored := _dequantizing(bias)) is not None:
        return _on_integers(node, stored)
    old = guards.float_constant(bias, "the bias")
    guards.require(old.size in (1, channels), "the bias has not one number for each channel")

    def add(editor: Editor, shift: np.ndarray) -> None:
        editor.set_input(node, 2, editor.constant((old.reshape(-1) + shift).astype(old.dtype), f"{bias.name}_corrected"))

    return add


def _on_integers(node: ir.Node, stored: ir.Node) -> Add:
    packed = guards.constant(stored.inputs[0], "the bias")
    scale = guards.constant(stored.inputs[1], "the scale of the bias").astype(np.float64)

    def add(editor: Editor, shift: np.ndarray) -> None:
        moved = np.clip(np.rint(packed + shift / scale), -_LARGEST, _LARGEST).astype(np.int32)
        values = [editor.constant(moved, f"{stored.inputs[0].name}_corrected"), *stored.inputs[1:]]  # type: ignore[union-attr]
        editor.set_input(node, 2, editor.node("DequantizeLinear", values, dict(stored.attributes), like=stored.outputs[0]))

    return add


def _without(node: ir.Node) -> Add:
    """A new bias: on integers where the products are, on the scale that these have."""
    x, weight = _dequantizing(node.inputs[0]), _dequantizing(node.inputs[1])  # type: ignore[arg-type]
    assert weight is not None
    scale = None
    if x is not None:
        scale = guards.constant(x.inputs[1], "the scale of the input") * guards.constant(weight.inputs[1], "the scale of the weight")

    def add(editor: Editor, shift: np.ndarray) -> None:
        name = f"{node.name}_bias"
        if scale is None or scale.size not in (1, shift.size):
            editor.set_input(node, 2, editor.constant(shift.astype(np.float32), name))
            return
        by = np.broadcast_to(scale.reshape(-1), shift.shape).astype(np.float32)
        packed = np.clip(np.rint(shift / by.astype(np.float64)), -_LARGEST, _LARGEST).astype(np.int32)
        values = [editor.constant(packed, f"{name}_int32"), editor.constant(np.ascontiguousarray(by), f"{name}_scale")]
        editor.set_input(node, 2, editor.node("DequantizeLinear", values, {"axis": 0}, name=f"{name}_dequantized"))

    return add


def _behind(node: ir.Node, channels: int, context: Context) -> Add:
    """The constant that an Add behind a product adds."""
    value = node.outputs[0]
    user = next(iter(value.uses())).node if use_count(value) == 1 and not value.is_graph_output() else None
    constant = next((v for v in user.inputs if v is not value), None) if user is not None and user.op_type == "Add" else None
    guards.require(constant is not None and constant_tensor(constant) is not None, "there is no bias behind it")
    assert user is not None and constant is not None
    old = guards.float_constant(constant, "the bias")
    guards.require(old.size in (1, channels) and old.shape[-1:] in ((), (1,), (channels,)), "the bias has not one number for each channel")
    guards.require(old.ndim <= (context.rank(value) or 1), "the bias adds dimensions")

    def add(editor: Editor, shift: np.ndarray) -> None:
        new = editor.constant((old + shift).astype(old.dtype), f"{constant.name}_corrected")
        editor.set_input(user, list(user.inputs).index(constant), new)

    return add
