"""Rounding by what outputs lose: the best of all choices where these can be tried, moments of patches, what packing takes."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphopt.passes.quantization.rounding import choose, damped, output_error

from graphopt.calibration import Calibration
from graphopt.calibration.rows import row_moments
from graphopt.measurement import Target
from graphopt.rewriting import ChangeLog, Context
from graphopt.rewriting.context import Tools
from graphopt.rewriting.rows import Rows
from tests.passes.quantization.test_quantize_static import DEFAULT_ISA, constants, data, product
from tests.support import REGISTRY, array, drop_inferred, model, node, reasons, session

NAME = "round-adaptively"


def run(proto: onnx.ModelProto, samples, *steps: str, allow=None, calibration=None, **options) -> tuple[onnx.ModelProto, ChangeLog]:
    graph = ir.from_proto(onnx.ModelProto.FromString(proto.SerializeToString()))
    tools = Tools(calibration or Calibration.open(samples, graph), Target("cpu", "test", 1, DEFAULT_ISA))
    first, context = None, None
    for name in steps or (NAME, "quantize-static"):
        log = ChangeLog(name, allow if name == NAME else None)
        first = first or log
        context = Context(graph, log, context, tools)
        REGISTRY.get(name).configure(options if name == NAME else {}).run(context)
    drop_inferred(graph)
    made = ir.to_proto(graph)
    onnx.checker.check_model(made)
    assert first is not None
    return made, first


def layer(inputs: int, rows: int = 3, groups: int = 1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Weights in units of their scale, and a second moment of inputs that have a mean and depend on each other."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((groups, 60, inputs)) + random.standard_normal((groups, 1, inputs))
    x += 2 * random.standard_normal((groups, 60, 1))
    return random.uniform(-9, 9, (groups, rows, inputs)), x.transpose(0, 2, 1) @ x / 60


def brute_force(units: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """The least error of each row over all ways to round up or down, [G, N]."""
    best = np.full(units.shape[:2], np.inf)
    for ups in itertools.product((0, 1), repeat=units.shape[2]):
        best = np.minimum(best, output_error(np.floor(units) + np.array(ups) - units, moment))
    return best


@pytest.mark.parametrize("inputs", [1, 4, 9])
def test_the_best_of_all_choices(inputs: int) -> None:
    units, moment = layer(inputs, groups=2, seed=inputs)
    found = choose(units, moment, -127, 127)
    assert (np.abs(found - units) < 1).all()
    np.testing.assert_allclose(output_error(found - units, damped(moment)), brute_force(units, damped(moment)), rtol=1e-9)


def test_close_to_the_best_where_not_all_can_be_tried() -> None:
    ratios, nearest = [], []
    for seed in range(4):
        units, moment = layer(13, rows=4, seed=seed)
        exact, whole = brute_force(units, damped(moment)), damped(moment)
        ratios += list((output_error(choose(units, moment, -127, 127) - units, whole) / exact).ravel())
        nearest += list((output_error(np.rint(units) - units, whole) / exact).ravel())
    assert np.mean(ratios) < 1.25
    assert np.mean(nearest) > 3 * np.mean(ratios)
    assert (np.array(ratios) <= np.array(nearest) + 1e-9).all()


def test_integers_stay_in_their_range() -> None:
    units, moment = layer(12)
    units[0, 0, :4] = [127.0, -127.0, 126.9999999, 127.0000001]
    found = choose(units, moment, -127, 127)
    assert np.abs(found).max() <= 127
    assert found[0, 0, 0] == 127 and found[0, 0, 1] == -127
    assert choose(np.zeros((1, 2, 3)), np.zeros((1, 3, 3)), -127, 127).tolist() == np.zeros((1, 2, 3)).tolist()


@pytest.mark.parametrize(
    ("before", "shape"),
    [
        (product("Conv"), (1, 4, 6, 6)), (product("Conv", pads=[1, 0, 2, 1], strides=[2, 1], dilations=[1, 2]), (1, 4, 6, 6)),
        (model([node("Conv", ["x", "w"], ["p"], group=2, pads=[1, 1])], {"x": [2, 4, 7]}, {"p": None}, {"w": array(6, 2, 3)}), (2, 4, 7)),
        (product("Gemm", transB=1), (5, 4)), (product("MatMul"), (2, 5, 4)),
    ],
    ids=["conv", "conv with steps", "groups", "gemm", "matmul"],
)  # fmt: skip
def test_moments_tell_the_size_of_outputs(before: onnx.ModelProto, shape: tuple[int, ...]) -> None:
    """w E[r r^T] w^T is the mean square of what a product with w gives, by ONNX Runtime."""
    graph = ir.from_proto(before)
    made = next(n for n in graph.graph if n.op_type in ("Conv", "Gemm", "MatMul"))
    weight = made.inputs[1].const_value.numpy()
    rows = Rows.of(made, weight.shape)
    source = Calibration.open(data(*shape), graph).source
    ((_, moment),) = row_moments(graph, [rows], source)
    copy = onnx.ModelProto.FromString(before.SerializeToString())
    del copy.graph.output[:], copy.graph.node[1:]
    copy.graph.output.add(name="p")
    del copy.graph.node[0].input[2:]
    outputs = [session(copy).run(None, sample.feeds)[0].astype(np.float64) for sample in source]
    axis = 1 if made.op_type == "Conv" else -1
    expected = np.mean([np.moveaxis(y, axis, -1).reshape(-1, y.shape[axis]) ** 2 for y in outputs], axis=(0, 1))
    by_output = weight if made.op_type == "Conv" or made.attributes.get_int("transB", 0) else weight.T
    matrix = by_output.reshape(rows.groups, -1, rows.length).astype(np.float64)
    np.testing.assert_allclose(output_error(matrix, moment).reshape(-1), expected, rtol=1e-5)


def test_packing_takes_what_was_chosen() -> None:
    before = product("Conv")
    plain, _ = run(before, data(1, 4, 6, 6), "quantize-static")
    after, log = run(before, data(1, 4, 6, 6, low=1.0))
    assert log.applied == 1
    assert "1 weights rounded for their outputs" in log.notes[0]
    old, new = constants(plain), constants(after)
    np.testing.assert_array_equal(new["w_scale"], old["w_scale"])
    units = constants(before)["w"] / new["w_scale"][:, None, None, None]
    assert (np.abs(new["w_int8"] - units) < 1 + 1e-4).all()
    assert (new["w_int8"] != old["w_int8"]).any()


def test_outputs_lose_less_on_samples_that_were_not_seen() -> None:
    before = product("Conv")
    samples = data(1, 4, 6, 6, count=20, low=1.0)
    plain, rounded = (run(before, samples, *steps)[0] for steps in (["quantize-static"], [NAME, "quantize-static"]))
    x = {"x": array(1, 4, 6, 6, seed=7, low=1.0)}
    want, a, b = (np.log(session(p).run(None, x)[0].astype(np.float64)) for p in (before, plain, rounded))
    assert np.square(b - want).mean() < np.square(a - want).mean()


def test_a_scale_that_a_bias_makes_larger_is_rounded_to_nearest() -> None:
    before = product("Conv")
    for tensor in before.graph.initializer:
        if tensor.name == "b":
            values = np.array([1e9, *[0.1] * 7], np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, "b"))
    plain, _ = run(before, data(1, 4, 6, 6, low=1.0), "quantize-static")
    after, log = run(before, data(1, 4, 6, 6, low=1.0))
    assert log.applied == 1
    np.testing.assert_array_equal(constants(after)["w_int8"][0], constants(plain)["w_int8"][0])
    assert (constants(after)["w_int8"][1:] != constants(plain)["w_int8"][1:]).any()


@pytest.mark.parametrize(
    ("before", "options", "reason"),
    [
        (product("Conv", auto_pad="SAME_UPPER"), {}, "it pads automatically"),
        (product("Gemm", bias=False), {"longest": 3}, "its outputs are sums of 4 products"),
        (model([node("Gemm", ["x", "w"], ["y"], transA=1)], {"x": [4, 5]}, {"y": None}, {"w": array(4, 8)}), {},
         "its first input is transposed"),
        (model([node("MatMul", ["x", "w"], ["p"]), node("MatMul", ["p", "w"], ["y"])], {"x": [5, 4]}, {"y": None}, {"w": array(4, 4)}), {},
         "its weight serves other layers too"),
    ],
)  # fmt: skip
def test_refused(before: onnx.ModelProto, options, reason: str) -> None:
    shape = [d.dim_value for d in before.graph.input[0].type.tensor_type.shape.dim]
    _, log = run(before, data(*shape), NAME, **options)
    assert log.applied == 0
    assert reason in reasons(log)[0]


def test_what_is_not_finite_is_refused() -> None:
    samples = [*data(1, 4, 6, 6), np.full((1, 4, 6, 6), np.nan, np.float32), *data(1, 4, 6, 6)]
    _, log = run(product("Conv"), samples * 3, NAME)
    assert reasons(log) == ["tensor 'x' is not finite on the samples"]


def test_held_back_and_worked_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    before = product("Conv")
    calibration = Calibration.open(data(1, 4, 6, 6, low=1.0), ir.from_proto(before))
    first, _ = run(before, None, calibration=calibration)
    monkeypatch.setattr("graphopt.calibration.service.row_moments", lambda *_, **__: pytest.fail("worked out again"))
    again, _ = run(before, None, calibration=calibration)
    assert first.SerializeToString() == again.SerializeToString()
    held, log = run(before, None, calibration=calibration, allow=lambda number: False)
    assert (log.asked, log.applied) == (1, 0)
    plain, _ = run(before, None, "quantize-static", calibration=calibration)
    np.testing.assert_array_equal(constants(held)["w_int8"], constants(plain)["w_int8"])
