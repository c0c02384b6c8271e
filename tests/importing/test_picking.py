"""Reductions, and what picks and places elements, through the importer: against ONNX Runtime, exported, and differentiated."""

from __future__ import annotations

import pickle
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.support import array, model, node, rng

torch = pytest.importorskip("torch")

from graphopt.importing.table import entries  # noqa: E402
from tests.importing.against_runtime import check, check_exported, check_gradient, compare, imported  # noqa: E402

_REDUCTIONS = ["Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare"]


def _one(op_type, arrays, constants=(), *, opset=18, outputs=1, free=(), **attributes):
    """A model of one node; of inputs in `free` the first axis may be of any size. Names of inputs are letters in order."""
    names = [chr(ord("a") + i) for i in range(len(arrays))]
    given = dict(zip(names, arrays, strict=True))
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), ["N", *a.shape[1:]] if n in free else a.shape)
        for n, a in given.items()
        if n not in constants
    ]
    outs = [f"y{i}" for i in range(outputs)]
    graph = helper.make_graph(
        [node(op_type, names, outs, **attributes)], "test", inputs, [onnx.ValueInfoProto(name=o) for o in outs],
        initializer=[numpy_helper.from_array(given[n], n) for n in constants],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return made, {n: a for n, a in given.items() if n not in constants}


def _check(op_type, arrays, constants=(), **more):
    return check(*_one(op_type, arrays, constants, **more))


@pytest.mark.parametrize("name", _REDUCTIONS)
@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_reductions(name: str, dtype: str) -> None:
    x = (np.abs(array(3, 4, 5)) * (3 if dtype == "float32" else 1) + 1).astype(dtype)
    if name == "Prod" and dtype == "int32":
        x[:2] = 1  # what does not fit is anybody's guess
    if dtype == "int32" and name in ("LogSum", "LogSumExp", "L2", "Mean"):
        x = np.full_like(x, 4)  # what is cut to an integer is one already
    if name == "LogSumExp" and dtype == "int32":
        return
    for axes in ([1], [0, -1], []):
        for keepdims in (0, 1):
            if axes:
                _check(f"Reduce{name}", [x, np.array(axes)], ["b"], keepdims=keepdims)
            else:
                _check(f"Reduce{name}", [x], keepdims=keepdims)
    attribute = model([node(f"Reduce{name}", ["a"], ["y"], axes=[1])], {"a": x.shape}, ["y"], opset=11,
                      types=dict.fromkeys("ay", helper.np_dtype_to_tensor_dtype(x.dtype)))  # fmt: skip
    check(attribute, {"a": x})


def test_every_function_of_the_table_is_found_by_its_name() -> None:
    """A module that is saved names the functions that it calls."""
    for entry in entries():
        assert getattr(sys.modules[entry.function.__module__], entry.function.__name__) is entry.function
    made, feed = _one("ReduceMean", [array(3, 4), np.array([1])], ["b"])
    module = imported(made)
    again = pickle.loads(pickle.dumps(module))
    compare([module(torch.from_numpy(feed["a"])).numpy()], [again(torch.from_numpy(feed["a"]))])


@pytest.mark.parametrize("name", _REDUCTIONS)
def test_gradients_of_reductions(name: str) -> None:
    made, _ = _one(f"Reduce{name}", [np.abs(array(3, 4, dtype="float64")) + 0.5, np.array([1])], ["b"])
    check_gradient(made, np.abs(array(3, 4, dtype="float64")) + 0.5)


def test_reductions_are_exported_for_any_size() -> None:
    for name in _REDUCTIONS:
        made, feed = _one(f"Reduce{name}", [np.abs(array(3, 4)) + 0.5, np.array([0])], ["b"], free=["a"])
        check_exported(made, feed, ({0: torch.export.Dim("n", min=2, max=64)},), {"a": np.abs(array(7, 4)) + 0.5})


@pytest.mark.parametrize("name", ["ArgMax", "ArgMin"])
def test_places_of_extremes(name: str) -> None:
    x = rng(0).integers(0, 3, (4, 5, 6)).astype(np.float32)  # many ties
    for axis in (0, 1, -1):
        for last in (0, 1):
            _check(name, [x], axis=axis, select_last_index=last, keepdims=last, opset=13)


@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_running_sums(dtype: str) -> None:
    x = (array(3, 4) * 5).astype(dtype)
    for exclusive in (0, 1):
        for reverse in (0, 1):
            _check("CumSum", [x, np.array(-1)], ["b"], exclusive=exclusive, reverse=reverse)


@pytest.mark.parametrize("indices", [np.array(1), np.array([0, -1]), np.array([[1, -2], [0, 2]])], ids=str)
@pytest.mark.parametrize("constant", [True, False])
def test_gather(indices: np.ndarray, constant: bool) -> None:
    for axis in (0, 1, -1):
        _check("Gather", [array(3, 4, 5), indices], ["b"] if constant else (), axis=axis)
    _check("Gather", [array(6, 5), indices], ["a"], axis=0)


def test_gather_is_exported_and_differentiated() -> None:
    made, feed = _one("Gather", [array(4, 3), np.array([[0, -1], [2, 1]])], free=["a", "b"], axis=0)
    del feed["a"]
    table, _ = _one("Gather", [array(4, 3), np.array([[0, -1], [2, 1]])], ["a"], free=["b"], axis=0)
    check_exported(table, feed, ({0: torch.export.Dim("n", min=2, max=64)},), {"b": np.array([[1, 1], [0, 3], [2, -4]])})
    made, _ = _one("Gather", [array(4, 3, dtype="float64"), np.array([0, -1, 0])], axis=0)
    check_gradient(made, array(4, 3, dtype="float64"), np.array([0, -1, 0]))


def test_gather_elements_and_nd() -> None:
    x = array(3, 4, 5)
    _check("GatherElements", [x, rng(1).integers(-4, 4, (3, 2, 5))], axis=1, opset=13)
    _check("GatherND", [x, np.array([[0, -1], [2, 1]])], opset=13)
    _check("GatherND", [x, np.array([[[1]], [[-1]], [[0]]])], batch_dims=1, opset=13)


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
def test_scatter(reduction: str) -> None:
    """Without a reduction a place may be written once; with one it may be named more often."""
    x = array(4, 5)
    places = np.array([[0, 1, -1, 3, 2]]) if reduction == "none" else np.array([[0, 0, -1, 3, 0]])
    _check("ScatterElements", [x, places, array(1, 5, seed=2)], axis=1, reduction=reduction)
    rows = np.array([[1, 2], [-1, 0]]) if reduction == "none" else np.array([[1, 2], [1, 2]])
    _check("ScatterND", [array(3, 4, 5), rows, array(2, 5, seed=2)], reduction=reduction)


@pytest.mark.parametrize("reduction", ["none", "add", "mul"])
def test_gradients_of_scatter(reduction: str) -> None:
    places, x, updates = np.array([[0, 2], [1, 1]]), array(2, 3, dtype="float64"), array(2, 2, dtype="float64", seed=1)
    places = places if reduction != "none" else np.array([[0, 2], [1, 0]])
    made, _ = _one("ScatterElements", [x, places, updates], axis=1, reduction=reduction)
    check_gradient(made, x, places, updates)


def test_largest_and_smallest() -> None:
    x = rng(0).integers(0, 4, (3, 9)).astype(np.float32)  # ties go to the lower index
    for largest in (0, 1):
        _check("TopK", [x, np.array([4])], ["b"], outputs=2, largest=largest, opset=11)
        _check("TopK", [x, np.array([4])], outputs=2, largest=largest, opset=11)
        _check("TopK", [x.astype(np.int64), np.array([2])], ["b"], outputs=2, largest=largest, axis=0, opset=11)


def test_one_hot() -> None:
    indices = np.array([[0, -1, 7], [3, 2, -9]])
    for axis in (-1, 0, 1):
        _check("OneHot", [indices, np.array(5), np.array([0.5, 2.0], np.float32)], ["b"], axis=axis)


def test_what_is_found_by_value() -> None:
    x = rng(0).integers(0, 3, (4, 5)).astype(np.float32)
    made = model([node("NonZero", ["a"], ["y"])], {"a": [4, 5]}, {"y": [2, "K"]}, types={"y": TensorProto.INT64})
    check(made, {"a": x})
    made = model([node("Compress", ["a", "c"], ["y"], axis=1)], {"a": [4, 5], "c": [3]}, {"y": [4, "K"]}, types={"c": TensorProto.BOOL})
    check(made, {"a": x, "c": np.array([True, False, True])})
    for order in (0, 1):
        outs = {"y": ["K"], "i": ["K"], "v": ["M"], "c": ["K"]}
        made = model([node("Unique", ["a"], list(outs), sorted=order)], {"a": [4, 5]}, outs, types=dict.fromkeys("ivc", TensorProto.INT64))
        check(made, {"a": x})


def test_sequences_turned_around() -> None:
    _check("ReverseSequence", [array(4, 3, 2), np.array([1, 4, 3])], batch_axis=1, time_axis=0, opset=10)
    _check("ReverseSequence", [array(3, 4, 2), np.array([1, 4, 3])], batch_axis=0, time_axis=1, opset=10)


def test_blocks_into_images_and_centres() -> None:
    _check("Col2Im", [array(1, 12, 16), np.array([5, 4]), np.array([2, 2])], ["b", "c"], pads=[0, 1, 0, 0])
    _check("CenterCropPad", [array(5, 4, 3), np.array([3, 7])], ["b"], axes=[0, 1])


def test_losses_and_their_gradients() -> None:
    scores, labels, weights = array(4, 3, 2), rng(0).integers(0, 3, (4, 2)), array(3, low=0.5)
    for reduction in ("none", "sum", "mean"):
        _check("SoftmaxCrossEntropyLoss", [scores, labels, weights], outputs=2, reduction=reduction, ignore_index=1, opset=13)
        _check("NegativeLogLikelihoodLoss", [scores, labels], reduction=reduction, opset=13)
    made, _ = _one("SoftmaxCrossEntropyLoss", [scores.astype(np.float64), labels, weights.astype(np.float64)], ["c"], opset=13)
    check_gradient(made, scores.astype(np.float64), labels)


def test_an_index_that_is_not_there_is_an_error() -> None:
    made, _ = _one("Gather", [array(3, 4), np.array([5])], axis=0)
    with pytest.raises(IndexError):
        imported(made)(torch.zeros(3, 4), torch.tensor([5]))
