"""PRelu in the form that its slopes allow."""

import numpy as np
import pytest

from tests.passes.fusion.expressions import Expression, fused, refused
from tests.support import array, assert_same

NAME = "spell-out-prelu"
X = (2, 4, 3, 5)
SPECIAL = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 1e38, -1e38, 1e-40], "f4")


def prelu(slope, *, opset: int = 17, dtype: str = "float32", **kwargs):
    e = Expression(dtype, opset)
    e.PRelu("x", slope, output="y")
    return e.model({"x": kwargs.pop("x", X)}, ["y"], **kwargs)


def feed() -> dict[str, np.ndarray]:
    x = array(*X)
    x.reshape(-1)[: len(SPECIAL)] = SPECIAL
    return {"x": x}


def column(*values: float) -> np.ndarray:
    return np.asarray(values, "f4").reshape(-1, 1, 1)


@pytest.mark.parametrize(
    ("slope", "expected"),
    [
        (column(0.5, 0.25, -3, 1), {"Mul": 1, "Max": 1}),
        (column(0.25, 0.25, 0.25, 0.25), {"LeakyRelu": 1}),
        (np.float32(0.1), {"LeakyRelu": 1}),
        (np.float32([2.5]), {"LeakyRelu": 1}),
        (-np.abs(array(5)), {"Mul": 1, "Max": 1}),
    ],
)
@pytest.mark.parametrize("x", [X, ("n", 4, "h", 5)])
def test_spelled_out(slope, expected, x) -> None:
    before = prelu(slope, x=x)
    assert_same(before, fused(NAME, before, expected), feed(), rtol=0)


def test_refusals() -> None:
    e = Expression()
    e.PRelu("x", "a", output="y")
    refused(NAME, e.model({"x": X, "a": [4, 1, 1]}, ["y"]), "is not constant")
    e = Expression()
    e.initializers["a"] = column(1, 2, 3, 4)
    e.PRelu("x", "a", output="y")
    refused(NAME, e.model({"x": X}, ["y"], overridable=["a"]), "may override")
    refused(NAME, prelu(np.float64(0.1), dtype="float64"), "float32")
    refused(NAME, prelu(column(np.inf, 1, 1, 1)), "finite")
    refused(NAME, prelu(column(0.5, 0.0, -3, 1)), "above 1 or 0")
    refused(NAME, prelu(column(0.5, 1.5, -3, 1)), "above 1 or 0")
    refused(NAME, prelu(np.float32([0.1]), opset=7), "opset 8")
