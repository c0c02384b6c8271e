"""Resize through the importer, against ONNX Runtime: every mode and every way to place coordinates."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from onnx import TensorProto

from tests.support import array, model, node

torch = pytest.importorskip("torch")

from tests.importing.against_runtime import check, check_exported, check_gradient  # noqa: E402

_WHERE = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric"]


def _resize(dims, *, scales=None, sizes=None, opset=19, dtype=TensorProto.FLOAT, **attributes):
    initializers, names = {}, ["x", "", "", ""]
    if scales is not None:
        initializers["scales"], names[2] = np.array(scales, np.float32), "scales"
        names.pop()
    else:
        initializers["sizes"], names[3] = np.array(sizes, np.int64), "sizes"
    rank = len(dims)
    types = {"x": dtype, "y": dtype}
    return model(
        [node("Resize", names, ["y"], **attributes)],
        {"x": dims},
        {"y": [f"d{i}" for i in range(rank)]},
        initializers,
        opset=opset,
        types=types,
    )


@pytest.mark.parametrize(("mode", "where"), list(itertools.product(["nearest", "linear", "cubic"], _WHERE)))
@pytest.mark.parametrize(
    "asked", [{"scales": [1, 1, 2, 2]}, {"scales": [1, 1, 0.5, 2.5]}, {"sizes": [1, 2, 7, 3]}, {"sizes": [1, 2, 5, 9]}], ids=str
)
def test_images(mode: str, where: str, asked: dict) -> None:
    check(_resize([1, 2, 5, 6], mode=mode, coordinate_transformation_mode=where, **asked), {"x": array(1, 2, 5, 6)})


@pytest.mark.parametrize("rounding", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
@pytest.mark.parametrize("where", _WHERE)
def test_nearest_neighbours(rounding: str, where: str) -> None:
    for asked in ({"scales": [1, 1, 2, 0.5]}, {"sizes": [1, 1, 9, 4]}, {"scales": [1, 1, 3, 1.5]}):
        check(
            _resize([1, 1, 6, 6], mode="nearest", nearest_mode=rounding, coordinate_transformation_mode=where, **asked),
            {"x": array(1, 1, 6, 6)},
        )


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("exclude", [0, 1])
def test_antialias(mode: str, exclude: int) -> None:
    """Downwards with what lies outside left out, and upwards, where there is nothing to smooth, in both ways."""
    proto = _resize([1, 1, 12, 12], sizes=[1, 1, 5, 7], mode=mode, antialias=1, exclude_outside=1)
    check(proto, {"x": array(1, 1, 12, 12)})
    inner = _resize([1, 1, 12, 12], scales=[1, 1, 2, 2], mode=mode, antialias=1, exclude_outside=exclude)
    check(inner, {"x": array(1, 1, 12, 12)})


def test_volumes_lines_and_cubic_coefficient() -> None:
    check(_resize([1, 2, 3, 4, 5], sizes=[1, 2, 5, 4, 7], mode="linear"), {"x": array(1, 2, 3, 4, 5)})
    check(_resize([1, 2, 8], scales=[1, 1, 1.5], mode="linear"), {"x": array(1, 2, 8)})
    check(_resize([1, 1, 5, 5], scales=[1, 1, 2, 2], mode="cubic", cubic_coeff_a=-0.5), {"x": array(1, 1, 5, 5)})
    check(_resize([1, 1, 5, 5], scales=[1, 1, 2, 2], mode="cubic", exclude_outside=1), {"x": array(1, 1, 5, 5)})


def test_a_region() -> None:
    made = model(
        [node("Resize", ["x", "roi", "", "sizes"], ["y"], mode="linear", coordinate_transformation_mode="tf_crop_and_resize",
              extrapolation_value=9.0)],
        {"x": [1, 1, 6, 6]}, {"y": [1, 1, 4, 5]},
        {"roi": np.array([0, 0, 0.2, -0.3, 1, 1, 0.9, 1.2], np.float32), "sizes": np.array([1, 1, 4, 5])}, opset=13,
    )  # fmt: skip
    check(made, {"x": array(1, 1, 6, 6)})


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
def test_aspect_ratio(policy: str) -> None:
    check(_resize([1, 1, 6, 8], sizes=[9, 7], axes=[2, 3], mode="nearest", keep_aspect_ratio_policy=policy), {"x": array(1, 1, 6, 8)})


def test_what_is_exported_is_torch_own_and_takes_any_size() -> None:
    height, width = torch.export.Dim("h", min=4, max=64), torch.export.Dim("w", min=4, max=64)
    shapes = ({2: height, 3: width},)
    feeds = [{"x": array(1, 2, 6, 8)}, {"x": array(1, 2, 9, 5)}]
    for mode, where in (("nearest", "asymmetric"), ("linear", "half_pixel"), ("cubic", "half_pixel")):
        made = _resize([1, 2, "H", "W"], scales=[1, 1, 2, 2], mode=mode, coordinate_transformation_mode=where, nearest_mode="floor")
        program = check_exported(made, feeds[0], shapes, feeds[1])
        assert any("upsample" in str(n.target) for n in program.graph.nodes)
    made = _resize([1, 2, "H", "W"], scales=[1, 1, 2, 2], mode="linear", coordinate_transformation_mode="asymmetric")
    check_exported(made, feeds[0], shapes, feeds[1])


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_gradients(mode: str) -> None:
    made = _resize([1, 1, 4, 4], sizes=[1, 1, 6, 3], mode=mode, coordinate_transformation_mode="asymmetric", dtype=TensorProto.DOUBLE)
    check_gradient(made, array(1, 1, 4, 4, dtype="float64"))
