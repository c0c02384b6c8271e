"""LSTM, GRU and RNN through the importer, against ONNX Runtime: torch's own operators and the spelled-out steps."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest

from graphopt.errors import InputError
from tests.support import array, model, node

torch = pytest.importorskip("torch")

from tests.importing.against_runtime import check, check_exported, check_gradient, imported  # noqa: E402

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_FEATURES, _HIDDEN = 3, 4


def _recurrent(kind: str, *, direction: str = "forward", given: str = "b", dtype: str = "float32", layout: int = 0, **attributes):
    """`given`: b bias, l lengths, h first states, p peepholes. Weights are initializers; x, lengths and states are inputs."""
    ways, gates = 2 if direction == "bidirectional" else 1, _GATES[kind]
    weights = {
        "w": array(ways, gates * _HIDDEN, _FEATURES, seed=1, dtype=dtype) * 0.5,
        "r": array(ways, gates * _HIDDEN, _HIDDEN, seed=2, dtype=dtype) * 0.5,
        "b": array(ways, 2 * gates * _HIDDEN, seed=3, dtype=dtype),
        "p": array(ways, 3 * _HIDDEN, seed=4, dtype=dtype),
    }
    code = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    state = ["N", ways, _HIDDEN] if layout else [ways, "N", _HIDDEN]
    inputs = {"x": ["N", "T", _FEATURES] if layout else ["T", "N", _FEATURES]}
    names = ["x", "w", "r", "b" if "b" in given else "", "", "", "", ""]
    if "l" in given:
        inputs["l"], names[4] = ["N"], "l"
    if "h" in given:
        inputs["h"], names[5] = state, "h"
        if kind == "LSTM":
            inputs["c"], names[6] = state, "c"
    if "p" in given:
        names[7] = "p"
    while not names[-1]:
        names.pop()
    outputs = ["y", "yh", "yc"] if kind == "LSTM" else ["y", "yh"]
    if layout:
        attributes["layout"] = 1
    made = node(kind, names, outputs, hidden_size=_HIDDEN, direction=direction, **attributes)
    used = {k: v for k, v in weights.items() if k in names}
    types = dict.fromkeys((*inputs, *outputs), code) | {"l": onnx.TensorProto.INT32}
    return model([made], inputs, dict.fromkeys(outputs), used, opset=14, types=types)


def _feed(kind: str, steps: int, batch: int, given: str, ways: int, dtype: str = "float32", layout: int = 0) -> dict[str, np.ndarray]:
    x = array(steps, batch, _FEATURES, seed=steps, dtype=dtype)
    feed = {"x": x}
    if "l" in given:
        feed["l"] = np.array([1 + (i * 2) % steps for i in range(batch)], np.int32)
    if "h" in given:
        feed["h"] = array(ways, batch, _HIDDEN, seed=7, dtype=dtype)
        if kind == "LSTM":
            feed["c"] = array(ways, batch, _HIDDEN, seed=8, dtype=dtype)
    return {n: v.swapaxes(0, 1).copy() if layout and v.ndim == 3 else v for n, v in feed.items()}


@pytest.mark.parametrize("given", ["", "b", "bh", "bl", "blh"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_directions_states_and_lengths(kind: str, direction: str, given: str) -> None:
    ways = 2 if direction == "bidirectional" else 1
    more = [{"linear_before_reset": 0}, {"linear_before_reset": 1}] if kind == "GRU" else [{}]
    for attributes in more:
        proto = _recurrent(kind, direction=direction, given=given, **attributes)
        check(proto, *(_feed(kind, steps, batch, given, ways) for steps, batch in ((5, 2), (3, 1), (7, 3))))


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_batch_first_is_the_other_layout_turned(kind: str) -> None:
    """ONNX Runtime has no batch-first layout on CPU: the answer is that of the other layout, its axes moved."""
    given, direction = "bh", "bidirectional"
    turned = imported(_recurrent(kind, direction=direction, given=given, layout=1))
    plain = imported(_recurrent(kind, direction=direction, given=given))
    feed = {n: torch.from_numpy(v) for n, v in _feed(kind, 5, 2, given, 2).items()}
    want_y, *want_last = plain(*feed.values())
    y, *last = turned(*(v.transpose(0, 1) for v in feed.values()))
    torch.testing.assert_close(y, want_y.permute(2, 0, 1, 3))
    for got, want in zip(last, want_last, strict=True):
        torch.testing.assert_close(got, want.transpose(0, 1))


@pytest.mark.parametrize("given", ["bp", "bph", "blp"])
def test_peepholes(given: str) -> None:
    check(_recurrent("LSTM", given=given), _feed("LSTM", 4, 2, given, 1))


def test_input_forget_and_clip() -> None:
    check(_recurrent("LSTM", input_forget=1), _feed("LSTM", 4, 2, "b", 1))
    for kind in _GATES:
        check(_recurrent(kind, clip=0.5), _feed(kind, 4, 2, "b", 1))


_ALPHA = {
    "Affine": (0.7, 0.2),
    "LeakyRelu": (0.3,),
    "ThresholdedRelu": (0.4,),
    "ScaledTanh": (0.9, 0.8),
    "HardSigmoid": (0.25, 0.4),
    "Elu": (0.6,),
}


@pytest.mark.parametrize(
    "name", ["Relu", "Tanh", "Sigmoid", "Affine", "LeakyRelu", "ScaledTanh", "HardSigmoid", "Elu", "Softsign", "Softplus"]
)
def test_activations_of_a_plain_network(name: str) -> None:
    parameters = _ALPHA.get(name, ())
    attributes = {}
    if parameters:
        attributes["activation_alpha"] = [parameters[0]]
    if len(parameters) > 1:
        attributes["activation_beta"] = [parameters[1]]
    check(_recurrent("RNN", activations=[name], **attributes), _feed("RNN", 4, 2, "b", 1))


def test_activations_of_both_directions_differ() -> None:
    proto = _recurrent("GRU", direction="bidirectional", activations=["Sigmoid", "Tanh", "HardSigmoid", "Relu"])
    check(proto, _feed("GRU", 4, 2, "b", 2))


@pytest.mark.parametrize(("kind", "given"), list(itertools.product(["LSTM", "GRU", "RNN"], ["b", "bl"])))
def test_gradients_flow(kind: str, given: str) -> None:
    proto = _recurrent(kind, given=given, dtype="float64")
    check_gradient(proto, *_feed(kind, 3, 2, given, 1, dtype="float64").values())


def test_exported_with_a_dynamic_batch() -> None:
    proto = _recurrent("LSTM", direction="bidirectional")
    feed, other = _feed("LSTM", 5, 2, "b", 2), _feed("LSTM", 5, 4, "b", 2)
    check_exported(proto, feed, ({1: torch.export.Dim("n", min=2, max=16)},), other)


def test_unknown_activation_is_refused() -> None:
    proto = _recurrent("RNN", activations=["Tanh"])
    (given,) = (a for a in proto.graph.node[0].attribute if a.name == "activations")
    given.strings[:] = [b"Swish"]
    with pytest.raises(InputError, match="its activation 'Swish' is not known"):
        imported(proto)
