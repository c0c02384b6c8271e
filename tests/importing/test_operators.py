"""Operators whose meaning in ONNX is not torch's, against ONNX Runtime with its optimizations off."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch")

from graphopt import runtime  # noqa: E402
from graphopt.errors import InputError  # noqa: E402
from graphopt.importing import to_torch  # noqa: E402


def check(text: str, *arrays: np.ndarray, rtol: float = 1e-5) -> torch.fx.GraphModule:
    """Imports a model, compares what it answers with ONNX Runtime, and returns the module."""
    model = ir.from_onnx_text(text)
    module = to_torch(model)
    proto = ir.to_proto(model)
    assert isinstance(proto, onnx.ModelProto)
    names = module.meta["onnx"]
    expected = runtime.run(runtime.session(proto.SerializeToString(), optimize=False), dict(zip(names["inputs"], arrays, strict=True)))
    with torch.no_grad():
        found = module(*(torch.from_numpy(a.copy()) for a in arrays))
    for name, value in zip(names["outputs"], found if isinstance(found, tuple) else (found,), strict=True):
        assert value.numpy().dtype == expected[name].dtype
        np.testing.assert_allclose(value.numpy(), expected[name], rtol=rtol, atol=1e-6)
    return module


def graph(body: str, x: str = "float[n, 4, 6]", y: str = "float[a, b, c]", opset: int = 17, extra: str = "") -> str:
    return f'<ir_version: 8, opset_import: ["" : {opset}]>\ngraph ({x} x) => ({y} y)\n{extra}\n{{ {body} }}'


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@pytest.mark.parametrize("body", ["y = Div(x, d)", "y = Mod(x, d)", "y = Mod <fmod = 1> (x, d)"])
def test_integer_division_goes_towards_zero_and_remainders_have_their_sign(body: str) -> None:
    check(graph(body, "int64[n]", "int64[n]", extra="<int64[6] d = {2, -2, 2, -2, 3, 3}>"), ints(7, 7, -7, -7, -1, 5))


@pytest.mark.parametrize(
    "starts, ends, axes, steps",
    [("-1", "-100", "1", "-1"), ("3", "0", "1", "-2"), ("-100", "100", "1", "1"), ("10", "-100", "1", "-1"), ("2", "2", "1", "1"),
     ("-3", "9223372036854775807", "2", "2"), ("-2", "-5", "2", "-1")],
)  # fmt: skip
def test_slices_clamp_and_walk_backwards(starts: str, ends: str, axes: str, steps: str) -> None:
    numbers = ", ".join(f"int64[1] {name} = {{{value}}}" for name, value in (("s", starts), ("e", ends), ("a", axes), ("t", steps)))
    module = check(graph("y = Slice(x, s, e, a, t)", extra=f"<{numbers}>"), floats(2, 4, 6))
    program = torch.export.export(module, (torch.ones(3, 4, 6),), dynamic_shapes=({0: torch.export.Dim("n")},))
    assert program.module()(torch.ones(5, 4, 6)).shape == module(torch.ones(5, 4, 6)).shape


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
@pytest.mark.parametrize("pads", ["0, 1, 2, 0, 2, 1", "0, -1, 2, 0, 2, -2"])
def test_padding(mode: str, pads: str) -> None:
    if "-" in pads and mode in ("reflect", "wrap"):
        pytest.skip("ONNX Runtime answers this with values from outside of the tensor")
    check(graph(f'y = Pad <mode = "{mode}"> (x, p)', opset=19, extra=f"<int64[6] p = {{{pads}}}>"), floats(2, 4, 6))


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("size", [7, 8])
def test_convolutions_pad_one_side_more(auto_pad: str, size: int) -> None:
    body = f'y = Conv <auto_pad = "{auto_pad}", strides = [2, 1]> (x, w)'
    text = graph(body, "float[n, 2, h, v]", "float[n, 3, p, q]").replace(" x)", " x, float[3, 2, 2, 3] w)")
    check(text, floats(2, 2, size, size), floats(3, 2, 2, 3, seed=1))


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("attributes", [
    "kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1",
    "kernel_shape = [3, 2], pads = [0, 0, 1, 1]",
    "kernel_shape = [2, 2], pads = [1, 0, 0, 1], strides = [2, 2], ceil_mode = 1",
    'kernel_shape = [3, 3], auto_pad = "SAME_LOWER", strides = [2, 2]',
])  # fmt: skip
def test_pools(kind: str, attributes: str) -> None:
    check(graph(f"y = {kind} <{attributes}> (x)", "float[n, 3, h, w]", "float[n, 3, p, q]"), floats(2, 3, 8, 7))
    if kind == "AveragePool" and "ceil_mode" not in attributes:
        check(graph(f"y = {kind} <{attributes}, count_include_pad = 1> (x)", "float[n, 3, h, w]", "float[n, 3, p, q]"), floats(2, 3, 8, 7))


def test_indices_of_a_pool_count_over_the_whole_tensor() -> None:
    check(
        """<ir_version: 8, opset_import: ["" : 17]>
graph (float[n, 2, 6, 6] x) => (float[n, 2, 3, 3] y, int64[n, 2, 3, 3] at)
{ y, at = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 0, 0]> (x) }""",
        floats(2, 2, 6, 6),
    )


def test_softmax_before_version_13_is_over_all_further_axes() -> None:
    check(graph("y = Softmax <axis = 1> (x)", opset=11), floats(2, 4, 6))


def test_rounding_and_bounds() -> None:
    x = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], np.float32)
    check(graph("y = Round(x)", "float[n]", "float[n]"), x)
    check(graph("y = Clip(x, low, high)", "float[n]", "float[n]", extra="<float low = {1.0}, float high = {-1.0}>"), x)
    check(graph("y = Clip(x, low)", "float[n]", "float[n]", extra="<float low = {1.0}>"), np.array([np.nan, 0, 2], np.float32))


def test_paddings_computed_as_exporters_of_old_do_stay_symbolic() -> None:
    """The pads of torch's old exporter: concatenated, turned around in pairs, flattened, and only then a constant."""
    module = check(graph("""c = ConstantOfShape <value = int64[1] {0}> (two)
  p = Concat <axis = 0> (own, c)
  r = Reshape(p, pairs)
  b = Slice(r, minus, least, zero, minus)
  t = Transpose <perm = [1, 0]> (b)
  f = Reshape(t, minus)
  g = Cast <to = 7> (f)
  y = Pad(x, g)""", extra="<int64[1] two = {2}, int64[4] own = {1, 2, 3, 1}, int64[2] pairs = {-1, 2}, int64[1] minus = {-1},"
                          " int64[1] least = {-9223372036854775807}, int64[1] zero = {0}>"), floats(2, 4, 6))  # fmt: skip
    assert [n.target.__name__ for n in module.graph.nodes if n.op == "call_function"] == ["pad", "result"]  # the rest is done at once


def test_sizes_stay_symbolic_through_arithmetic_on_floats() -> None:
    """floor(size * 2.0) as the old exporter computes the sizes of a Resize."""
    module = check(graph("""s = Shape(x)
  last = Gather(s, two)
  f = Cast <to = 1> (last)
  g = Mul(f, factor)
  h = Floor(g)
  i = Cast <to = 7> (h)
  j = Unsqueeze(i, zero)
  k = Concat <axis = 0> (front, j)
  z = Expand(one, k)
  y = Concat <axis = 2> (x, z)""", "float[1, 4, n]", "float[1, 4, m]",
        extra="<int64 two = {2}, float factor = {2.0}, int64[1] zero = {0}, int64[2] front = {1, 4}, float one = {1.0}>"),
        floats(1, 4, 6))  # fmt: skip
    program = torch.export.export(module, (torch.ones(1, 4, 6),), dynamic_shapes=({2: torch.export.Dim("n")},))
    assert program.module()(torch.ones(1, 4, 5)).shape == (1, 4, 15)


def test_strings_are_refused_with_a_reason() -> None:
    with pytest.raises(InputError, match="input 'x' holds strings"):
        to_torch(ir.from_onnx_text(graph("y = Identity(x)", "string[n]", "string[n]")))
    with pytest.raises(InputError, match=r"node 'y': Cast of ai\.onnx version 17: torch has no data type for string"):
        to_torch(ir.from_onnx_text(graph("y = Cast <to = 8> (x)", "float[n]", "string[n]")))
