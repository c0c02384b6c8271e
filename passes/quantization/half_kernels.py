"""Which operators can compute in a 16-bit float type: by their definition, and by the kernels that there are."""

from __future__ import annotations

from functools import cache

import onnx.defs
import onnx_ir as ir

from graphopt.rewriting import Context, guards, same_domain

FLOAT = ir.DataType.FLOAT

#: Operators that stay in float32 wherever they stand, and why.
_NEVER = {
    **dict.fromkeys(("Resize", "Upsample", "GridSample", "RoiAlign", "MaxRoiPool", "AffineGrid"), "it computes places of pixels"),
    **dict.fromkeys(("NonMaxSuppression", "TopK", "Unique"), "it compares numbers that rounding would make equal"),
    **dict.fromkeys(("Range", "CumSum"), "it counts, and float16 counts up to 2,048"),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), "its state would be rounded at every step"),
    **dict.fromkeys(
        ("DFT", "STFT", "MelWeightMatrix", "HannWindow", "HammingWindow", "BlackmanWindow", "Det"), "few runtimes have it in 16 bits"
    ),
    **dict.fromkeys(
        ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial", "EyeLike"),
        "it makes numbers of a type of its own",
    ),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"), "it stands between float and integers"),
}  # fmt: skip

#: Operators of ONNX Runtime whose float tensors are all of one type, float16 among them.
_CONTRIB = frozenset({
    "Attention", "BiasGelu", "BiasSplitGelu", "FastGelu", "FusedMatMul", "Gelu", "GroupQueryAttention", "MultiHeadAttention",
    "PackedAttention", "QuickGelu", "RotaryEmbedding", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization",
})  # fmt: skip


def obstacle(context: Context, node: ir.Node, to: ir.DataType) -> str | None:
    """Why a node cannot compute in the type `to`; None: it can."""
    kept = _NEVER.get(node.op_type)
    if kept is not None and same_domain(node.domain, ""):
        return kept
    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
        return "what it computes in subgraphs stays in float32"
    for value in (*node.inputs, *node.outputs):
        if value is None or not value.name:
            continue
        if isinstance(value.type, ir.SequenceType | ir.OptionalType):
            return f"{value.name!r} is a sequence or optional"
        if context.dtype(value) is None:
            return f"the type of {value.name!r} is not known"
    opset, name = context.opset(node), to.name.lower()
    if same_domain(node.domain, ""):
        if not _defined(context, node, opset, to):
            return f"{node.op_type} is not defined for {name} at opset {opset}"
    elif node.domain != "com.microsoft" or node.op_type not in _CONTRIB:
        return f"what {node.domain}.{node.op_type} does with {name} is not known"
    if node.op_type in ("LayerNormalization", "RMSNormalization") and guards.attribute(node, "stash_type", 1) != 1:
        return "its statistics are not computed in float32 (stash_type)"
    provider, served = context.provider, context.has_kernel(node, name)
    # On CPUs the runtime puts Casts around a node of float16 without a kernel; of bfloat16 it runs nothing that has none.
    if served is False and (to == ir.DataType.BFLOAT16 or provider != "cpu"):
        return f"ONNX Runtime has no kernel of {node.op_type} for {name} on {provider}"
    return None


def _defined(context: Context, node: ir.Node, opset: int, to: ir.DataType) -> bool:
    """Whether the definition of an operator lets every float32 tensor of a node be of another type."""
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return False
    for given, formal in ((node.inputs, schema.inputs), (node.outputs, schema.outputs)):
        for i, value in enumerate(given):
            if value is None or not value.name or context.dtype(value) != FLOAT:
                continue
            parameter = formal[min(i, len(formal) - 1)]
            if to.name.lower() not in _types(schema, parameter.type_str):
                return False
    return True


def _types(schema: onnx.defs.OpSchema, type_str: str) -> frozenset[str]:
    return _constraints(schema.name, schema.since_version).get(type_str, frozenset({type_str.removeprefix("tensor(").removesuffix(")")}))


@cache
def _constraints(op_type: str, version: int) -> dict[str, frozenset[str]]:
    schema = onnx.defs.get_schema(op_type, version, "")
    return {
        c.type_param_str: frozenset(t.removeprefix("tensor(").removesuffix(")") for t in c.allowed_type_strs if t.startswith("tensor("))
        for c in schema.type_constraints
    }
