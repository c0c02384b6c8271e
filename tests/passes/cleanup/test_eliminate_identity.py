"""Identity elimination: names of outputs stay, whatever stands behind them."""

from tests.support import array, assert_same, model, node, ops, reasons, run_pass


def test_inner_identities_go() -> None:
    before = model(
        [node("Identity", ["x"], ["a"]), node("Relu", ["a"], ["b"]), node("Identity", ["b"], ["c"]), node("Neg", ["c"], ["y"])],
        {"x": [2, 3]}, ["y"],
    )
    after, log = run_pass(before, "eliminate-identity")
    assert ops(after) == {"Relu": 1, "Neg": 1}
    assert log.applied == 2
    assert_same(before, after, {"x": array(2, 3)}, exact=True)


def test_graph_output_keeps_its_name() -> None:
    before = model([node("Relu", ["x"], ["a"]), node("Identity", ["a"], ["y"]), node("Neg", ["a"], ["z"])], {"x": [2, 3]}, ["y", "z"])
    after, _ = run_pass(before, "eliminate-identity")
    assert ops(after) == {"Relu": 1, "Neg": 1}
    assert_same(before, after, {"x": array(2, 3)}, exact=True)


def test_identity_of_an_input_to_an_output_stays() -> None:
    before = model([node("Identity", ["x"], ["y"])], {"x": [2, 3]}, ["y"])
    after, log = run_pass(before, "eliminate-identity")
    assert ops(after) == {"Identity": 1}
    assert "graph output" in reasons(log)[0]


def test_two_outputs_of_one_value_keep_one_identity() -> None:
    before = model([node("Relu", ["x"], ["a"]), node("Identity", ["a"], ["y"]), node("Identity", ["a"], ["z"])], {"x": [2]}, ["y", "z"])
    after, _ = run_pass(before, "eliminate-identity")
    assert ops(after) == {"Relu": 1, "Identity": 1}
    assert_same(before, after, {"x": array(2)}, exact=True)
