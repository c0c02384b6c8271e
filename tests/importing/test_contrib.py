"""ONNX Runtime's own operators through the importer, against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from graphopt.errors import InputError
from tests.support import array, model, node, rng

torch = pytest.importorskip("torch")

from tests.importing.against_runtime import check, check_exported, imported  # noqa: E402

_BATCH, _STEPS, _HEADS, _SIZE = 2, 5, 4, 16
_HIDDEN = _HEADS * _SIZE


def _contrib(op_type, inputs, outputs, **attributes):
    made = node(op_type, inputs, outputs, **attributes)
    made.domain = "com.microsoft"
    return made


def _model(nodes, inputs, outputs, initializers=None, **more):
    return model(nodes, inputs, outputs, initializers, opsets={"com.microsoft": 1}, **more)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Relu", []), ("Sigmoid", []), ("Tanh", []), ("LeakyRelu", [0.3]), ("Clip", [-0.5, 0.7]), ("HardSigmoid", [0.3, 0.4]),
        ("HardSwish", []),
    ],
)  # fmt: skip
def test_convolution_with_an_activation(name: str, parameters: list[float]) -> None:
    made = _contrib("FusedConv", ["x", "w", "b"], ["y"], activation=name, pads=[1, 0, 0, 1], strides=[1, 2])
    if parameters:
        made.attribute.append(node("Any", [], ["y"], activation_params=parameters).attribute[0])
    weights = {"w": array(4, 3, 3, 3, seed=1), "b": array(4, seed=2)}
    check(_model([made], {"x": ["N", 3, 6, 7]}, {"y": ["N", 4, "H", "W"]}, weights), {"x": array(2, 3, 6, 7)})


def test_convolution_with_a_sum() -> None:
    made = _contrib("FusedConv", ["x", "w", "b", "z"], ["y"], activation="Relu")
    weights = {"w": array(4, 3, 1, 1, seed=1), "b": array(4, seed=2)}
    feed = {"x": array(2, 3, 6, 7), "z": array(2, 4, 6, 7, seed=3)}
    check(_model([made], {"x": ["N", 3, 6, 7], "z": ["N", 4, 6, 7]}, {"y": ["N", 4, 6, 7]}, weights), feed)


@pytest.mark.parametrize(
    "name", ["Relu", "Sigmoid", "Tanh", "LeakyRelu", "HardSigmoid", "Elu", "Selu", "Softplus", "Softsign", "ThresholdedRelu"]
)
def test_gemm_with_an_activation(name: str) -> None:
    made = _contrib("FusedGemm", ["x", "w", "b"], ["y"], activation=name, alpha=0.7, beta=1.3, transB=1)
    if name in ("LeakyRelu", "HardSigmoid", "Elu", "ThresholdedRelu"):
        made.attribute.append(node("Any", [], ["y"], activation_alpha=0.3).attribute[0])
    if name == "HardSigmoid":
        made.attribute.append(node("Any", [], ["y"], activation_beta=0.4).attribute[0])
    weights = {"w": array(5, 6, seed=1), "b": array(5, seed=2)}
    proto = _model([made], {"x": ["N", 6]}, {"y": ["N", 5]}, weights)
    if name == "Selu":
        for attribute in (
            node("Any", [], ["y"], activation_alpha=1.6732632).attribute[0],
            node("Any", [], ["y"], activation_gamma=1.050701).attribute[0],
        ):
            proto.graph.node[0].attribute.append(attribute)
    check(proto, {"x": array(3, 6)})


@pytest.mark.parametrize("trans", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_product_of_transposed_matrices(trans: tuple[int, int]) -> None:
    made = _contrib("FusedMatMul", ["a", "b"], ["y"], transA=trans[0], transB=trans[1], alpha=0.5)
    a, b = array(2, 3, 4), array(2, 4, 5, seed=1)
    a, b = (x.swapaxes(1, 2).copy() if t else x for x, t in zip((a, b), trans, strict=True))
    check(_model([made], {"a": a.shape, "b": b.shape}, {"y": [2, 3, 5]}), {"a": a, "b": b})


@pytest.mark.parametrize(
    ("name", "bias"), [("Gelu", False), ("BiasGelu", True), ("FastGelu", False), ("FastGelu", True), ("QuickGelu", False)]
)
def test_gelus(name: str, bias: bool) -> None:
    made = _contrib(name, ["x", "b"] if bias else ["x"], ["y"])
    check(_model([made], {"x": ["N", 6]}, {"y": ["N", 6]}, {"b": array(6, seed=1)} if bias else {}), {"x": array(3, 6) * 3}, rtol=2e-5)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", ["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"])
def test_sum_and_normalization(name: str, bias: bool) -> None:
    weights = {"g": array(8, seed=1), "b": array(8, seed=2), "c": array(8, seed=3)}
    names = ["x", "s", "g"] + (["b"] if name == "SkipLayerNormalization" else []) + (["c"] if bias else [])
    made = _contrib(name, names, ["y", "", "", "t"], epsilon=1e-5)
    weights = {n: w for n, w in weights.items() if n in names}
    inputs = {"x": ["N", "S", 8], "s": ["N", "S", 8]}
    proto = _model([made], inputs, {"y": ["N", "S", 8], "t": ["N", "S", 8]}, weights)
    check(proto, {"x": array(2, 3, 8), "s": array(2, 3, 8, seed=5)})
    one = {0: torch.export.Dim("n", min=2), 1: torch.export.Dim("s", min=2)}
    check_exported(
        proto, {"x": array(2, 3, 8), "s": array(2, 3, 8, seed=5)}, (one, one), {"x": array(4, 5, 8), "s": array(4, 5, 8, seed=5)}
    )


def test_embeddings() -> None:
    tables = {"w": array(20, 8, seed=1), "p": array(10, 8, seed=2), "k": array(2, 8, seed=3), "g": array(8, seed=4), "b": array(8, seed=5)}
    types = dict.fromkeys(("ids", "seg", "mask", "m"), TensorProto.INT32)
    made = _contrib("EmbedLayerNormalization", ["ids", "seg", "w", "p", "k", "g", "b", "mask"], ["y", "m"], epsilon=1e-5)
    proto = _model([made], {n: ["N", "S"] for n in ("ids", "seg", "mask")}, {"y": ["N", "S", 8], "m": ["N"]}, tables, types=types)
    draw = rng(0)
    mask = np.array([[1, 1, 1, 0], [1, 1, 0, 0]], np.int32)
    check(proto, {"ids": draw.integers(0, 20, (2, 4), np.int32), "seg": draw.integers(0, 2, (2, 4), np.int32), "mask": mask})


def _heads(name: str, masked: str, past: bool = False, **attributes):
    inputs = {n: ["N", "S", _HIDDEN] for n in ("q", "k", "v")}
    feed = {n: array(_BATCH, _STEPS, _HIDDEN, seed=i) for i, n in enumerate("qkv")}
    names, types = ["q", "k", "v", "bias", "", "", "", ""], {}
    keys = _STEPS + (3 if past else 0)
    if masked == "lengths":
        inputs["m"], feed["m"], types["m"], names[4] = ["N"], np.array([3, 5], np.int32), TensorProto.INT32, "m"
    if masked == "keys":
        keep = np.ones((_BATCH, keys), np.int32)
        keep[0, 2:4] = 0
        inputs["m"], feed["m"], types["m"], names[4] = ["N", "K"], keep, TensorProto.INT32, "m"
    if masked == "bias":
        inputs["a"], feed["a"], names[5] = [1, _HEADS, "S", "K"], array(1, _HEADS, _STEPS, keys, seed=9), "a"
    outputs = {"y": ["N", "S", _HIDDEN]}
    if past:
        for n, seed in (("pk", 11), ("pv", 12)):
            inputs[n], feed[n] = ["N", _HEADS, "P", _SIZE], array(_BATCH, _HEADS, 3, _SIZE, seed=seed)
        names[6:8] = ["pk", "pv"]
        outputs |= {"ok": ["N", _HEADS, "K", _SIZE], "ov": ["N", _HEADS, "K", _SIZE]}
    while not names[-1]:
        names.pop()
    made = _contrib(name, names, list(outputs), num_heads=_HEADS, **attributes)
    return _model([made], inputs, outputs, {"bias": array(3 * _HIDDEN, seed=8)}, types=types), feed


@pytest.mark.parametrize("masked", ["", "lengths", "keys", "bias"])
@pytest.mark.parametrize("causal", [0, 1])
def test_attention_of_many_heads(masked: str, causal: int) -> None:
    proto, feed = _heads("MultiHeadAttention", masked, unidirectional=causal)
    check(proto, feed)


def test_attention_behind_earlier_keys() -> None:
    for masked in ("", "bias"):
        proto, feed = _heads("MultiHeadAttention", masked, past=True)
        check(proto, feed)


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_with_its_projections(causal: int, masked: bool) -> None:
    weights = {"w": array(12, 3 * _HIDDEN, seed=1) * 0.3, "b": array(3 * _HIDDEN, seed=2)}
    names = ["x", "w", "b"] + (["m"] if masked else [])
    made = _contrib("Attention", names, ["y"], num_heads=_HEADS, unidirectional=causal)
    inputs = {"x": ["N", "S", 12]} | ({"m": ["N", "S"]} if masked else {})
    proto = _model([made], inputs, {"y": ["N", "S", _HIDDEN]}, weights, types={"m": TensorProto.INT32})
    feed = {"x": array(_BATCH, _STEPS, 12)}
    if masked:
        feed["m"] = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32)
    check(proto, feed)


@pytest.mark.parametrize("window", [-1, 3])
@pytest.mark.parametrize("rotary", [0, 1])
def test_attention_with_shared_heads(rotary: int, window: int) -> None:
    groups = 2
    names = ["q", "k", "v", "", "", "last", "total"] + (["cos", "sin"] if rotary else [])
    angles = array(16, _SIZE // 2, seed=4)
    constants = {"last": np.full(_BATCH, _STEPS - 1, np.int32), "total": np.array(_STEPS, np.int32)}
    if rotary:
        constants |= {"cos": np.cos(angles), "sin": np.sin(angles)}
    made = _contrib(
        "GroupQueryAttention", names, ["y", "pk", "pv"], num_heads=_HEADS, kv_num_heads=groups, do_rotary=rotary, local_window_size=window
    )
    inputs = {"q": ["N", "S", _HIDDEN], "k": ["N", "S", groups * _SIZE], "v": ["N", "S", groups * _SIZE]}
    present = ["N", groups, "S", _SIZE]
    proto = _model([made], inputs, {"y": ["N", "S", _HIDDEN], "pk": present, "pv": present}, constants)
    feed = {n: array(_BATCH, _STEPS, s[2], seed=i) for i, (n, s) in enumerate(inputs.items())}
    check(proto, feed)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("positions", [np.array([2]), np.array([[0, 1, 2, 3, 4], [3, 4, 5, 6, 7]])], ids=["first", "each"])
def test_rotary_positions(positions: np.ndarray, interleaved: int) -> None:
    angles = array(16, _SIZE // 2, seed=4)
    made = _contrib("RotaryEmbedding", ["x", "p", "cos", "sin"], ["y"], interleaved=interleaved)
    constants = {"p": positions.astype(np.int64), "cos": np.cos(angles), "sin": np.sin(angles)}
    for shape in ([_BATCH, _STEPS, _HIDDEN], [_BATCH, _HEADS, _STEPS, _SIZE]):
        check(_model([made], {"x": shape}, {"y": shape}, constants), {"x": array(*shape)})


@pytest.mark.parametrize("bias", [False, True])
def test_products_with_weights_of_integers(bias: bool) -> None:
    b = rng(1).integers(-128, 127, (16, 6), np.int8)
    constants = {"b": b, "s": array(6, low=0.01, seed=2), "z": np.zeros(6, np.int8)} | ({"c": array(6, seed=3)} if bias else {})
    made = _contrib("DynamicQuantizeMatMul", ["x", *constants], ["y"])
    check(_model([made], {"x": ["N", 16]}, {"y": ["N", 6]}, constants), {"x": array(5, 16)})


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("block", [16, 32])
def test_weights_of_four_bits(block: int, zeros: bool) -> None:
    inner, columns = 64, 6
    blocks = inner // block
    draw = rng(3)
    constants = {"b": draw.integers(0, 256, (columns, blocks, block // 2), np.uint8), "s": array(columns * blocks, low=0.01, seed=2)}
    if zeros:
        constants["z"] = draw.integers(0, 256, columns * ((blocks + 1) // 2), np.uint8)
    made = _contrib("MatMulNBits", ["x", *constants], ["y"], K=inner, N=columns, bits=4, block_size=block)
    check(_model([made], {"x": ["N", inner]}, {"y": ["N", columns]}, constants), {"x": array(5, inner)})


def test_what_is_not_imported_says_so() -> None:
    made = _contrib("FusedMatMul", ["a", "b"], ["y"], transBatchA=1)
    with pytest.raises(InputError, match="a batch that is moved"):
        imported(_model([made], {"a": [3, 2, 4], "b": [2, 4, 5]}, {"y": [2, 3, 5]}))
