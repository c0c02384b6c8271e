"""Models and inputs changed by about one rounding: what a model makes of that is its own noise.

Float inputs are changed themselves. A model that takes only integers, such as a text encoder, is changed where its
floats begin: behind the lookups and products that turn integers into floats.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import InputError
from graphopt.verification.constants import constant_tensor, graphs_in
from graphopt.verification.metrics import eps_of, is_float

#: Models whose weights are larger than this many bytes are not copied in memory for a figure about rounding.
COPY_LIMIT = 1_000_000_000


def perturbed(feeds: Mapping[str, Any], eps: float, seed: int) -> dict[str, Any] | None:
    """The feeds with every float changed by a factor of 1 - eps, 1 or 1 + eps; None where there is no float to change.

    Arrays of whole numbers stay as they are, because they may be indices, pixels or masks that a Cast cuts off; so do
    scalars, which are limits and rates.
    """
    rng = np.random.default_rng(seed)
    result, changed = {}, False
    for name, value in feeds.items():
        result[name] = value
        if not isinstance(value, np.ndarray) or not is_float(value) or value.size < 2:
            continue
        wide = value.astype(np.complex128 if value.dtype.kind == "c" else np.float64)
        if np.array_equal(wide, np.round(wide)):
            continue
        step = max(eps, eps_of(value.dtype))
        result[name] = (wide * (1 + step * rng.integers(-1, 2, size=value.shape))).astype(value.dtype)
        changed = True
    return result if changed else None


def load(source: str | os.PathLike | bytes) -> ir.Model:
    """The graph of a model file (weights stay on disk until read) or of the bytes of one, to look at and to run.

    Types that onnx-ir has no words for (the maps of classifiers) are left out. Raises InputError where the graph cannot
    be read all the same; that says nothing of whether the runtime reads it.
    """
    import onnx
    from google.protobuf.message import DecodeError

    name = "model" if isinstance(source, bytes) else os.fspath(source)
    try:
        if not isinstance(source, bytes):
            try:
                return ir.load(source)
            except (ir.serde.SerdeError, NotImplementedError):
                proto = onnx.load(source)
        else:
            proto = onnx.load_model_from_string(source)
        for info in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
            if "map_type" in str(info.type):
                info.ClearField("type")
        return ir.from_proto(proto)
    except (OSError, ValueError, DecodeError, NotImplementedError, ir.serde.SerdeError) as error:
        cause = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"{name}: the graph cannot be read ({cause})") from error


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all initializers and of tensors in Constant nodes, nested graphs and functions included. Reads none."""
    total = 0
    graphs = [model.graph, *(f.graph for f in model.functions.values())]
    while graphs:
        graph = graphs.pop()
        total += sum(v.const_value.nbytes for v in graph.initializers.values() if v.const_value is not None)
        for node in graph:
            graphs.extend(graphs_in(node))
            if node.op_type == "Constant" and "value" in node.attributes and not node.attributes["value"].is_ref():
                total += node.attributes["value"].as_tensor().nbytes
    return total


def inline(model: ir.Model) -> bytes:
    """The model as one string of bytes with all weights in it. Changes the model: its weights are in memory after it."""
    ir.external_data.load_to_model(model)
    return ir.to_proto(model).SerializeToString()


def shaken(source: str | os.PathLike | bytes, eps: float, seed: int) -> bytes | None:
    """The model with about one rounding of noise put on the first floats that it makes of its integer inputs.

    None where there is no such place in the main graph, or where the weights are more than COPY_LIMIT. The noise is a
    multiplication by uniform random numbers in [1 - eps, 1 + eps], drawn by the runtime from a fixed seed.
    """
    model = load(source)
    if weight_bytes(model) > COPY_LIMIT:
        return None
    places = _first_floats(model)
    for number, value in enumerate(places):
        noise = ir.Node("", "RandomUniformLike", [value], [
            ir.AttrFloat32("low", 1.0 - eps), ir.AttrFloat32("high", 1.0 + eps), ir.AttrFloat32("seed", float(seed + number)),
        ])  # fmt: skip
        product = ir.Node("", "Mul", [value, noise.outputs[0]])
        noise.outputs[0].name, product.outputs[0].name = f"{value.name}/noise", f"{value.name}/shaken"
        users = [(n, i) for n, i in value.uses() if n is not noise and n is not product]
        model.graph.insert_after(value.producer(), [noise, product])
        for node, index in users:
            node.replace_input_with(index, product.outputs[0])
    return inline(model) if places else None


def _first_floats(model: ir.Model) -> list[ir.Value]:
    """Float values of the main graph made by lookups and products out of integers that come from the inputs.

    A Cast alone is none: a mask that is off by one rounding and then multiplied by -3e38 is no mask any more.
    """
    live: set[ir.Value] = {v for v in model.graph.inputs if v.name not in model.graph.initializers}
    floats: set[ir.Value] = {v for v in live if v.dtype is not None and v.dtype.is_floating_point()}
    found = []
    for node in model.graph:
        reads = [v for v in node.inputs if v in live]
        if not reads or node.op_type in ("Shape", "Size", "ConstantOfShape"):
            continue
        live.update(node.outputs)
        if any(v in floats for v in reads):
            floats.update(node.outputs)
        elif _makes_floats(node):
            floats.update(node.outputs)
            if not node.outputs[0].is_graph_output():
                found.append(node.outputs[0])
    return found


def _makes_floats(node: ir.Node) -> bool:
    """Whether the first output of a node that reads integers, or casts of them, is made of float weights."""
    if node.op_type in ("EmbedLayerNormalization", "QEmbedLayerNormalization", "GatherBlockQuantized", "DequantizeLinear"):
        return node.outputs[0].dtype in (None, ir.DataType.FLOAT)
    if node.op_type in ("Gather", "GatherElements", "GatherND"):
        return _is_float(node.inputs[0])
    if node.op_type in ("MatMul", "Gemm", "Conv"):
        return len(node.inputs) > 1 and _is_float(node.inputs[1])
    if node.op_type in ("Mul", "Div") and len(node.inputs) == 2:
        # Pixels brought to [0, 1]: a constant of a moderate size. A mask's -1e9 is not.
        tensor = next((t for v in node.inputs if (t := constant_tensor(v)) is not None), None)
        if tensor is not None and tensor.size <= 4096 and tensor.dtype == ir.DataType.FLOAT:
            return bool(np.all(np.abs(tensor.numpy()) <= 1e3))
    return False


def _is_float(value: ir.Value | None) -> bool:
    """Whether a weight is float32: an initializer, or something dequantized."""
    if value is None:
        return False
    tensor = constant_tensor(value)
    if tensor is not None:
        return tensor.dtype == ir.DataType.FLOAT
    made = value.producer()
    return value.dtype == ir.DataType.FLOAT or (made is not None and made.op_type == "DequantizeLinear")
