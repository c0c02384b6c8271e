"""Layers after a cut, fitted to what they gave before: what can be won back is, and what cannot is left alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt.recovery import Reconstructed, kept_in, reconstruct
from graphopt.rewriting import Context
from graphopt.verification import Sample
from tests.support import REGISTRY, array, model, node, session

IMAGE = {"x": ["n", 3, 8, 8]}


def conv(x: str, y: str, *weights: str, **more) -> onnx.NodeProto:
    return node("Conv", [x, *weights], [y], pads=[1, 1, 1, 1], **more)


def doubled(weight: np.ndarray) -> np.ndarray:
    """A weight with every output channel there twice, the second much smaller: that one can be spared."""
    return np.concatenate([weight, weight * 0.1])


def cnn(**more) -> onnx.ModelProto:
    nodes = [conv("x", "a", "w1", **more), node("Relu", ["a"], ["r"]), conv("r", "b", "w2", "b2", strides=[2, 2]),
             node("Relu", ["b"], ["s"]), node("GlobalAveragePool", ["s"], ["g"]), node("Flatten", ["g"], ["f"]),
             node("Gemm", ["f", "w3", "b3"], ["y"], transB=1)]  # fmt: skip
    weights = {"w1": doubled(array(4, 3, 3, 3, seed=1)), "w2": doubled(array(6, 8, 3, 3, seed=2)), "b2": np.tile(array(6, seed=3), 2),
               "w3": array(5, 12, seed=4), "b3": array(5, seed=5)}  # fmt: skip
    weights["b2"][6:] *= 0.1
    return model(nodes, IMAGE, ["y"], weights)


def mlp() -> onnx.ModelProto:
    nodes = [node("MatMul", ["x", "w1"], ["a"]), node("Relu", ["a"], ["r"]), node("MatMul", ["r", "w2"], ["y"])]
    return model(nodes, {"x": ["n", "s", 6]}, ["y"], {"w1": doubled(array(8, 6)).T.copy(), "w2": array(16, 5)})


def samples(proto: onnx.ModelProto, count: int = 20) -> list[Sample]:
    sizes = {"n": 4, "s": 7}
    dims = [d.dim_value or sizes[d.dim_param] for d in proto.graph.input[0].type.tensor_type.shape.dim]
    return [Sample({"x": array(*dims, seed=100 + i)}, f"sample {i}") for i in range(count)]


def cut_and_fitted(proto: onnx.ModelProto, ratio: float = 0.5, **options) -> tuple[onnx.ModelProto, onnx.ModelProto, list[Reconstructed]]:
    """The model after the cut, after reconstruction, and what was done."""
    original = ir.from_proto(proto)
    pruned = ir.from_proto(onnx.ModelProto.FromString(proto.SerializeToString()))
    REGISTRY.get("prune-channels").configure({"ratio": ratio, "multiple": 1, "least": 1}).run(Context(pruned))
    before = onnx.ModelProto.FromString(ir.to_proto(pruned).SerializeToString())
    done = reconstruct(original, pruned, samples(proto), kept_in(pruned), **options)
    return before, ir.to_proto(pruned), done


def error(proto: onnx.ModelProto, other: onnx.ModelProto) -> float:
    """Relative squared error of a model's output on inputs that nothing was fitted to."""
    feeds = {"x": samples(proto, 21)[-1].feeds["x"]}
    a, b = (session(p).run(None, feeds)[0].astype(np.float64) for p in (proto, other))
    return float(((a - b) ** 2).sum() / (a**2).sum())


@pytest.mark.parametrize("make", [cnn, mlp], ids=["cnn", "mlp"])
def test_what_is_there_twice_can_be_spared(make: Callable[[], onnx.ModelProto]):
    proto = make()
    before, after, done = cut_and_fitted(proto, ridge=1e-10)
    assert [d.kept for d in done] == [True] * (2 if make is cnn else 1), done
    assert error(proto, before) > 0.01
    assert error(proto, after) < 1e-8
    assert all(d.after < 1e-8 < d.before for d in done)


def test_without_doubles_it_wins_back_a_part():
    proto = mlp()
    for tensor in proto.graph.initializer:
        shape = tuple(tensor.dims)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array(*shape, seed=7), tensor.name))
    before, after, done = cut_and_fitted(proto)
    assert done[0].kept and error(proto, after) < 0.7 * error(proto, before)


def test_dilated_strided_and_one_sided_padding():
    nodes = [conv("x", "a", "w1"), node("Conv", ["a", "w2"], ["y"], pads=[2, 0, 1, 3], strides=[2, 1], dilations=[2, 1])]
    proto = model(nodes, IMAGE, ["y"], {"w1": doubled(array(4, 3, 3, 3)), "w2": array(6, 8, 3, 2)})
    before, after, done = cut_and_fitted(proto, ridge=1e-10)
    assert done[0].kept and error(proto, before) > 0.01 and error(proto, after) < 1e-8


def test_gemm_with_alpha_and_double_precision():
    nodes = [node("Gemm", ["x", "w1"], ["a"]), node("Tanh", ["a"], ["t"]), node("Gemm", ["t", "w2", "b"], ["y"], alpha=0.5)]
    weights = {"w1": doubled(array(8, 6)).T.astype("float64"), "w2": array(16, 5, dtype="float64"), "b": array(5, dtype="float64")}
    proto = model(nodes, {"x": [32, 6]}, ["y"], weights, types={"x": onnx.TensorProto.DOUBLE, "y": onnx.TensorProto.DOUBLE})
    original, pruned = (ir.from_proto(onnx.ModelProto.FromString(proto.SerializeToString())) for _ in range(2))
    REGISTRY.get("prune-channels").configure({"ratio": 0.5, "multiple": 1, "least": 1}).run(Context(pruned))
    given = [Sample({"x": array(32, 6, seed=i, dtype="float64")}, "") for i in range(20)]
    done = reconstruct(original, pruned, given, kept_in(pruned))
    assert done[0].kept and done[0].after < done[0].before
    assert {t.data_type for t in ir.to_proto(pruned).graph.initializer} == {onnx.TensorProto.DOUBLE}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"w": "shared"}, "its weight or bias serves other layers too"),
        ({"auto_pad": "SAME_UPPER"}, "automatic padding is not reconstructed"),
    ],
)
def test_layers_that_are_left_alone(change, reason):
    more = {"auto_pad": "SAME_UPPER"} if "auto_pad" in change else {"pads": [1, 1, 1, 1]}
    nodes = [conv("x", "a", "w1"), node("Conv", ["a", "w2"], ["b"], **more)]
    nodes += [node("Conv", ["a", "w2"], ["c"], **more), node("Add", ["b", "c"], ["y"])] if "w" in change else [node("Relu", ["b"], ["y"])]
    proto = model(nodes, IMAGE, ["y"], {"w1": array(8, 3, 3, 3), "w2": array(4, 8, 3, 3)})
    before, after, done = cut_and_fitted(proto)
    assert [(d.kept, d.reason) for d in done] == [(False, reason)] * len(done) and done
    assert before.SerializeToString() == after.SerializeToString()


def test_too_few_samples_change_nothing():
    proto = mlp()
    original, pruned = (ir.from_proto(onnx.ModelProto.FromString(proto.SerializeToString())) for _ in range(2))
    REGISTRY.get("prune-channels").configure({"ratio": 0.5, "multiple": 1, "least": 1}).run(Context(pruned))
    assert [d.reason for d in reconstruct(original, pruned, samples(proto, 3), kept_in(pruned))] == ["too few samples"]


def test_what_is_kept_is_told_over_two_cuts():
    proto = mlp()
    pruned = ir.from_proto(proto)
    for ratio in (0.25, 0.5):
        REGISTRY.get("prune-channels").configure({"ratio": ratio, "multiple": 1, "least": 1}).run(Context(pruned))
    mask = kept_in(pruned)["w1"][1]
    assert mask.shape == (16,) and mask.sum() == 6 and kept_in(pruned)["w2"][0].tolist() == mask.tolist()
    left = pruned.graph.initializers["w1"].const_value.numpy()
    whole = next(onnx.numpy_helper.to_array(t) for t in proto.graph.initializer if t.name == "w1")
    np.testing.assert_array_equal(left, whole[:, mask])
