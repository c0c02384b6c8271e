"""Denormal weights: gone where they only cost time, kept where something may depend on them, streamed when large."""

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.rewriting import ChangeLog, Context
from tests.support import REGISTRY, array, assert_same, model, node, reasons, run_pass

NAME = "flush-denormals"


def with_denormals(*shape: int, dtype: str = "float32", tiny: float | None = None) -> np.ndarray:
    data = array(*shape, dtype=dtype)
    tiny = tiny or {"float32": 1e-40, "float64": 1e-310, "float16": 1e-7}[dtype]
    data.reshape(-1)[::7] = tiny
    data.reshape(-1)[3::7] = -tiny
    data.reshape(-1)[5] = np.finfo(dtype).tiny  # the smallest normal number stays
    return data


def weight(proto: onnx.ModelProto, name: str = "w") -> np.ndarray:
    return next(numpy_helper.to_array(t) for t in proto.graph.initializer if t.name == name)


def check(found: np.ndarray, before: np.ndarray) -> None:
    expected = np.where(np.abs(before) < np.finfo(before.dtype).tiny, 0, before)
    np.testing.assert_array_equal(found, expected)


def refused(before: onnx.ModelProto, reason: str) -> None:
    after, log = run_pass(before, NAME)
    assert log.applied == 0
    assert any(reason in r for r in reasons(log)), reasons(log)
    assert [t.SerializeToString() for t in after.graph.initializer] == [t.SerializeToString() for t in before.graph.initializer]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weights_of_a_matmul(dtype: str) -> None:
    data = with_denormals(64, 16, dtype=dtype)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    before = model([node("MatMul", ["x", "w"], ["y"])], {"x": [3, 64]}, ["y"], {"w": data}, types={"x": kind, "y": kind})
    after, log = run_pass(before, NAME)
    assert log.applied == 1
    check(weight(after), data)
    assert_same(before, after, {"x": array(3, 64, dtype=dtype)})


@pytest.mark.parametrize("dtype", [np.float16, "bfloat16"])
def test_half_precision_is_left_alone(dtype) -> None:
    kind = np.dtype(dtype) if dtype != "bfloat16" else helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)
    data = np.asarray([[1e-7, 1], [2e-39, 3]]).astype(kind)
    onnx_type = helper.np_dtype_to_tensor_dtype(kind)
    before = model([node("MatMul", ["x", "w"], ["y"])], {"x": [3, 2]}, ["y"], {"w": data}, types={"x": onnx_type, "y": onnx_type})
    after, log = run_pass(before, NAME)
    assert log.applied == 0
    np.testing.assert_array_equal(weight(after).view(np.uint16), data.view(np.uint16))


def test_weights_without_denormals_are_the_same_objects() -> None:
    proto = model([node("MatMul", ["x", "w"], ["y"])], {"x": [3, 64]}, ["y"], {"w": array(64, 16)})
    graph = ir.from_proto(proto)
    tensor = graph.graph.initializers["w"].const_value
    log = ChangeLog(NAME)
    REGISTRY.get(NAME)().run(Context(graph, log))
    assert graph.graph.initializers["w"].const_value is tensor
    assert log.applied == 0


@pytest.mark.parametrize("dims", [(0, 4), (1, 4)])
def test_empty_and_all_zero_weights(dims) -> None:
    before = model([node("MatMul", ["x", "w"], ["y"])], {"x": [3, dims[0]]}, {"y": [3, 4]}, {"w": np.zeros(dims, np.float32)})
    _, log = run_pass(before, NAME)
    assert log.applied == 0
    assert log.refusals == []


def test_what_is_consumed_through_moves_and_elementwise() -> None:
    data = with_denormals(16, 64)
    nodes = [
        node("Transpose", ["w"], ["t"]), node("MatMul", ["x", "t"], ["a"]), node("Add", ["a", "b"], ["c"]), node("Mul", ["c", "b"], ["d"]),
        node("Gather", ["w", "i"], ["e"]), node("Concat", ["d", "d"], ["y"], axis=0),
    ]  # fmt: skip
    before = model(nodes, {"x": [3, 64], "i": [2]}, ["y", "e"], {"w": data, "b": with_denormals(16)}, types={"i": TensorProto.INT64})
    after, log = run_pass(before, NAME)
    assert log.applied == 2
    assert_same(before, after, {"x": array(3, 64), "i": np.asarray([0, 3])})


def test_constants_that_something_may_depend_on() -> None:
    data = with_denormals(8)
    refused(
        model([node("Log", ["w"], ["z"]), node("Mul", ["x", "z"], ["y"])], {"x": [3, 8]}, ["y"], {"w": data}), "Log may depend on how small"
    )
    refused(model([node("Div", ["x", "w"], ["y"])], {"x": [3, 8]}, ["y"], {"w": data}), "Div may depend on how small")
    refused(model([node("Mul", ["x", "w"], ["y"]), node("Abs", ["w"], ["z"])], {"x": [3, 8]}, ["y", "z"], {"w": data}), "Abs may depend")
    refused(model([node("Mul", ["x", "w"], ["y"])], {"x": [3, 8]}, {"y": None, "w": [8]}, {"w": data}), "also a graph output")
    refused(
        model(
            [helper.make_node("Mul", ["x", "w"], ["y"], domain="custom")], {"x": [3, 8]}, {"y": [3, 8]}, {"w": data}, opsets={"custom": 1}
        ),
        "may depend",
    )


def test_an_epsilon_before_a_logarithm_stays() -> None:
    for epsilon in (np.float32(1e-40), np.full(4, 1e-40, np.float32)):
        before = model([node("Add", ["x", "w"], ["a"]), node("Log", ["a"], ["y"])], {"x": [3, 4]}, ["y"], {"w": epsilon})
        after, log = run_pass(before, NAME)
        assert log.applied == 0
        assert_same(before, after, {"x": np.zeros((3, 4), np.float32)}, exact=True)
    refused(before, "Add may depend on how small they are")


def test_a_kernel_of_nothing_but_denormals_goes() -> None:
    before = model([node("Conv", ["x", "w"], ["y"])], {"x": [1, 2, 5, 5]}, ["y"], {"w": np.full((2, 2, 3, 3), 1e-40, np.float32)})
    after, log = run_pass(before, NAME)
    assert log.applied == 1
    assert not weight(after).any()


def test_overridable() -> None:
    refused(
        model([node("MatMul", ["x", "w"], ["y"])], {"x": [3, 64]}, ["y"], {"w": with_denormals(64, 16)}, overridable=["w"]),
        "a caller may override it",
    )


def test_constant_nodes_subgraphs_and_functions() -> None:
    data = with_denormals(64, 16)
    constant = node("Constant", [], ["w"], value=numpy_helper.from_array(data))
    use = node("MatMul", ["x", "w"], ["y"])
    flat = model([constant, use], {"x": [3, 64]}, ["y"])
    function = helper.make_function("local", "Block", ["x"], ["y"], [constant, use], [helper.make_opsetid("", 17)])
    called = model(
        [helper.make_node("Block", ["x"], ["y"], domain="local")], {"x": [3, 64]}, {"y": [3, 16]}, functions=[function], opsets={"local": 1}
    )

    def branch(name: str, op: str):
        inner = [numpy_helper.from_array(data, f"{name}_w")]
        nodes = [node("MatMul", ["x", f"{name}_w"], [f"{name}_c"]), node(op, [f"{name}_c"], [f"{name}_y"])]
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(f"{name}_y", 1, None)], initializer=inner)

    nested = model(
        [node("If", ["cond"], ["y"], then_branch=branch("t", "Relu"), else_branch=branch("e", "Neg"))],
        {"x": [3, 64], "cond": []},
        {"y": [3, 16]},
        types={"cond": TensorProto.BOOL},
    )
    for before, count, feeds in ((flat, 1, {}), (called, 1, {}), (nested, 2, {"cond": np.asarray(True)})):
        after, log = run_pass(before, NAME)
        assert log.applied == count
        assert data.tobytes() in before.SerializeToString()
        assert data.tobytes() not in after.SerializeToString()
        assert_same(before, after, {"x": array(3, 64), **feeds})


def external(folder: Path, arrays: dict[str, np.ndarray]) -> Path:
    nodes, last = [], "x"
    for name in arrays:
        nodes.append(node("MatMul", [last, name], [f"{name}_y"]))
        last = f"{name}_y"
    proto = model(nodes, {"x": [1, next(iter(arrays.values())).shape[0]]}, [last], arrays)
    onnx.save(proto, folder / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    return folder / "m.onnx"


def test_external_weights_are_streamed(tmp_path: Path) -> None:
    data = {"clean": array(700, 700), "large": with_denormals(700, 700), "small": with_denormals(700, 9), "odd": with_denormals(9, 5)}
    graph = ir.load(external(tmp_path, data))
    tensors = {k: v.const_value for k, v in graph.graph.initializers.items()}
    log = ChangeLog(NAME)
    REGISTRY.get(NAME)().run(Context(graph, log))
    assert log.applied == 3
    found = {k: v.const_value for k, v in graph.graph.initializers.items()}
    assert found["clean"] is tensors["clean"]
    assert all(tensors[name].raw is None for name in ("clean", "large"))  # never mapped
    for name, array_ in data.items():
        check(found[name].numpy(), array_)
        with open(tmp_path / name, "w+b") as file:
            found[name].tofile(file)
        assert (tmp_path / name).read_bytes() == found[name].numpy().tobytes() == found[name].tobytes()
    again = ChangeLog(NAME)
    REGISTRY.get(NAME)().run(Context(graph, again))
    assert again.applied == 0


def test_pieces_that_cut_elements_in_two() -> None:
    from graphopt.passes.folding.flush_denormals import _Pieces

    data, parts = np.arange(1000, dtype="<f8"), []
    sink = _Pieces(np.dtype("<f8"), lambda part: parts.append(part.copy()))
    raw, start = data.tobytes(), 0
    for size in (3, 1, 4, 9, 0, 100, 7, 1, 8000):
        sink.write(raw[start : start + size])
        start += size
    np.testing.assert_array_equal(np.concatenate(parts), data)


@pytest.mark.slow
def test_memory_of_large_external_weights(tmp_path: Path) -> None:
    """256 MB of weights, denormals in all of them, go through in a tenth of that."""
    block = with_denormals(2048, 2048)
    path = external(tmp_path, {f"w{i}": block for i in range(16)})
    script = """
        import resource, sys
        import onnx_ir as ir
        from graphopt.passes.folding.flush_denormals import FlushDenormals
        from graphopt.rewriting import ChangeLog, Context
        graph, log = ir.load(sys.argv[1]), ChangeLog("flush-denormals")
        base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        FlushDenormals().run(Context(graph, log))
        with open(sys.argv[2], "wb") as file:
            for value in graph.graph.initializers.values():
                value.const_value.tofile(file)
        print(log.applied, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 1024)
    """
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), path, tmp_path / "out"], capture_output=True, text=True, check=True
    )
    applied, megabytes = out.stdout.split()
    assert int(applied) == 16
    assert float(megabytes) < 26
