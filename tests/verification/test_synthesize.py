"""Inputs out of the graph: bounds of indices, masks, sizes, choices, and plain words where there is nothing to be done."""

import sys
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from graphopt import runtime
from graphopt.errors import OptionError
from graphopt.verification import for_timing, synthesize
from graphopt.verification.bounds import Bounds
from tests.verification.small import F, I, S, const, graph_of, info, linear, model, node, weight


def made(data, **options):
    session = runtime.session(data, optimize=False, threads=1)
    return synthesize(graph_of(data), lambda feeds: runtime.run(session, feeds), **options)


def good(data, **options):
    result = made(data, **options)
    assert result.failure is None and result.samples, result.failure
    return result


def facts(data, name):
    graph = graph_of(data)
    return Bounds(graph).of(next(v for v in graph.graph.inputs if v.name == name))


def lookup(nodes, rows=13, ids=("batch", "seq")):
    """A Gather of a table with `rows` rows, at "i", which the nodes make of "ids"."""
    nodes = [*nodes, node("Gather", ["table", "i"], ["y"])]
    constants = [const("table", weight(rows, 4)), const("one", 1, np.int64), const("two", 2, np.int64), const("ax", [1], np.int64)]
    return model(nodes, [info("ids", I, list(ids))], [info("y", F, None)], constants)


@pytest.mark.parametrize(
    ("nodes", "low", "high"),
    [
        ([node("Identity", ["ids"], ["i"])], 0, 12),
        ([node("Cast", ["ids"], ["c"], to=TensorProto.INT32), node("Unsqueeze", ["c", "ax"], ["i"])], 0, 12),
        ([node("Add", ["ids", "one"], ["i"])], -1, 11),
        ([node("Sub", ["two", "ids"], ["i"])], -10, 2),
        ([node("Mul", ["ids", "two"], ["m"]), node("Add", ["m", "one"], ["i"])], 0, 5),
        ([node("Shape", ["ids"], ["s"]), node("Expand", ["ids", "s"], ["e"]), node("Transpose", ["e"], ["i"])], 0, 12),
        ([node("Concat", ["ids", "ids"], ["i"], axis=1)], 0, 12),
    ],
    ids=["direct", "cast-unsqueeze", "add", "sub-from", "affine", "expand-transpose", "concat"],
)
def test_an_index_is_bounded_by_the_table(nodes, low, high):
    data = lookup(nodes)
    found = facts(data, "ids")
    assert found.indexed and max(found.low, -1000) <= low and found.high == high
    if low >= 0 or found.low == low:
        assert found.low == low
    result = good(data)
    drawn = np.concatenate([s.feeds["ids"].ravel() for s in result.samples])
    assert drawn.min() >= low and drawn.max() <= high
    assert len(np.unique(drawn)) > 2  # spread over the table, not zeros


def test_an_index_inside_an_if_branch_and_a_function():
    then = helper.make_graph([node("Gather", ["small", "ids"], ["ty"])], "then", [], [info("ty", F, None)])
    other = helper.make_graph([node("Gather", ["large", "ids"], ["ey"])], "else", [], [info("ey", F, None)])
    data = model(
        [node("If", ["flag"], ["y"], then_branch=then, else_branch=other)],
        [info("flag", TensorProto.BOOL, []), info("ids", I, ["N"])],
        [info("y", F, None)],
        [const("small", weight(5, 4)), const("large", weight(50, 4, 1))],
    )
    assert (facts(data, "ids").low, facts(data, "ids").high) == (0, 4)
    result = good(data)
    assert {bool(s.feeds["flag"]) for s in result.samples} == {True, False}

    body = [helper.make_node("Cast", ["a"], ["b"], to=TensorProto.INT32), helper.make_node("Gather", ["t", "b"], ["c"])]
    function = helper.make_function("local", "Embed", ["a", "t"], ["c"], body, [helper.make_opsetid("", 17)])
    call = helper.make_node("Embed", ["ids", "table"], ["y"], domain="local", name="call")
    data = model([call], [info("ids", I, ["N"])], [info("y", F, None)], [const("table", weight(7, 3))], [function], {"local": 1})
    assert facts(data, "ids").high == 6
    good(data)


def test_an_index_carried_through_a_loop():
    """The carried value comes out of one turn and goes into the next, where it is looked up."""
    body = helper.make_graph(
        [
            node("Gather", ["table", "carried"], ["row"]),
            node("Identity", ["carried"], ["carried_out"]),
            node("Identity", ["go"], ["go_out"]),
        ],
        "body",
        [info("turn", I, []), info("go", TensorProto.BOOL, []), info("carried", I, None)],
        [info("go_out", TensorProto.BOOL, []), info("carried_out", I, None), info("row", F, None)],
    )
    data = model(
        [node("Loop", ["count", "", "ids"], ["last", "y"], body=body)],
        [info("ids", I, ["N"])],
        [info("last", I, None), info("y", F, None)],
        [const("table", weight(6, 4)), const("count", 2, np.int64)],
    )
    assert facts(data, "ids").high == 5
    good(data)


def test_other_indexed_operators():
    elements = model(
        [node("GatherElements", ["t", "ids"], ["y"], axis=1)], [info("ids", I, [4, "N"])], [info("y")], [const("t", weight(4, 9))]
    )
    assert facts(elements, "ids").high == 8
    nd = model([node("GatherND", ["t", "ids"], ["y"])], [info("ids", I, ["N", 2])], [info("y", F, None)], [const("t", weight(4, 9))])
    assert facts(nd, "ids").high == 3
    hot = model(
        [node("OneHot", ["ids", "d", "v"], ["y"])],
        [info("ids", I, ["N"])],
        [info("y", F, None)],
        [const("d", 6, np.int64), const("v", [0.0, 1.0])],
    )
    assert facts(hot, "ids").high == 5
    for data in (elements, nd, hot):
        good(data)


def test_an_error_of_the_runtime_teaches_the_bound():
    """The table's size is known to nobody before it runs: it is sliced by a computed amount."""
    nodes = [
        node("ReduceSum", ["k"], ["n"], keepdims=1),
        node("Slice", ["table", "zero", "n"], ["part"]),
        node("Gather", ["part", "ids"], ["y"]),
    ]
    data = model(nodes, [info("ids", I, ["N"])], [info("y", F, None)],
                 [const("k", [1, 2], np.int64), const("zero", [0], np.int64), const("table", weight(100, 4))])  # fmt: skip
    result = good(data)
    assert max(s.feeds["ids"].max() for s in result.samples) <= 2
    assert result.informative


def bert_like():
    """y = table[ids] * mask + (1 - mask) * -1e9, reduced over the sequence."""
    nodes = [
        node("Gather", ["table", "input_ids"], ["e"]),
        node("Cast", ["attention"], ["m"], to=F),
        node("Sub", ["one", "m"], ["inv"]),
        node("Mul", ["inv", "big"], ["bias"]),
        node("ReduceMean", ["e"], ["score"], axes=[2], keepdims=0),
        node("Add", ["score", "bias"], ["logits"]),
        node("Softmax", ["logits"], ["y"], axis=-1),
    ]
    inputs = [info("input_ids", I, ["batch", "seq"]), info("attention", I, ["batch", "seq"])]
    return model(nodes, inputs, [info("y", F, None)], [const("table", weight(40, 4)), const("one", 1.0), const("big", -1e9)])


def test_a_mask_is_ragged_ones_with_padding_at_the_end():
    result = good(bert_like())
    masks = [s.feeds["attention"] for s in result.samples]
    assert {int(m) for mask in masks for m in np.unique(mask)} == {0, 1}
    for mask in masks:
        assert np.all(np.diff(mask, axis=1) <= 0) and np.all(mask[:, 0] == 1)
    assert any((m == 0).any() for m in masks) and any((m[0] == 1).all() for m in masks)
    shapes = {m.shape for m in masks}
    assert len({s[0] for s in shapes}) >= 2 and len({s[1] for s in shapes}) >= 2
    for s in result.samples:
        assert s.feeds["input_ids"].shape == s.feeds["attention"].shape


def test_sizes_named_repeated_and_unknown():
    add = model([node("Add", ["a", "b"], ["y"])], [info("a", F, ["N", "T"]), info("b", F, ["N", "T"])], [info("y", F, None)])
    for s in good(add).samples:
        assert s.feeds["a"].shape == s.feeds["b"].shape
    # One name for batch, height and width, and an operator that wants 32 rows at least: they are not one size.
    image = model([node("MaxPool", ["x"], ["y"], kernel_shape=[32, 16])], [info("x", F, ["D", 3, "D", "D"])], [info("y", F, None)])
    shapes = {s.feeds["x"].shape for s in good(image).samples}
    assert all(n < h for n, _, h, _ in shapes) and len({s[0] for s in shapes}) >= 2 and len({s[2] for s in shapes}) >= 2
    unknown = model(
        [node("Add", ["a", "b"], ["y"])], [info("a", F, ["?", "unk__1"]), info("b", F, ["None", "unk__2"])], [info("y", F, None)]
    )
    assert len({s.feeds["a"].shape for s in good(unknown).samples}) >= 2
    free = model([node("MatMul", ["a", "b"], ["y"])], [info("a", F, [None, 5]), info("b", F, [5, None])], [info("y", F, None)])
    assert len(good(free).sizes) >= 2


def test_an_expression_over_named_dimensions():
    data = model(
        [node("Concat", ["past", "new"], ["all"], axis=1), node("Mul", ["all", "mask"], ["y"])],
        [info("past", F, ["batch", "past_len"]), info("new", F, ["batch", "seq"]), info("mask", F, ["batch", "past_len + seq"])],
        [info("y", F, None)],
    )
    for s in good(data).samples:
        assert s.feeds["mask"].shape[1] == s.feeds["past"].shape[1] + s.feeds["new"].shape[1]


def test_a_size_that_the_graph_or_an_error_speaks_of():
    data = model([node("Reshape", ["x", "shape"], ["y"])], [info("x", F, ["n"])], [info("y", F, None)], [const("shape", [7, 37], np.int64)])
    result = good(data)
    assert result.samples[0].feeds["x"].shape == (259,)
    assert len(result.warnings) == 1 and "was only 259" in result.warnings[0]


def test_a_selecting_input_takes_both_ways():
    then = helper.make_graph([node("Mul", ["x", "two"], ["ty"])], "t", [], [info("ty", F, None)])
    other = helper.make_graph([node("Neg", ["x"], ["ey"])], "e", [], [info("ey", F, None)])
    data = model(
        [node("Equal", ["sr", "rate"], ["c"]), node("If", ["c"], ["y"], then_branch=then, else_branch=other)],
        [info("x", F, ["N", 8]), info("sr", I, [])],
        [info("y", F, None)],
        [const("rate", 16000, np.int64), const("two", 2.0)],
    )
    assert {int(s.feeds["sr"]) for s in good(data).samples} == {16000, 8000}


def test_strings_keys_sequences_and_defaults():
    upper = helper.make_node("StringNormalizer", ["s"], ["y"], case_change_action="UPPER", locale="C", name="n")
    assert good(model([upper], [info("s", S, ["N"])], [info("y", S, None)])).samples[0].feeds["s"].dtype == object
    encode = helper.make_node(
        "LabelEncoder", ["s"], ["y"], domain="ai.onnx.ml", keys_strings=["red", "green"], values_floats=[1.0, 2.0], name="n"
    )
    result = good(model([encode], [info("s", S, ["N"])], [info("y", F, None)], domains={"ai.onnx.ml": 2}))
    assert {w for s in result.samples for w in s.feeds["s"]} <= {"red", "green"}
    sequence = helper.make_tensor_sequence_value_info("xs", F, ["N", 4])
    result = good(model([node("ConcatFromSequence", ["xs"], ["y"], axis=0)], [sequence], [info("y", F, None)]))
    assert isinstance(result.samples[0].feeds["xs"], list)
    default = model(
        [node("Add", ["x", "b"], ["y"])], [info("x", F, ["N", 4]), info("b", F, [4])], [info("y", F, None)], [const("b", [1, 2, 3, 4])]
    )
    assert all(set(s.feeds) == {"x"} for s in good(default).samples)


def test_a_tree_is_fed_around_its_thresholds():
    tree = helper.make_node(
        "TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", name="tree", n_targets=1,
        nodes_treeids=[0, 0, 0], nodes_nodeids=[0, 1, 2], nodes_featureids=[0, 0, 0], nodes_values=[5000.0, 0.0, 0.0],
        nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"], nodes_truenodeids=[1, 0, 0], nodes_falsenodeids=[2, 0, 0],
        target_treeids=[0, 0], target_nodeids=[1, 2], target_ids=[0, 0], target_weights=[1.0, 2.0],
    )  # fmt: skip
    result = good(model([tree], [info("x", F, ["N", 1])], [info("y", F, None)], domains={"ai.onnx.ml": 3}))
    x = np.concatenate([s.feeds["x"].ravel() for s in result.samples])
    assert (x <= 5000).any() and (x > 5000).any()


def test_shapes_that_were_asked_for():
    data = linear(weight(), x=("N", 4))
    assert {s.feeds["x"].shape for s in good(data, shapes={"x": [5, 4]}).samples} == {(5, 4)}
    assert len({s.feeds["x"].shape for s in good(data, shapes={"x": [-1, 4]}).samples}) >= 2
    for shapes, words in (({"z": [1]}, "no input 'z'"), ({"x": [1]}, "2 dimensions"), ({"x": [2, 5]}, "fixed to 4")):
        with pytest.raises(OptionError, match=words):
            made(data, shapes=shapes)


def test_other_statistics_where_the_usual_ones_prove_nothing():
    """Sigmoid of 40 * x - 120 * 40: 0 for anything but large inputs."""
    data = model(
        [node("Mul", ["x", "k"], ["a"]), node("Sub", ["a", "b"], ["c"]), node("Sigmoid", ["c"], ["y"])],
        [info("x", F, ["N", 64])],
        [info("y", F, None)],
        [const("k", 1.0), const("b", 25.0)],
    )
    result = good(data)
    assert result.informative >= 2
    assert any("wide" in s.origin or "pixels" in s.origin for s in result.samples)


def test_samples_that_prove_nothing_are_called_so():
    data = model([node("Mul", ["x", "z"], ["y"])], [info("x", F, ["N", 8])], [info("y", F, None)], [const("z", 0.0)])
    result = made(data)
    assert result.samples and result.informative == 0 and "proves anything" in result.warnings[-1]


def test_failure_is_plain():
    data = model([node("Reshape", ["x", "shape"], ["y"])], [info("x", F, [2, 3])], [info("y", F, None)], [const("shape", [7], np.int64)])
    result = made(data)
    assert not result.samples and "\n" not in result.failure
    assert "--samples" in result.failure and "Reshape" in result.failure
    sparse = onnx.ValueInfoProto(name="x", type=helper.make_sparse_tensor_type_proto(F, [2, 2]))
    graph = graph_of(model([node("Identity", ["x"], ["y"])], [sparse], [info("y", F, None)]))
    refused = synthesize(graph, lambda feeds: pytest.fail("nothing to run"))
    assert "sparse" in refused.failure and "--samples" in refused.failure


def test_the_same_seed_gives_the_same_samples():
    first, second, third = (good(bert_like(), seed=s) for s in (3, 3, 4))
    assert [s.origin for s in first.samples] == [s.origin for s in second.samples]
    for a, b in zip(first.samples, second.samples, strict=True):
        assert all(np.array_equal(a.feeds[k], b.feeds[k]) for k in a.feeds)
    assert any(not np.array_equal(a.feeds[k], b.feeds[k]) for a, b in zip(first.samples, third.samples, strict=True) for k in a.feeds)


def test_a_model_without_inputs():
    data = model(
        [node("RandomNormal", [], ["r"], shape=[2], seed=1.0), node("Add", ["c", "c"], ["y"])],
        [],
        [info("y", F, None)],
        [const("c", [1.0, 2.0])],
    )
    assert made(data).samples[0].feeds == {}


@pytest.mark.parametrize(("ids", "sizes"), [(("batch", "seq"), [1, 128]), (("batch", 16), None)])
def test_a_sample_of_a_usual_size_comes_last(ids, sizes):
    samples = good(lookup([node("Identity", ["ids"], ["i"])], ids=ids)).samples
    assert [s.usual for s in samples[:-1]] == [False] * (len(samples) - 1)
    assert samples[-1].usual == (sizes is not None)
    timing = for_timing(samples)
    assert timing[0].shapes() == {"ids": sizes or [1, 16]} and len(timing) == (2 if sizes else 1)
    if sizes:
        assert timing[1].shapes() == {"ids": [1, 16]}


@pytest.mark.parametrize(("rows", "most"), [(1024, 128), (40, 40), (100, 64)])
def test_the_usual_size_gives_way_to_what_the_model_takes_and_to_what_is_asked_for(rows, most):
    positions = [const("row", weight(rows, 4)), const("axes", [0], np.int64), const("start", [0], np.int64), const("one", [1], np.int64)]
    nodes = [
        node("Shape", ["x"], ["shape"]), node("Slice", ["shape", "one", "two"], ["length"]),
        node("Slice", ["row", "start", "length", "axes"], ["some"]), node("Add", ["x", "some"], ["y"]),
    ]  # fmt: skip
    data = model(nodes, [info("x", F, ["batch", "seq", 4])], [info("y", F, None)], [*positions, const("two", [2], np.int64)])
    assert good(data).samples[-1].shapes() == {"x": [1, most, 4]}  # 40: a number that the error names
    assert not any(s.usual for s in good(data, shapes={"x": [-1, 24, 4]}).samples)


def test_a_slow_model_is_not_run_at_the_usual_size(monkeypatch):
    monkeypatch.setattr(sys.modules[synthesize.__module__], "_QUICK", 0.0)
    assert not any(s.usual for s in good(lookup([node("Identity", ["ids"], ["i"])])).samples)


def test_half_the_usual_size_where_that_takes_long(monkeypatch):
    data = lookup([node("Identity", ["ids"], ["i"])])
    session = runtime.session(data, optimize=False, threads=1)

    def run(feeds):
        if feeds["ids"].shape[1] > 100:
            time.sleep(0.3)
        return runtime.run(session, feeds)

    monkeypatch.setattr(sys.modules[synthesize.__module__], "_LONGEST", 0.25)
    assert synthesize(graph_of(data), run).samples[-1].shapes() == {"ids": [1, 64]}
