"""Pieces of models with Transposes in them."""

import onnx

from tests.support import node

TO_LAST = (0, 2, 3, 1)
TO_FIRST = (0, 3, 1, 2)


def t(source: str, target: str, *perm: int) -> onnx.NodeProto:
    return node("Transpose", [source], [target], **({"perm": list(perm)} if perm else {}))


def last(source: str, target: str) -> onnx.NodeProto:
    """From channels first to channels last."""
    return t(source, target, *TO_LAST)


def first(source: str, target: str) -> onnx.NodeProto:
    """From channels last to channels first."""
    return t(source, target, *TO_FIRST)
