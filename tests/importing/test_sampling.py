"""Grids, regions, boxes, attention and signals through the importer, against ONNX Runtime; exported for any size."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from tests.support import array, model, node, rng

torch = pytest.importorskip("torch")

from tests.importing.against_runtime import check, check_exported, check_gradient  # noqa: E402


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
def test_grids(mode: str, padding: str) -> None:
    for corners in (0, 1):
        made = model(
            [node("GridSample", ["x", "g"], ["y"], mode=mode, padding_mode=padding, align_corners=corners)],
            {"x": ["N", 2, "H", "W"], "g": ["N", "A", "B", 2]}, {"y": ["N", 2, "A", "B"]}, opset=20,
        )  # fmt: skip
        check(made, {"x": array(2, 2, 5, 6), "g": array(2, 3, 4, 2, seed=1)}, rtol=2e-5)


def test_a_grid_from_a_transform() -> None:
    made = model(
        [node("AffineGrid", ["t", "size"], ["y"], align_corners=1)], {"t": ["N", 2, 3]}, {"y": ["N", 4, 5, 2]},
        {"size": np.array([2, 3, 4, 5])}, opset=20,
    )  # fmt: skip
    check(made, {"t": array(2, 2, 3)})


@pytest.mark.parametrize("where", ["half_pixel", "output_half_pixel"])
@pytest.mark.parametrize("ratio", [0, 2])
def test_regions(ratio: int, where: str) -> None:
    made = model(
        [node("RoiAlign", ["x", "r", "b"], ["y"], output_height=3, output_width=2, sampling_ratio=ratio, spatial_scale=0.5,
              coordinate_transformation_mode=where)],
        {"x": ["N", 2, 8, 9], "r": ["R", 4], "b": ["R"]}, {"y": ["R", 2, 3, 2]}, opset=16, types={"b": TensorProto.INT64},
    )  # fmt: skip
    corners = rng(0).uniform(0, 8, (5, 2)).astype(np.float32)
    regions = np.concatenate([corners, corners + rng(1).uniform(0.2, 9, (5, 2)).astype(np.float32)], 1)
    check(made, {"x": array(2, 2, 8, 9), "r": regions, "b": np.array([0, 1, 1, 0, 1])})
    if ratio:
        shapes = (None, {0: torch.export.Dim("r", min=2, max=64)}, {0: torch.export.Dim("r", min=2, max=64)})
        feed = {"x": array(2, 2, 8, 9), "r": regions, "b": np.array([0, 1, 1, 0, 1])}
        check_exported(made, feed, shapes, {"x": feed["x"], "r": regions[:3], "b": feed["b"][:3]})


@pytest.mark.parametrize("centers", [0, 1])
def test_boxes(centers: int) -> None:
    constants = {"most": np.array([4]), "iou": np.array([0.4], np.float32), "least": np.array([0.2], np.float32)}
    made = model(
        [node("NonMaxSuppression", ["b", "s", *constants], ["y"], center_point_box=centers)], {"b": ["N", "K", 4], "s": ["N", "C", "K"]},
        {"y": ["M", 3]}, constants, types={"y": TensorProto.INT64},
    )  # fmt: skip
    draw = rng(3)
    low = draw.uniform(0, 1, (2, 20, 2)).astype(np.float32)
    boxes = np.concatenate([low, low + draw.uniform(0.1, 0.6, (2, 20, 2)).astype(np.float32)], 2)
    check(made, {"b": boxes, "s": draw.uniform(0, 1, (2, 3, 20)).astype(np.float32)})
    with pytest.raises(Exception, match="cannot be exported"):
        check_exported(made, {"b": boxes, "s": draw.uniform(0, 1, (2, 3, 20)).astype(np.float32)})


@pytest.mark.parametrize("groups", [(1, 1), (2, 2)])
def test_deformed_convolution(groups: tuple[int, int]) -> None:
    group, offsets = groups
    weights = {"w": array(4, 4 // group, 3, 3, seed=1), "b": array(4, seed=2)}
    made = model(
        [node("DeformConv", ["x", "w", "o", "b", "m"], ["y"], group=group, offset_group=offsets, pads=[1] * 4)],
        {"x": ["N", 4, 5, 6], "o": ["N", offsets * 18, 5, 6], "m": ["N", offsets * 9, 5, 6]}, {"y": ["N", 4, 5, 6]}, weights, opset=19,
    )  # fmt: skip
    feed = {"x": array(2, 4, 5, 6), "o": array(2, offsets * 18, 5, 6, seed=3), "m": array(2, offsets * 9, 5, 6, seed=4)}
    check(made, feed)


def _attention(dtype=TensorProto.FLOAT, groups=2, **attributes):
    inputs = {"q": ["N", "S", 32], "k": ["N", "T", 8 * groups], "v": ["N", "T", 8 * groups]}
    made = node("Attention", list(inputs), ["y"], q_num_heads=4, kv_num_heads=groups, **attributes)
    return model([made], inputs, {"y": ["N", "S", 32]}, opset=23, types=dict.fromkeys([*inputs, "y"], dtype))


def _tokens(batch: int, steps: int, groups: int = 2, dtype: str = "float32") -> dict[str, np.ndarray]:
    widths = {"q": 32, "k": 8 * groups, "v": 8 * groups}
    return {n: array(batch, steps, w, seed=i, dtype=dtype) for i, (n, w) in enumerate(widths.items())}


@pytest.mark.parametrize("attributes", [{}, {"is_causal": 1}, {"scale": 0.3}, {"softcap": 2.0}, {"softcap": 2.0, "is_causal": 1}], ids=str)
def test_attention(attributes: dict) -> None:
    check(_attention(**attributes), _tokens(2, 5), _tokens(1, 7))
    check(_attention(groups=4, **attributes), _tokens(2, 5, 4))


def test_attention_is_exported_as_torch_own_and_differentiated() -> None:
    n, s = torch.export.Dim("n", min=2, max=64), torch.export.Dim("s", min=2, max=64)
    program = check_exported(_attention(is_causal=1), _tokens(2, 5), ({0: n, 1: s},) * 3, _tokens(3, 6))
    assert any("scaled_dot_product_attention" in str(node.target) for node in program.graph.nodes)
    check_gradient(_attention(TensorProto.DOUBLE), *_tokens(1, 3, dtype="float64").values())


@pytest.mark.parametrize("interleaved", [0, 1])
def test_rotary_positions(interleaved: int) -> None:
    angles = array(16, 4, seed=4)
    constants = {"c": np.cos(angles), "s": np.sin(angles)}
    made = model(
        [node("RotaryEmbedding", ["x", "c", "s", "p"], ["y"], interleaved=interleaved, num_heads=4)],
        {"x": ["N", "S", 32], "p": ["N", "S"]}, {"y": ["N", "S", 32]}, constants, opset=23, types={"p": TensorProto.INT64},
    )  # fmt: skip
    check(made, {"x": array(2, 5, 32), "p": rng(0).integers(0, 16, (2, 5))})


@pytest.mark.parametrize("inverse", [0, 1])
@pytest.mark.parametrize("onesided", [0, 1])
def test_fourier_transforms(onesided: int, inverse: int) -> None:
    if onesided and inverse:
        return  # ONNX Runtime has no kernel for it; a node case checks it
    made = model(
        [node("DFT", ["x", "", "a"], ["y"], inverse=inverse, onesided=onesided)], {"x": ["N", 16, 1 if onesided else 2]},
        {"y": ["N", "F", 2]}, {"a": np.array(1)}, opset=20,
    )  # fmt: skip
    check(made, {"x": array(3, 16, 1 if onesided else 2)})


def test_short_transforms_of_any_length() -> None:
    constants = {"step": np.array(4), "w": np.hanning(8).astype(np.float32)}
    made = model([node("STFT", ["x", "step", "w"], ["y"])], {"x": ["N", "L", 1]}, {"y": ["N", "F", 5, 2]}, constants)
    check(made, {"x": array(2, 32, 1)}, {"x": array(1, 20, 1)})
    check_exported(made, {"x": array(2, 32, 1)}, ({1: torch.export.Dim.AUTO},), {"x": array(2, 48, 1)})


@pytest.mark.parametrize("name", ["HannWindow", "HammingWindow", "BlackmanWindow"])
def test_windows(name: str) -> None:
    for periodic in (0, 1):
        made = model([node(name, ["n"], ["y"], periodic=periodic)], {"n": []}, {"y": ["N"]}, types={"n": TensorProto.INT64})
        check(made, {"n": np.array(9)}, rtol=1e-5)
