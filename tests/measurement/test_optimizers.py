"""Which of the runtime's optimizers change a model."""

from graphopt.measurement.optimizers import active_optimizers, named

LOG = """2026 [I:onnxruntime:, graph_transformer.cc:15 Apply] GraphTransformer A modified: 0 with status: OK
2026 [I:onnxruntime:, graph_transformer.cc:15 Apply] GraphTransformer B_1 modified: 1 with status: OK
2026 [I:onnxruntime:, graph_transformer.cc:15 Apply] GraphTransformer C modified: 1 with status: OK
2026 [I:onnxruntime:, graph_transformer.cc:15 Apply] GraphTransformer B_1 modified: 1 with status: OK
"""


def test_the_log_tells():
    assert named(LOG) == ("B_1", "C")


def test_of_a_model(make):
    found = active_optimizers(make("a", 2, identities=True), threads=1)
    assert "Level1_RuleBasedTransformer" in found  # it eliminates the Identity nodes
    assert "NchwcTransformer" not in found


def test_where_it_cannot_be_told(make, tmp_path):
    assert active_optimizers(tmp_path / "no.onnx") == ()
    assert active_optimizers(make("a", 1), seconds=0.001) == ()
