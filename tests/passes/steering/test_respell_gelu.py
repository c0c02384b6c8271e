"""A GELU in other spellings becomes the one that the runtime fuses."""

import math
from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from tests.support import array, assert_same, model, node, ops, reasons, run_pass

X = ("n", 5, 8)
WEIGHTS = {
    "root": np.float32(math.sqrt(2)), "inverse": np.float32(math.sqrt(0.5)), "c": np.float32(0.044715),
    "s": np.float32(math.sqrt(2 / math.pi)), "one": np.float32(1), "two": np.float32(2), "three": np.float32(3), "half": np.float32(0.5),
}  # fmt: skip


def made(nodes, outputs=("out",), opset=17, weights=WEIGHTS, **kwargs):
    nodes = [node("LeakyRelu", ["given"], ["x"]), *nodes, node("LeakyRelu", ["y"], ["out"])]  # no fusion of an output itself
    used = {i for n in nodes for i in n.input}
    return model(nodes, {"given": X}, outputs, {k: v for k, v in weights.items() if k in used}, opset=opset, **kwargs)


def runtime_ops(proto, tmp_path):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return ops(onnx.load(tmp_path / "optimized.onnx")) - Counter(LeakyRelu=2)


def outer(curve, how):
    """x (1 + curve) / 2."""
    plus = node("Add", ["one", curve], ["p"])
    return [plus, *{
        "end": [node("Mul", ["x", "p"], ["k"]), node("Mul", ["half", "k"], ["y"])],
        "divided": [node("Mul", ["x", "p"], ["k"]), node("Div", ["k", "two"], ["y"])],
        "x": [node("Mul", ["x", "half"], ["k"]), node("Mul", ["k", "p"], ["y"])],
        "curve": [node("Mul", ["p", "half"], ["k"]), node("Mul", ["x", "k"], ["y"])],
    }[how]]  # fmt: skip


def erf(scaled, how):
    argument = node("Div", ["x", "root"], ["d"]) if scaled == "divided" else node("Mul", ["inverse", "x"], ["d"])
    return [argument, node("Erf", ["d"], ["e"]), *outer("e", how)]


def tanh(cube, how):
    cubes = {
        "pow": [node("Pow", ["x", "three"], ["q"])], "product": [node("Mul", ["x", "x"], ["xx"]), node("Mul", ["x", "xx"], ["q"])],
    }  # fmt: skip
    return [
        *cubes[cube], node("Mul", ["c", "q"], ["m"]), node("Add", ["x", "m"], ["a"]), node("Mul", ["s", "a"], ["b"]),
        node("Tanh", ["b"], ["t"]), *outer("t", how),
    ]  # fmt: skip


FOUND = {("erf", "divided", "end"), ("erf", "divided", "x"), ("tanh", "pow", "x")}
SPELLINGS = [
    (kind, inner, how) for kind, inners in (("erf", ("divided", "scaled")), ("tanh", ("pow", "product"))) for inner in inners
    for how in ("end", "divided", "x", "curve")
]  # fmt: skip


@pytest.mark.parametrize("kind, inner, how", SPELLINGS)
def test_gelu(kind, inner, how, tmp_path) -> None:
    before = made(globals()[kind](inner, how))
    after, log = run_pass(before, "respell-gelu")
    assert log.applied == ((kind, inner, how) not in FOUND), reasons(log)
    assert_same(before, after, {"given": array(2, 5, 8)})
    fused = runtime_ops(after, tmp_path)
    assert fused["Gelu"] + fused["FastGelu"] == 1 and sum(fused.values()) == 1
    assert (sum(runtime_ops(before, tmp_path).values()) == 1) == ((kind, inner, how) in FOUND)
    again, log = run_pass(after, "respell-gelu")
    assert log.applied == 0 and ops(again) == ops(after)


def test_gelu_is_an_operator_from_opset_20_on() -> None:
    after, log = run_pass(made(erf("scaled", "end"), opset=20), "respell-gelu")
    assert log.applied == 0 and not reasons(log)
    assert ops(after)["Erf"] == 1


def test_gelu_whose_inside_is_used_or_of_another_type() -> None:
    _, log = run_pass(made([*erf("scaled", "end"), node("Neg", ["d"], ["z"])], ("out", "z")), "respell-gelu")
    assert log.applied == 0 and "other consumers" in reasons(log)[0]
    double = {k: v.astype("f8") for k, v in WEIGHTS.items()}
    exact = double | {"inverse": np.float64(math.sqrt(0.5))}
    _, log = run_pass(made(erf("scaled", "end"), weights=exact, types={"given": 11, "out": 11}), "respell-gelu")
    assert log.applied == 0 and "float32" in reasons(log)[0]


@pytest.mark.parametrize("constant", [np.float32(0.7), np.float32(0.70711)])
def test_no_gelu(constant) -> None:
    _, log = run_pass(made(erf("scaled", "end"), weights=WEIGHTS | {"inverse": constant}), "respell-gelu")
    assert log.applied == 0 and not reasons(log)
