"""Ensembles of decision trees (ai.onnx.ml): every row walks down all trees at once, a level at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from graphopt.importing.table import operator

_COMPARE = {
    "BRANCH_LEQ": torch.le, "BRANCH_LT": torch.lt, "BRANCH_GTE": torch.ge, "BRANCH_GT": torch.gt, "BRANCH_EQ": torch.eq,
    "BRANCH_NEQ": torch.ne,
}  # fmt: skip
_LEAF = "LEAF"


def _refused(given: Mapping[str, Any]) -> str | None:
    if "classlabels_strings" in given:
        return "its labels are strings, which torch has no tensors of"
    modes = {m for m in given.get("nodes_modes", ()) if m != _LEAF}
    if len(modes) > 1 or not modes <= _COMPARE.keys():
        return f"its nodes compare by {', '.join(sorted(modes))}"
    after = given.get("post_transform", "NONE")
    if after not in ("NONE", "SOFTMAX", "LOGISTIC"):
        return f"post_transform {after} is not supported"
    if len(given.get("classlabels_int64s", ())) == 2 and (set(given.get("class_ids", ())) != {0} or after != "NONE"):
        return "of two classes only scores of the first alone, as they are, are supported"  # runtimes differ in what the others mean
    return "it has no labels" if not given.get("classlabels_int64s") else None


@operator("TreeEnsembleClassifier", domain="ai.onnx.ml", several=True, refuse=_refused)
def tree_ensemble_classifier(
    x: Tensor,
    *,
    nodes_treeids: list[int],
    nodes_nodeids: list[int],
    nodes_featureids: list[int],
    nodes_modes: list[str],
    nodes_values: list[float],
    nodes_truenodeids: list[int],
    nodes_falsenodeids: list[int],
    class_treeids: list[int],
    class_nodeids: list[int],
    class_ids: list[int],
    class_weights: list[float],
    classlabels_int64s: list[int],
    nodes_missing_value_tracks_true: list[int] | None = None,
    nodes_hitrates: list[float] | None = None,
    base_values: list[float] | None = None,
    classlabels_strings: list[str] | None = None,
    post_transform: str = "NONE",
) -> tuple[Tensor, Tensor]:
    """Labels [N], and scores [N, classes]: the weights of the leaves that a row comes to, added up."""
    places = {key: i for i, key in enumerate(zip(nodes_treeids, nodes_nodeids, strict=True))}
    leaf = [mode == _LEAF for mode in nodes_modes]

    def following(ids: Sequence[int]) -> list[int]:
        """Where a node leads to; a leaf, to itself."""
        return [i if leaf[i] else places[tree, node] for i, (tree, node) in enumerate(zip(nodes_treeids, ids, strict=True))]

    then, other = following(nodes_truenodeids), following(nodes_falsenodeids)
    targets = {i for i in range(len(leaf)) if not leaf[i] for i in (then[i], other[i])}
    roots = [next(i for i, t in enumerate(nodes_treeids) if t == tree and i not in targets) for tree in dict.fromkeys(nodes_treeids)]
    classes = len(classlabels_int64s)
    weights = torch.zeros(len(leaf), classes)
    for tree, node, number, weight in zip(class_treeids, class_nodeids, class_ids, class_weights, strict=True):
        weights[places[tree, node], number] += weight

    compare = _COMPARE[next((m for m in nodes_modes if m != _LEAF), "BRANCH_LEQ")]
    x = x if x.is_floating_point() else x.to(torch.float32)
    limits, features = torch.tensor(nodes_values), torch.tensor(nodes_featureids)
    missing = torch.tensor(nodes_missing_value_tracks_true or [0] * len(leaf), dtype=torch.bool)
    to_then, to_other = torch.tensor(then), torch.tensor(other)
    at = torch.tensor(roots).expand(x.shape[0], len(roots))
    for _ in range(_depth(roots, then, other)):
        value = torch.gather(x, 1, features[at])
        at = torch.where(compare(value, limits[at]) | (torch.isnan(value) & missing[at]), to_then[at], to_other[at])
    scores = weights[at].sum(1)
    labels = torch.tensor(classlabels_int64s)
    if classes == 2:
        return _binary(scores[:, 0], labels, min(class_weights) >= 0, base_values)
    scores = scores if not base_values else scores + torch.tensor(base_values)
    label = labels[scores.argmax(1)]
    if post_transform == "SOFTMAX":
        scores = torch.softmax(scores, 1)
    return label, torch.sigmoid(scores) if post_transform == "LOGISTIC" else scores


def _binary(score: Tensor, labels: Tensor, positive: bool, base: Sequence[float] | None) -> tuple[Tensor, Tensor]:
    """As ONNX Runtime has it: weights of one class alone speak for the second label. Positive ones are its probability."""
    if base:
        score = score + base[-1]
    label = torch.where(score > (0.5 if positive else 0.0), labels[1], labels[0])
    return label, torch.stack([1 - score if positive else -score, score], 1)


def _depth(roots: Sequence[int], then: Sequence[int], other: Sequence[int]) -> int:
    """How many steps the longest way from a root to a leaf has. Raises ValueError where nodes lead in a circle."""
    level, depth = set(roots), 0
    while level := {n for i in level for n in (then[i], other[i]) if n != i}:
        depth += 1
        if depth > len(then):
            raise ValueError("the nodes of a tree lead in a circle")
    return depth
