"""A model in numbers."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from graphopt.reporting import describe, describe_interface
from graphopt.reporting.describe import external_files

TEXT = """<ir_version: 9, opset_import: ["" : 17, "local" : 1, "com.microsoft" : 1]>
g (bool c, float[batch,3] x, float z) => (float[batch,3] y, float[?,3] v)
<float[3] w = {1, 2, 3}, int64[2] unused = {1, 2}> {
  k = Constant<value_floats = [1.0, 2.0, 3.0]>()
  a = Add(x, w)
  b = Add(a, k)
  s = If(c)<then_branch = t () => (float[batch,3] p) { m = Constant<value = float {2}>() p = Mul(b, m) },
            else_branch = e () => (float[batch,3] q) { q = local.twice(b) }>
  y = local.twice(s)
  v = com.microsoft.Gelu(s)
}
<domain: "local", opset_import: ["" : 17]>
twice (i) => (o) { two = Constant<value_float = 2.0>() o = Mul(i, two) }
<domain: "local", opset_import: ["" : 17]>
never (i) => (o) { o = Relu(i) }
"""


@pytest.fixture
def path(tmp_path):
    onnx.save(onnx.parser.parse_model(TEXT), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_subgraphs_and_functions_in_use_count_once(path):
    made = describe(ir.load(path), path)
    assert made["operators"] == {"Constant": 3, "Add": 2, "Mul": 2, "local::twice": 2, "If": 1, "com.microsoft::Gelu": 1}
    assert list(made["operators"]) == ["Constant", "Add", "Mul", "local::twice", "If", "com.microsoft::Gelu"]
    assert made["nodes"] == 11
    assert made["parameters"] == 3 + 2 + 3 + 1 + 1
    assert made["bytes"] == path.stat().st_size
    assert describe(ir.load(path), None)["bytes"] is None


def test_interface(path):
    made = describe_interface(ir.load(path), path)
    assert made == {
        "path": str(path),
        "kind": "onnx",
        "opset": 17,
        "inputs": [
            {"name": "c", "type": "tensor(bool)", "shape": []},
            {"name": "x", "type": "tensor(float)", "shape": ["batch", 3]},
            {"name": "z", "type": "tensor(float)", "shape": []},
        ],
        "outputs": [
            {"name": "y", "type": "tensor(float)", "shape": ["batch", 3]},
            {"name": "v", "type": "tensor(float)", "shape": [None, 3]},
        ],
    }


@pytest.mark.parametrize("attributes", [False, True])
def test_external_data_counts_once_and_only_where_referred_to(path, attributes):
    model = onnx.load(path)
    model.graph.initializer.extend(numpy_helper.from_array(np.ones((100, i), np.float32), f"big{i}") for i in (1, 2))
    model.graph.node[3].attribute[0].g.node[0].attribute[0].t.CopyFrom(numpy_helper.from_array(np.ones(500, np.float32), "inner"))
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=100, convert_attribute=attributes)
    (path.parent / "other.bin").write_bytes(b"x" * 9999)
    made = describe(ir.load(path), path)
    data = path.parent / "w.bin"
    assert data.stat().st_size >= 4 * (300 + 500 * attributes)
    assert made["bytes"] == path.stat().st_size + data.stat().st_size
    assert made["parameters"] == 10 - 1 + 300 + 500
    # The weights are never read: without their file the figures are the same, but for the bytes.
    model = ir.load(path)
    data.unlink()
    assert describe(model, path) == made | {"bytes": path.stat().st_size}


def test_external_data_within_a_subgraph_only(path):
    model = onnx.load(path)
    tensor = model.graph.node[3].attribute[0].g.node[0].attribute[0].t
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="deep.bin")
    path.write_bytes(model.SerializeToString())
    assert external_files(path) == {"deep.bin"}


@pytest.mark.parametrize("data", [b"", b"no protobuf at all", b"\x3a\xff\xff\xff\x7f", b"\x3a\x02\x0a", bytes(range(256))])
def test_what_is_no_model_names_no_files(tmp_path, data):
    (tmp_path / "x").write_bytes(data)
    assert external_files(tmp_path / "x") == set()


def test_missing_file(path):
    model = ir.load(path)
    with pytest.raises(FileNotFoundError):
        describe(model, path.parent / "no.onnx")
