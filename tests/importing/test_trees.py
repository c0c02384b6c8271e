"""Ensembles of trees against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

torch = pytest.importorskip("torch")

from graphopt.errors import InputError  # noqa: E402
from graphopt.importing import to_torch  # noqa: E402


def ensemble(path: Path, *, classes: int = 3, trees: int = 3, seed: int = 0, weights_of: tuple[int, ...] | None = None, low: float = 0.0,
             **more: Any) -> Path:  # fmt: skip
    """Random trees of up to four levels over five features."""
    random = np.random.default_rng(seed)
    rows: dict[str, list[Any]] = {k: [] for k in ("treeids", "nodeids", "featureids", "modes", "values", "truenodeids", "falsenodeids",
                                                  "missing_value_tracks_true")}  # fmt: skip
    leaves: dict[str, list[Any]] = {k: [] for k in ("treeids", "nodeids", "ids", "weights")}
    mode = more.pop("mode", "BRANCH_LEQ")
    for tree in range(trees):
        kinds, count = [], 1
        pending = [(0, 0)]
        children = {}
        while pending:
            node, level = pending.pop(0)
            leaf = level == 4 or (level > 1 and random.random() < 0.3)
            kinds.append((node, leaf))
            if not leaf:
                children[node] = (count, count + 1)
                pending += [(count, level + 1), (count + 1, level + 1)]
                count += 2
        for node, leaf in kinds:
            then, other = children.get(node, (0, 0))
            values = (tree, node, int(random.integers(5)), "LEAF" if leaf else mode, float(random.integers(-2, 3)), then, other,
                      int(random.integers(2)))  # fmt: skip
            for key, value in zip(rows, values, strict=True):
                rows[key].append(value)
            for number in (weights_of or range(classes)) if leaf else ():
                for key, value in zip(leaves, (tree, node, number, float(low + random.random() / trees)), strict=True):
                    leaves[key].append(value)
    attributes = {f"nodes_{k}": v for k, v in rows.items()} | {f"class_{k}": v for k, v in leaves.items()}
    labels = more.pop("labels", {"classlabels_int64s": list(range(10, 10 + classes))})
    made = helper.make_node("TreeEnsembleClassifier", ["x"], ["label", "scores"], domain="ai.onnx.ml", **attributes, **labels, **more)
    kind = TensorProto.STRING if "classlabels_strings" in labels else TensorProto.INT64
    graph = helper.make_graph(
        [made], "trees", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 5])],
        [helper.make_tensor_value_info("label", kind, ["n"]), helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", classes])],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


@pytest.mark.parametrize(
    "options",
    [
        {}, {"seed": 1, "mode": "BRANCH_LT"}, {"mode": "BRANCH_GTE"}, {"mode": "BRANCH_GT"}, {"mode": "BRANCH_EQ"}, {"mode": "BRANCH_NEQ"},
        {"post_transform": "SOFTMAX"}, {"post_transform": "LOGISTIC"}, {"base_values": [0.1, 0.4, -0.2]}, {"trees": 1, "seed": 5},
        {"classes": 2, "weights_of": (0,)}, {"classes": 2, "weights_of": (0,), "low": -0.15, "seed": 2},
    ],
)  # fmt: skip
def test_labels_and_scores(options: dict[str, Any], tmp_path: Path) -> None:
    path = ensemble(tmp_path / "trees.onnx", **options)
    x = np.random.default_rng(1).integers(-3, 4, (64, 5)).astype(np.float32)
    x[::7, 2] = np.nan
    label, scores = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x})
    module = to_torch(path)
    program = torch.export.export(module, (torch.from_numpy(x),), dynamic_shapes=({0: torch.export.Dim("n")},))
    for made in (module, program.module()):
        found = made(torch.from_numpy(x))
        np.testing.assert_allclose(found[1].numpy(), scores, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(found[0].numpy(), label)
    assert program.module()(torch.from_numpy(x[:5]))[0].shape == (5,)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"labels": {"classlabels_strings": ["a", "b", "c"]}}, "its labels are strings"),
        ({"post_transform": "PROBIT"}, "post_transform PROBIT is not supported"),
        ({"classes": 2, "weights_of": (0,), "post_transform": "LOGISTIC"}, "of two classes only"),
        ({"classes": 2}, "of two classes only"),
        ({"classes": 2, "weights_of": (1,)}, "of two classes only"),
    ],
)
def test_refused(options: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=reason):
        to_torch(ensemble(tmp_path / "trees.onnx", **options))
