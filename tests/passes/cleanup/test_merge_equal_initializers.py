"""Equal initializers: one of them; equal means every byte, and little is read to tell."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.rewriting import ChangeLog, Context
from tests.support import REGISTRY, array, assert_same, model, node, reasons, run_pass

NAME = "merge-equal-initializers"


def names(proto: onnx.ModelProto) -> list[str]:
    return [i.name for i in proto.graph.initializer]


def test_equal_ones_merge_and_unequal_ones_stay() -> None:
    a, big = array(3), array(100, 100)
    changed = big.copy()
    changed[30, 30] = 7.0  # neither at the start, nor in the middle, nor at the end
    weights = {
        "a": a,
        "b": a,
        "c": array(3, seed=1),
        "d": a.astype(np.float64),
        "e": a.reshape(1, 3),
        "p": big,
        "q": big,
        "r": changed,
        "s": np.float32(2),
        "t": np.float32(2),
    }
    nodes = [
        node("Sum", ["x", "a", "b", "c", "e"], ["u"]),
        node("Cast", ["d"], ["v"], to=TensorProto.FLOAT),
        node("ReduceSum", ["p"], ["p1"]),
        node("ReduceSum", ["q"], ["q1"]),
        node("ReduceSum", ["r"], ["r1"]),
        node("Sum", ["u", "v", "p1", "q1", "r1", "s", "t"], ["y"]),
    ]
    before = model(nodes, {"x": [1, 3]}, ["y"], weights)
    after, log = run_pass(before, NAME)
    assert names(after) == ["a", "c", "d", "e", "p", "r", "s"] and log.applied == 3
    assert_same(before, after, {"x": array(1, 3)}, exact=True)


def test_zeros_of_either_sign_and_kinds_of_nan() -> None:
    nans = np.array([0x7FC00000, 0x7FC00001, 0x7FC00000], np.uint32).view(np.float32)
    weights = {"z": np.float32([0.0]), "m": np.float32([-0.0]), "n1": nans[:1], "n2": nans[1:2], "n3": nans[2:]}
    before = model([node("Sum", ["x", *weights], ["y"])], {"x": [1]}, ["y"], weights)
    after, _ = run_pass(before, NAME)
    assert names(after) == ["z", "m", "n1", "n2"]


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.int4, bool, np.int8, object])
def test_types(dtype) -> None:
    for count in (7, 40000):
        data = np.array(["ab", "c", ""] * 3, object) if dtype is object else (np.arange(count) % 2).astype(dtype)
        other = data.copy()
        other[3] = "x" if dtype is object else data[4]
        tensors = [
            numpy_helper.from_array(d, n) if dtype is not object else helper.make_tensor(n, TensorProto.STRING, d.shape, list(d))
            for n, d in (("a", data), ("b", data), ("c", other))
        ]
        nodes = [node("Identity", [n], [f"y{n}"]) for n in "abc"]
        outputs = [helper.make_tensor_value_info(f"y{n}", tensors[0].data_type, data.shape) for n in "abc"]
        before = helper.make_model(
            helper.make_graph(nodes, "g", [], outputs, tensors), opset_imports=[helper.make_opsetid("", 23)], ir_version=11
        )
        after, _ = run_pass(before, NAME)
        assert names(after) == ["a", "c"]
        assert [n.input[0] for n in after.graph.node] == ["a", "a", "c"]


def test_overridable_ones_and_graph_outputs_stay() -> None:
    a = array(3)
    before = model(
        [node("Sum", ["x", "a", "b", "c"], ["y"])], {"x": [3]}, {"y": [3], "c": [3]}, {"a": a, "b": a, "c": a}, overridable=["b"]
    )
    after, log = run_pass(before, NAME)
    assert names(after) == ["a", "b", "c"] and "names a graph output" in reasons(log)[0]
    assert_same(before, after, {"x": array(3), "b": array(3, seed=2)}, exact=True)


def test_subgraphs_take_what_is_outside_and_not_what_is_beside() -> None:
    k, j = array(3), array(3, seed=1)

    def branch(name: str) -> onnx.GraphProto:
        tensors = [numpy_helper.from_array(k, f"{name}_k"), numpy_helper.from_array(j, f"{name}_j")]
        return helper.make_graph(
            [node("Sum", ["x", f"{name}_k", f"{name}_j"], [f"{name}_y"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_y", 1, [3])],
            tensors,
        )

    before = model(
        [node("If", ["cond"], ["z"], then_branch=branch("then"), else_branch=branch("else")), node("Add", ["z", "k"], ["y"])],
        {"x": [3], "cond": []},
        {"y": [3]},
        {"k": k},
        types={"cond": TensorProto.BOOL},
    )
    after, log = run_pass(before, NAME)
    assert log.applied == 2
    assert sorted(i.name for a in after.graph.node[0].attribute for i in a.g.initializer) == ["else_j", "then_j"]
    for cond in (True, False):
        assert_same(before, after, {"x": array(3), "cond": np.asarray(cond)}, exact=True)


def external(folder: Path, tensors: int, each: int, equal_to_first: int = 0) -> Path:
    """A model with external float32 vectors of `each` bytes: zeros but for their first bytes."""
    path = folder / "m.onnx"
    values = []
    with open(folder / "w.bin", "wb") as data:
        for i in range(tensors):
            proto = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=[each // 4], data_location=TensorProto.EXTERNAL)
            for key, value in (("location", "w.bin"), ("offset", str(i * each)), ("length", str(each))):
                proto.external_data.add(key=key, value=value)
            data.seek(i * each)
            data.write(np.float32([0 if i < equal_to_first else i]).tobytes())
            values.append(proto)
        data.truncate(tensors * each)
    nodes = [node("Sum", ["x", *(f"w{i}" for i in range(tensors))], ["y"])]
    infos = [helper.make_tensor_value_info(n, 1, [each // 4]) for n in "xy"]
    path.write_bytes(helper.make_model(helper.make_graph(nodes, "g", infos[:1], infos[1:], values), ir_version=8).SerializeToString())
    return path


_MEASURE = """
import resource, sys
import onnx_ir as ir
from graphopt.rewriting import ChangeLog, Context
from graphopt.passes.cleanup.merge_equal_initializers import MergeEqualInitializers
model = ir.load(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
log = ChangeLog("")
MergeEqualInitializers().run(Context(model, log))
print(log.applied, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize(("equal", "merged"), [(0, 0), (4, 3)])
def test_large_weights_are_not_held_in_memory(tmp_path: Path, equal: int, merged: int) -> None:
    path = external(tmp_path, 48, 16 << 20, equal)  # sparse files: 768 MB that take no room
    done = subprocess.run([sys.executable, "-c", _MEASURE, str(path)], capture_output=True, text=True, check=True, env=dict(os.environ))
    applied, grown = map(int, done.stdout.split())
    assert applied == merged
    assert grown < 64, f"{grown} MB"


def test_many_small_external_tensors_do_not_hold_files_open(tmp_path: Path) -> None:
    model = ir.load(external(tmp_path, 1200, 16, 1200))
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limit[1]))
    try:
        log = ChangeLog("")
        REGISTRY.get(NAME)().run(Context(model, log))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    assert log.applied == 1199


def test_a_weight_without_a_twin_in_type_and_shape_is_not_read() -> None:
    def fail():
        raise AssertionError("read")

    graph = ir.from_proto(model([node("Sum", ["x", "a", "b"], ["y"])], {"x": [3]}, ["y"], {"a": array(3), "b": array(1, 3)}))
    for value in graph.graph.initializers.values():
        value.const_value = ir.LazyTensor(fail, value.const_value.dtype, value.const_value.shape, name=value.name)
    REGISTRY.get(NAME)().run(Context(graph, ChangeLog("")))
