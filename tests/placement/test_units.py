"""Which nodes and values belong to which application, narrowed and held back."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
from onnx import TensorProto, helper

from graphopt.pipeline.presets import Pipeline
from graphopt.pipeline.runner import Hold
from graphopt.placement.units import View, lay_out, narrowing, place_in, results_of
from tests.placement.nets import SHAPE, Bench, mixed
from tests.support import REGISTRY, array, model, node


def outputs(layout, number: int) -> list[str]:
    return [layout.view.output(p) for p in layout.nodes[number]]


def test_units_and_values_of_a_narrowed_candidate(tmp_path: Path) -> None:
    candidate = Bench(mixed(), tmp_path).build()
    applications = narrowing(candidate, ["quantize-static"])
    layout = lay_out(candidate, applications)
    by_label = {a.label: n for n, a in applications.items()}
    assert sorted(by_label) == ["a", "b", "c", "g", "lone", "s", "two"]
    assert layout.narrow == frozenset(applications)
    found = {v.name: (v.producer, v.readers, len(v.in_float)) for v in layout.values.values()}
    n = by_label
    assert found == {
        "x": (None, (n["lone"],), 0), "lone": (n["lone"], (), 1), "e0": (None, (n["two"],), 0), "two": (n["two"], (), 1),
        "e1": (None, (n["a"],), 0), "ra": (n["a"], (n["b"], n["s"]), 0), "b": (n["b"], (n["s"],), 0), "s": (n["s"], (n["c"],), 0),
        "c": (n["c"], (), 1), "m": (None, (n["g"],), 0),
    }  # fmt: skip
    assert results_of(layout) == {n["lone"]: "lone", n["two"]: "two", n["a"]: "ra", n["b"]: "b", n["s"]: "s", n["c"]: "c", n["g"]: "g"}
    assert all(layout.view.nodes[p].op_type not in ("QuantizeLinear", "DequantizeLinear") for p in layout.unit_of)


def test_what_is_held_back_is_found_with_the_relu_behind_it(tmp_path: Path) -> None:
    bench = Bench(mixed(), tmp_path)
    full = bench.build()
    applications = narrowing(full, ["quantize-static"])
    results = results_of(lay_out(full, applications))
    number = {a.label: n for n, a in applications.items()}
    held = frozenset({number["a"], number["s"]})
    layout = lay_out(bench.build(Hold(applications=held)), applications, results)
    assert layout.narrow == applications.keys() - held
    assert outputs(layout, number["a"]) == ["a", "ra"]
    assert outputs(layout, number["s"]) == ["s"]
    assert layout.values["ra"].producer == number["a"]
    assert layout.values["ra"].readers == (number["b"],)
    assert layout.values["b"].in_float == tuple(layout.nodes[number["s"]])
    plain = lay_out(bench.build(Hold(passes=frozenset({"quantize-static"}))), applications, results)
    assert plain.narrow == frozenset() and not plain.values
    assert {outputs(plain, n)[-1] for n in applications} == set(results.values())


def test_a_result_that_is_an_output_of_the_graph_is_read_in_float(tmp_path: Path) -> None:
    proto = mixed()
    proto.graph.output.append(helper.make_tensor_value_info("ra", TensorProto.FLOAT, SHAPE))
    candidate = Bench(proto, tmp_path).build()
    layout = lay_out(candidate, narrowing(candidate, ["quantize-static"]))
    assert layout.values["ra"].in_float == (-1,)


def test_what_is_rounded_when_it_comes_is_shared(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w0"], ["a"]), node("MatMul", ["x", "w1"], ["b"]), node("Add", ["a", "b"], ["y"])]
    proto = model(nodes, {"x": SHAPE}, {"y": None}, {f"w{i}": array(12, 12, seed=i) for i in range(2)})
    bench = Bench(proto, tmp_path)
    bench.pipeline = Pipeline.of("test", [REGISTRY.get("quantize-dynamic").configure({"min-elements": 1})])
    candidate = bench.build()
    layout = lay_out(candidate, narrowing(candidate, ["quantize-dynamic"]))
    (value,) = layout.values.values()
    assert (value.name, value.producer, value.readers, value.in_float) == ("x as it comes", None, (0, 1), ())
    assert [layout.view.nodes[p].op_type for p in value.pair] == ["DynamicQuantizeLinear"]
    assert not value.pair & layout.unit_of.keys()


def test_names_lead_back_to_places(tmp_path: Path) -> None:
    candidate = Bench(mixed(), tmp_path).build()
    view = View(candidate.model.graph)
    before = [n.name for n in view.nodes]
    with view.numbered():
        names = [n.name for n in view.nodes]
    assert [n.name for n in view.nodes] == before
    assert [place_in(name) for name in names] == list(range(len(names)))
    assert place_in(f"{names[3]}_token_12") == place_in(f"{names[3]}/duplicated") == 3
    assert place_in("other.node.3") is place_in("graphopt.node.x") is None


def test_captures_of_subgraphs_are_readers() -> None:
    n, o = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "no")
    inner = helper.make_graph([node("Neg", ["v"], ["n"])], "then", [], [n])
    other = helper.make_graph([node("Exp", ["x"], ["n2"]), node("Abs", ["n2"], ["o"])], "else", [], [o])
    proto = model(
        [node("Abs", ["x"], ["v"]), helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=other)],
        {"x": [2], "c": []}, {"y": [2]}, types={"c": TensorProto.BOOL},
    )  # fmt: skip
    view = View(ir.from_proto(proto))
    assert view.readers["v"] == [1]
    assert view.readers["x"] == [0, 1]
    assert "n2" not in view.readers
