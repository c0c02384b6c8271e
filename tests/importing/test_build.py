"""The core of the importer: names, parameters, literals, subgraphs, what is refused."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.errors import InputError

torch = pytest.importorskip("torch")

from graphopt.importing import to_torch  # noqa: E402


def imported(text: str):
    return to_torch(ir.from_onnx_text(text))


def test_shape_arithmetic_becomes_arithmetic_on_sizes():
    module = imported("""<ir_version: 8, opset_import: ["" : 17]>
graph (float[n, 4, 6] x) => (float[n, 24] y)
<int64[2] target = {0, -1}>
{ y = Reshape(x, target) }""")
    n = torch.export.Dim("n")
    program = torch.export.export(module, (torch.randn(3, 4, 6),), dynamic_shapes=({0: n},))
    assert program.module()(torch.randn(7, 4, 6)).shape == (7, 24)


@pytest.mark.parametrize(
    "names, expected",
    [
        (["layers.0.weight", "layers.0.bias"], ["layers.0.weight", "layers.0.bias"]),
        (["a", "a.b"], ["a", "a_b"]),
        (["a.b", "a"], ["a.b", "a_1"]),
        (["conv/kernel:0", "conv_kernel_0"], ["conv_kernel_0", "conv_kernel_0_1"]),
        (["forward", "1x", "class"], ["forward_1", "_1x", "class_"]),
    ],
)
def test_names_are_kept_where_they_are_legal(names, expected):
    from graphopt.importing.weights import Names

    book = Names()
    assert [book.take(name) for name in names] == expected


def test_every_unsupported_operator_is_listed():
    with pytest.raises(InputError) as caught:
        imported("""<ir_version: 8, opset_import: ["" : 17, "custom.domain" : 2]>
graph (float[n, 4] x) => (float[n, 4] y)
{ a = custom.domain.Strange(x)
  b = Relu(a)
  y = custom.domain.Other(b) }""")
    message = str(caught.value)
    assert "2 nodes" in message and "Strange of custom.domain version 2" in message and "Other of" in message and "\n" not in message


def test_functions_are_inlined():
    module = imported("""<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
graph (float[n] x) => (float[n] y)
{ y = local.twice(x) }
<domain: "local", opset_import: ["" : 17]>
twice (a) => (c)
{ b = Relu(a)
  c = LeakyRelu <alpha = 0.5> (b) }""")
    x = np.array([-1, 2], np.float32)
    assert module(torch.from_numpy(x)).tolist() == [0, 2]
