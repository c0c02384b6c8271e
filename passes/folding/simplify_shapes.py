"""Shape arithmetic that need not be done: targets of Reshape and Expand that are known up to what the input says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.rewriting import Context, Dim, Editor, Match, Pattern, Refuse, Rewrite, constant_tensor, op, use_count, var

from ..arguments import integer


@dataclass(frozen=True)
class SimplifyShapes(Rewrite):
    """Give Reshape and Expand constant targets where provably equal, and take Shape off the output of what can be fused.

    A computed target of a Reshape becomes one with copied sizes (0) and at most one that is worked out (-1); that of an
    Expand one with 1 where the input has the size already. A Shape of a value that one operator goes on with, and that
    keeps the shape, looks at that operator's output instead.
    """

    name = "simplify-shapes"

    def patterns(self) -> Sequence[Pattern]:
        return (
            op("Reshape", var("x"), var("target"), where=_computed),
            op("Expand", var("x"), var("target"), where=_computed),
        )

    def rewrite(self, match: Match, editor: Editor) -> None:
        (_reshape if match.root.op_type == "Reshape" else _expand)(match.root, match["x"], editor)

    def run(self, context: Context) -> None:
        super().run(context)
        _sink_shapes(context)


def _computed(node: ir.Node) -> bool:
    return constant_tensor(node.inputs[1]) is None and node.inputs[1].producer() is not None


# --- targets --------------------------------------------------------------------------------------------------------


def _reshape(node: ir.Node, x: ir.Value, editor: Editor) -> None:
    context = editor.context
    target = context.shapes.partial_value(node.inputs[1])
    if target is None:
        return
    allowzero = integer(node, "allowzero", 0)
    if allowzero is None:
        return
    dims = context.dims(x)
    sizes = _with_copies(target, dims if not allowzero or 0 not in target else None)
    open_ends = [i for i, size in enumerate(sizes) if not isinstance(size, int)]
    if open_ends:
        if len(open_ends) > 1 or -1 in target:
            raise Refuse(f"{len(open_ends) + (-1 in target)} sizes of its target are not known")
        # What is left over can be worked out only where no other size may be 0.
        sizes = [dims[i] if size == 0 and dims is not None and i < len(dims) else size for i, size in enumerate(sizes)]
        if not all(isinstance(size, int) and size > 0 for i, size in enumerate(sizes) if i not in open_ends):
            raise Refuse("one size of its target is not known, and another may be 0")
        sizes[open_ends[0]] = -1
    if allowzero and 0 not in target and 0 in sizes:
        editor.set_attribute(node, "allowzero", None)
    editor.set_input(node, 1, editor.constant(sizes, f"{node.inputs[1].name}/known"))


def _with_copies(target: Sequence[Dim | None], dims: tuple[Dim, ...] | None) -> list[Dim | None]:
    """The target with 0 in the place of each symbolic size that the input has at the same position."""
    return [
        0 if not isinstance(size, int) and size is not None and dims is not None and i < len(dims) and dims[i] == size else size
        for i, size in enumerate(target)
    ]


def _expand(node: ir.Node, x: ir.Value, editor: Editor) -> None:
    context = editor.context
    target, dims = context.shapes.partial_value(node.inputs[1]), context.dims(x)
    if target is None or dims is None:
        return
    padded: tuple[Dim, ...] = (1,) * (len(target) - len(dims)) + dims
    padded = padded[len(padded) - len(target) :]
    sizes = [1 if not isinstance(size, int) and size is not None and size == dim else size for size, dim in zip(target, padded)]
    unknown = sum(not isinstance(size, int) for size in sizes)
    if unknown:
        raise Refuse(f"{unknown} sizes of its target are not known")
    editor.set_input(node, 1, editor.constant(sizes, f"{node.inputs[1].name}/known"))


# --- Shape beside a chain -------------------------------------------------------------------------------------------

# Operators whose first output has the shape of the first input, whatever the other inputs are.
_SAME = frozenset(
    ("BatchNormalization", "Cast", "Clip", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "Identity", "InstanceNormalization",
     "LayerNormalization", "LeakyRelu", "Mish", "Neg", "Relu", "Selu", "Sigmoid", "Softmax", "Softplus", "Sqrt", "Tanh")
)
_BROADCASTING = frozenset(("Add", "Div", "Mul", "PRelu", "Sub"))
# Operators that runtimes and fusions join to what follows, if nothing else consumes their output.
_HEADS = frozenset(("BatchNormalization", "Conv", "ConvTranspose", "Gemm", "MatMul", *_BROADCASTING))
_FEW = 8


def _sink_shapes(context: Context) -> None:
    """Let each Shape of a value that one operator goes on with look at the output of that operator."""
    for shape in context.index.of_types(("Shape",)):
        while shape.domain in ("", "ai.onnx"):
            x = shape.inputs[0]
            following = _following(context, shape, x)
            if following is None or not context.log.permit(shape):
                break
            graph = shape.graph
            graph.remove(following)  # all that it needs besides is there from the start
            graph.insert_after(x.producer(), following)
            shape.replace_input_with(0, following.outputs[0])


def _following(context: Context, shape: ir.Node, x: ir.Value | None) -> ir.Node | None:
    """The one operator besides Shape that consumes `x`, if it could be joined to what makes `x`."""
    producer = x.producer() if x is not None else None
    if producer is None or producer.op_type not in _HEADS or producer.graph is not shape.graph or x.is_graph_output():
        return None
    if not 1 < use_count(x) <= _FEW:
        return None
    others = list(dict.fromkeys(usage.node for usage in x.uses() if usage.node.op_type not in ("Shape", "Size")))
    if len(others) != 1 or others[0].graph is not shape.graph or others[0].domain not in ("", "ai.onnx"):
        return None
    if not all(v is None or v is x or v.producer() is None for v in others[0].inputs):
        return None  # it could not stand before the Shape
    return others[0] if _keeps_shape(context, others[0], x) else None


def _keeps_shape(context: Context, node: ir.Node, x: ir.Value) -> bool:
    if node.inputs[0] is not x and node.op_type not in _BROADCASTING:
        return False
    if node.op_type in _SAME:
        return True
    dims = context.dims(x)
    return node.op_type in _BROADCASTING and dims is not None and dims == context.dims(node.outputs[0])


