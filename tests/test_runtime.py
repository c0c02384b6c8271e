"""Sessions: what they compute, on which provider, and what their errors say."""

import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from graphopt import runtime
from graphopt.errors import InputError, ProviderError

RELU = '<ir_version: 9, opset_import: ["" : 17]> g (float[2,3] x) => (float[2,3] y) { [n1] y = Relu(x) }'
X = np.array([[-1, 0, 1], [2, -3, 4]], np.float32)


def save(text_or_model, path):
    model = onnx.parser.parse_model(text_or_model) if isinstance(text_or_model, str) else text_or_model
    onnx.save(model, path)
    return path


def one_node(node, opset=17, domains=()):
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )  # fmt: skip
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9)


def message(model, feeds=None):
    """The one line that a model or its feeds are turned down with."""
    with pytest.raises(InputError) as caught:
        session = runtime.session(model)
        if feeds is not None:
            runtime.run(session, feeds)
    text = str(caught.value)
    assert "\n" not in text and "ONNXRuntimeError" not in text and ".cc:" not in text
    return text


def test_importing_does_not_import_the_runtime():
    code = "import sys, graphopt.runtime; print('onnxruntime' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_run_from_a_path_and_from_bytes(tmp_path):
    path = save(RELU, tmp_path / "m.onnx")
    for model in (path, str(path), path.read_bytes()):
        for optimize in (True, False):
            outputs = runtime.run(runtime.session(model, optimize=optimize), {"x": X})
            assert list(outputs) == ["y"]
            np.testing.assert_array_equal(outputs["y"], np.maximum(X, 0))


def test_optimize_off_leaves_the_graph_as_written(tmp_path):
    text = RELU.replace("y = Relu(x)", "a = Identity(x) [n2] b = Relu(a) [n3] y = Relu(b)")
    path = save(text, tmp_path / "m.onnx")
    for optimize, operators in ((False, ["Identity", "Relu", "Relu"]), (True, ["Relu", "Relu"])):
        written = tmp_path / f"{optimize}.onnx"
        runtime.session(path, optimize=optimize, optimized_path=written)
        assert [n.op_type for n in onnx.load(written).graph.node] == operators


def test_threads(tmp_path):
    path = save(RELU, tmp_path / "m.onnx")
    assert runtime.session(path, threads=1).get_session_options().intra_op_num_threads == 1
    assert runtime.session(path).get_session_options().intra_op_num_threads == runtime.usable_cores()
    with pytest.raises(ValueError, match="threads"):
        runtime.session(path, threads=-1)


def test_missing_file(tmp_path):
    path = tmp_path / "no.onnx"
    assert message(path) == f"{path}: no such file"


@pytest.mark.parametrize("data", [b"not a model at all" * 20, b""])
def test_not_a_model(tmp_path, data):
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    assert message(path).startswith(f"{path}: not an ONNX model")


def test_truncated(tmp_path):
    path = save(RELU, tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes()[:-20])
    assert "truncated" in message(path)


def test_unknown_operator_names_node_operator_and_opset(tmp_path):
    path = save(one_node(helper.make_node("Foo", ["x"], ["y"], name="n1")), tmp_path / "m.onnx")
    assert message(path) == f"{path}: node 'n1': ONNX Runtime has no operator Foo in opset 17"


def test_unknown_domain(tmp_path):
    node = helper.make_node("Foo", ["x"], ["y"], name="n1", domain="my.dom")
    path = save(one_node(node, domains=["my.dom"]), tmp_path / "m.onnx")
    assert "my.dom::Foo" in message(path)
    save(one_node(node), path)
    assert "node 'n1'" in message(path) and "no opset of domain 'my.dom'" in message(path)


def test_opset_and_ir_version_from_the_future(tmp_path):
    path = save(one_node(helper.make_node("Relu", ["x"], ["y"]), opset=99), tmp_path / "m.onnx")
    assert "opset 99 of domain ai.onnx is newer than ONNX Runtime supports" in message(path)
    model = one_node(helper.make_node("Relu", ["x"], ["y"]))
    model.ir_version = 50
    assert "IR version 50 is newer" in message(save(model, path))


def test_external_data_missing_or_short(tmp_path):
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="w.bin")
    weight.external_data.add(key="offset", value="4096")
    model = one_node(helper.make_node("Add", ["x", "w"], ["y"]))
    model.graph.initializer.append(weight)
    path = save(model, tmp_path / "m.onnx")
    assert "external data file missing" in message(path) and "w.bin (tensor 'w')" in message(path)
    (tmp_path / "w.bin").write_bytes(b"1234")
    assert message(path) == f"{path}: external data file too short for tensor 'w'"


def test_a_failing_node_is_named(tmp_path):
    text = """<ir_version: 9, opset_import: ["" : 17]> g (float[a,b] x, float[c,d] z) => (float[a,d] y)
              { [mm] y = MatMul(x, z) }"""
    path = save(text, tmp_path / "m.onnx")
    assert message(path, {"x": X, "z": X}) == f"{path}: node 'mm' (MatMul) failed: Compute MatMul dimension mismatch"


@pytest.mark.parametrize(
    ("feeds", "says"),
    [
        ({}, "no value for input 'x'"),
        ({"x": X, "q": X}, "no input named 'q' (the inputs are 'x')"),
        ({"x": X.astype("f8")}, "input 'x' is float64, the model takes float32"),
        ({"x": X[0]}, "input 'x' has 1 dimensions, the model takes 2"),
        ({"x": X[:, :2]}, "input 'x' has a shape that the model does not take"),
    ],
)
def test_wrong_feeds(tmp_path, feeds, says):
    path = save(RELU, tmp_path / "m.onnx")
    assert message(path, feeds).startswith(f"{path}: {says}")


@pytest.mark.parametrize("name", ["cpu", "CPU", " cpu", "CPUExecutionProvider", "cpuexecutionprovider"])
def test_cpu_by_any_name(name):
    assert runtime.resolve_provider(name) == "CPUExecutionProvider"


def test_unknown_provider_lists_what_there_is():
    with pytest.raises(ProviderError, match=r"unknown execution provider 'abacus' \(available: .*cpu"):
        runtime.resolve_provider("abacus")


def without_cuda(monkeypatch, available):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: available)


def test_absent_cuda_says_how_to_get_it(monkeypatch, tmp_path):
    without_cuda(monkeypatch, ["CPUExecutionProvider"])
    for name in ("cuda", "gpu", "CUDAExecutionProvider"):
        with pytest.raises(ProviderError, match=r"not in this build.*available: cpu.*pip install graphopt\[gpu\]"):
            runtime.session(save(RELU, tmp_path / "m.onnx"), provider=name)


def test_a_provider_that_falls_back_to_the_cpu_is_an_error(monkeypatch, tmp_path):
    """A build that lists CUDA on a machine without it: the runtime makes a session on the CPU and says nothing."""
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("needs a machine without CUDA")
    without_cuda(monkeypatch, ["CUDAExecutionProvider", "CPUExecutionProvider"])
    real = onnxruntime.InferenceSession
    silent = lambda model, options, providers, **_: real(model, options, providers=["CPUExecutionProvider"])  # noqa: E731
    monkeypatch.setattr(onnxruntime, "InferenceSession", silent)
    with pytest.raises(ProviderError, match="'cuda' is in this build of ONNX Runtime but fails to start here"):
        runtime.session(save(RELU, tmp_path / "m.onnx"), provider="cuda")


def test_a_provider_that_runs_no_node_is_an_error(monkeypatch, tmp_path):
    import onnxruntime

    class Session(onnxruntime.InferenceSession):
        def __init__(self, model, options, providers, **_):
            super().__init__(model, options, providers=["CPUExecutionProvider"])

        def get_providers(self):
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    without_cuda(monkeypatch, ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    with pytest.raises(ProviderError, match=r"can run no node of this model.*gave them all to cpu"):
        runtime.session(save(RELU, tmp_path / "m.onnx"), provider="cuda")


def test_whose_fault_a_failure_on_another_provider_is(monkeypatch, tmp_path):
    import onnxruntime

    real = onnxruntime.InferenceSession

    def fails(model, options, providers, **_):
        if providers[0] != "CPUExecutionProvider":
            raise RuntimeError("Please install TensorRT libraries")
        return real(model, options, providers=providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", fails)
    without_cuda(monkeypatch, ["TensorrtExecutionProvider", "CPUExecutionProvider"])
    path = save(RELU, tmp_path / "m.onnx")
    with pytest.raises(ProviderError, match="'tensorrt' fails: Please install TensorRT"):
        runtime.session(path, provider="tensorrt")
    save(one_node(helper.make_node("Foo", ["x"], ["y"], name="n1")), path)
    with pytest.raises(InputError, match="no operator Foo"):
        runtime.session(path, provider="tensorrt")
