"""Models whose cost is known beside each other."""

import time
import types

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper


def chain(layers, width, *, names="", scale=1.0, identities=False):
    """`layers` times MatMul and Relu on [batch, width]; the work is proportional to `layers`."""
    rng = np.random.default_rng(0)
    nodes, weights, x = [], [], "x"
    for i in range(layers):
        w, m, r = f"{names}w{i}", f"{names}m{i}", f"{names}r{i}"
        array = (scale * rng.standard_normal((width, width)) / np.sqrt(width)).astype(np.float32)
        weights.append(numpy_helper.from_array(array, w))
        nodes += [helper.make_node("MatMul", [x, w], [m]), helper.make_node("Relu", [m], [r])]
        x = r
        if identities:
            nodes.append(helper.make_node("Identity", [x], [f"{x}_same"]))
            x = f"{x}_same"
    info = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width])  # noqa: E731
    graph = helper.make_graph(nodes, "chain", [info("x")], [info(x)], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.fixture
def make(tmp_path):
    """make(name, layers, width=128, ...): the path of a chain."""

    def make(name, layers, width=128, **options):
        path = tmp_path / f"{name}.onnx"
        onnx.save(chain(layers, width, **options), path)
        return path

    return make


@pytest.fixture
def feeds():
    return {"x": np.random.default_rng(1).random((64, 128), np.float32)}


@pytest.fixture
def cpu_clock(monkeypatch):
    """Let the harness read the process's CPU time: on one thread it is the time of a run, whatever else the machine does."""
    for module in ("timing", "pairs"):
        monkeypatch.setattr(f"graphopt.measurement.{module}.time", types.SimpleNamespace(perf_counter=time.process_time))
