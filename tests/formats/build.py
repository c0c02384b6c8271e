"""Small models for the tests of the formats."""

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper as nh


def info(name, dims, dtype=T.FLOAT):
    return h.make_tensor_value_info(name, dtype, dims)


def model(nodes, inputs, outputs, inits=(), *, opset=17, ir=9, **kw):
    graph_kw = {k: kw.pop(k) for k in ("value_info", "sparse_initializer", "doc_string") if k in kw}
    graph = h.make_graph(nodes, "g", inputs, outputs, list(inits), **graph_kw)
    opsets = opset if isinstance(opset, list) else [("", opset)]
    return h.make_model(graph, ir_version=ir, opset_imports=[h.make_opsetid(*o) for o in opsets], **kw)


def linear(ir=9, dim="n"):
    """y = relu(x @ w + b), w overridable where the IR version lets it."""
    w = nh.from_array(np.arange(12, dtype="f4").reshape(3, 4) / 7, "w")
    b = nh.from_array(np.ones(4, "f4"), "b")
    nodes = [
        h.make_node("MatMul", ["x", "w"], ["m"], name="mm"),
        h.make_node("Add", ["m", "b"], ["a"], name="add"),
        h.make_node("Relu", ["a"], ["y"], name="act"),
    ]
    inputs = [info("w", [3, 4]), info("x", [dim, 3])] if ir >= 4 else [info("w", [3, 4]), info("x", [dim, 3]), info("b", [4])]
    return model(nodes, inputs, [info("y", [dim, 4])], [w, b], ir=ir, opset=9 if ir < 4 else 17)


def if_model():
    then = h.make_graph([h.make_node("Neg", ["x"], ["t"])], "then", [], [info("t", ["n"])])
    weight = nh.from_array(np.array([2.0], "f4"), "iw")
    other = h.make_graph([h.make_node("Mul", ["x", "iw"], ["e"])], "else", [], [info("e", ["n"])], [weight])
    node = h.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)
    return model([node], [info("c", [], T.BOOL), info("x", ["n"])], [info("y", ["n"])])


def external(folder, name="m.onnx", data="w.bin", k=64, layers=3):
    """A chain of MatMuls whose weights lie in one file of their own."""
    inits, nodes, x = [], [], "x"
    folder.mkdir(exist_ok=True)
    with open(folder / data, "wb") as file:
        for i in range(layers):
            tensor = T(name=f"w{i}", data_type=T.FLOAT, dims=[k, k], data_location=T.EXTERNAL)
            offset = file.tell()
            for key, value in ("location", data), ("offset", str(offset)), ("length", str(4 * k * k)):
                tensor.external_data.add(key=key, value=value)
            file.write(np.random.default_rng(i).standard_normal((k, k), dtype="f4").tobytes())
            inits.append(tensor)
            nodes.append(h.make_node("MatMul", [x, f"w{i}"], [f"y{i}"]))
            x = f"y{i}"
    onnx.save(model(nodes, [info("x", ["n", k])], [info(x, ["n", k])], inits), folder / name)
    return folder / name


def run(model_or_path, feeds):
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    source = model_or_path if isinstance(model_or_path, (str, bytes)) else str(model_or_path)
    if isinstance(model_or_path, onnx.ModelProto):
        source = model_or_path.SerializeToString()
    return onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"]).run(None, feeds)


def sorted_content(proto):
    """A copy in which what has no order has one, and what onnx_ir normalizes is normalized."""
    copy = onnx.ModelProto.FromString(proto.SerializeToString())

    def props(items):
        entries = sorted((e.key, e.value) for e in items)
        del items[:]
        for key, value in entries:
            items.add(key=key, value=value)

    def names(items):
        items.sort(key=lambda item: item.name)

    def body(graph):
        for node in graph.node:
            if node.domain == "ai.onnx":
                node.ClearField("domain")
            for field in ("name", "domain", "overload", "doc_string"):
                if not getattr(node, field):
                    node.ClearField(field)
            while node.output and not node.output[-1]:
                del node.output[-1]
            props(node.metadata_props)
            for attr in node.attribute:
                if not attr.doc_string:
                    attr.ClearField("doc_string")
                for sub in ([attr.g] if attr.HasField("g") else []) + list(attr.graphs):
                    body(sub)
        produced = {o for node in graph.node for o in node.output}
        if isinstance(graph, onnx.GraphProto):
            known = produced | {i.name for i in graph.input} | {t.name for t in graph.initializer}
            known -= {o.name for o in graph.output}
            kept = [v for v in graph.value_info if v.name in known]
            del graph.value_info[:]
            graph.value_info.extend(kept)
            for tensor in (*graph.input, *graph.output):
                props(tensor.metadata_props)
        names(graph.value_info)
        props(graph.metadata_props)

    body(copy.graph)
    for function in copy.functions:
        body(function)
    props(copy.metadata_props)
    for field in ("producer_name", "producer_version", "domain", "doc_string", "model_version"):
        if not getattr(copy, field):
            copy.ClearField(field)
    for opsets in (copy.opset_import, *(f.opset_import for f in copy.functions)):
        for opset in opsets:
            opset.domain = "" if opset.domain == "ai.onnx" else opset.domain
    copy.opset_import.sort(key=lambda o: o.domain)
    for graph in [copy.graph]:
        for field in ("name", "doc_string"):
            if not getattr(graph, field):
                graph.ClearField(field)
    return copy
