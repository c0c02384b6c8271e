"""Whether the runtime ends with one graph for two models."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from graphopt.errors import InputError
from graphopt.measurement import final_graph, same_runtime_graph
from graphopt.settings import Settings


def test_names_weights_and_what_the_runtime_drops_do_not_count(make):
    path = make("a", 2)
    assert same_runtime_graph(path, make("same", 2)) is True
    assert same_runtime_graph(path, make("named", 2, names="other_")) is True
    assert same_runtime_graph(path, make("scaled", 2, scale=0.5)) is True
    assert same_runtime_graph(path, make("identities", 2, identities=True)) is True


def test_structure_counts(make):
    path = make("a", 2)
    assert same_runtime_graph(path, make("longer", 3)) is False
    assert same_runtime_graph(path, make("wider", 2, 64)) is False


def edited(path, edit):
    model = onnx.load(path)
    edit(model.graph)
    changed = path.with_name("edited.onnx")
    onnx.save(model, changed)
    return changed


def test_wiring_counts(make):
    path = make("a", 2)

    def cross(graph):  # the second MatMul reads the input instead of the first Relu
        graph.node[2].input[0] = "x"
        graph.node[2].input[1] = "w0"

    assert same_runtime_graph(path, edited(path, cross)) is False


def test_denormal_weights_count(make):
    path = make("a", 2)

    def denormal(graph):
        array = numpy_helper.to_array(graph.initializer[0]).copy()
        array[0, 0] = 1e-40
        graph.initializer[0].CopyFrom(numpy_helper.from_array(array, "w0"))

    assert same_runtime_graph(path, edited(path, denormal)) is False


@pytest.mark.parametrize(("other", "same"), [("[0, 2, 1]", False), ("[1, 0, 2]", True)])
def test_attributes_count(tmp_path, other, same):
    paths = []
    for i, perm in enumerate(("[1, 0, 2]", other)):
        text = f'<ir_version: 9, opset_import: ["" : 17]> g (float[2,3,4] x) => (float[a,b,c] y) {{ y = Transpose<perm={perm}>(x) }}'
        paths.append(tmp_path / f"{i}.onnx")
        onnx.save(onnx.parser.parse_model(text), paths[-1])
    assert same_runtime_graph(*paths) is same


def test_subgraphs_are_compared(tmp_path):
    paths = []
    for operator in ("Sin", "Cos", "Sin"):
        text = f"""<ir_version: 9, opset_import: ["" : 17]> g (bool c, float[3] x) => (float[3] y) {{
            y = If(c)<then_branch = t () => (float[3] p) {{ p = {operator}(x) }},
                      else_branch = e () => (float[3] q) {{ q = Exp(x) }}> }}"""
        paths.append(tmp_path / f"{len(paths)}.onnx")
        onnx.save(onnx.parser.parse_model(text), paths[-1])
    assert same_runtime_graph(paths[0], paths[1]) is False
    assert same_runtime_graph(paths[0], paths[2]) is True


def test_too_large_to_tell(make, tmp_path):
    path = make("a", 2)
    assert same_runtime_graph(path, path, max_bytes=1000) is None
    # External data counts.
    onnx.save(onnx.load(path), tmp_path / "ext.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    assert (tmp_path / "ext.onnx").stat().st_size < 5000
    assert same_runtime_graph(tmp_path / "ext.onnx", path, max_bytes=100_000) is None
    assert same_runtime_graph(tmp_path / "ext.onnx", path) is True
    assert np.fromfile(tmp_path / "w.bin", np.float32).size >= 2 * 128 * 128


def test_errors(make, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        same_runtime_graph(make("a", 1), tmp_path / "no.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"nonsense" * 10)
    with pytest.raises(InputError, match=r"bad\.onnx"):
        same_runtime_graph(make("a", 1), tmp_path / "bad.onnx")


def test_the_operators_that_the_runtime_ends_with(make):
    found = final_graph(make("a", 2, identities=True), threads=1)
    assert sum(found.operators.values()) == 4  # it eliminates the Identity nodes
    assert found.operators["MatMul"] == found.operators["Relu"] == 2
    assert found == final_graph(make("b", 2, names="other"), threads=1)
    assert found != final_graph(make("c", 3), threads=1)
    assert final_graph(make("a", 2), threads=1, max_bytes=10) is None


def test_settings_decide_what_the_runtime_does(make):
    path = make("a", 2, identities=True)
    plain = final_graph(path, threads=1, settings=Settings(level="disabled"))
    assert plain.operators == {"MatMul": 2, "Relu": 2, "Identity": 2}
