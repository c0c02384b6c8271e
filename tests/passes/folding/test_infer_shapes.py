"""The pass that infers shapes: it notes wrong declarations and changes nothing."""

from onnx import TensorProto, helper

from tests.support import model, node, ops, run_pass


def test_counts_and_contradictions() -> None:
    wrong = helper.make_tensor_value_info("r", TensorProto.FLOAT, [2, 7])
    before = model([node("Relu", ["x"], ["r"]), node("Neg", ["r"], ["y"])], {"x": ["n", 3]}, {"y": ["n", 3]})
    before.graph.value_info.append(wrong)
    after, log = run_pass(before, "infer-shapes")
    assert ops(after) == ops(before)
    assert log.applied == 0
    assert log.notes[0] == "shapes: 0 static, 2 with symbolic dimensions, 0 unknown"
    assert "'r' (of Relu) is declared as [2,7] but is [n,3]" in log.notes[1]
    assert after.graph.value_info == before.graph.value_info


def test_the_rank_of_a_wrong_declaration_is_not_used() -> None:
    before = model([node("Relu", ["x"], ["r"]), node("Shape", ["r"], ["y"])], {"x": [2, 3]}, {"y": [2]}, types={"y": TensorProto.INT64})
    before.graph.value_info.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, [6]))
    _, log = run_pass(before, "infer-shapes")
    assert "is declared as [6] but is [2,3]" in log.notes[1]
