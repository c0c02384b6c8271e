"""What one graph has that another has not: interface, opsets, operators, nodes by name, weights by content."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.model import subgraphs_of
from graphopt.reporting.describe import describe, describe_interface
from graphopt.reporting.words import operator_changes
from graphopt.rewriting.base import node_label

_CHUNK = 1 << 24  # bytes compared at a time: a weight of gigabytes is not copied
_MEASURED = 1 << 22  # elements up to which the size of a change is told


@dataclass(frozen=True)
class Changed:
    """Something that both have under one name, and in what it differs."""

    name: str
    changes: list[str]


@dataclass
class Part:
    """Names that only B has, names that only A has, and what both have but not alike."""

    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    changed: list[Changed] = field(default_factory=list)

    @property
    def same(self) -> bool:
        """Whether there is no difference."""
        return not (self.added or self.removed or self.changed)


@dataclass
class Difference:
    """What B has that A has not, and the other way round.

    Attributes:
        interface, opsets, metadata: a line for each difference.
        operators: how often an operator occurs, where that differs: {"operator", "before", "after"}.
        nodes: by name (by operator and first output without one), those in subgraphs and functions behind a path.
        initializers: by name, compared by type, then shape, then content.
    """

    interface: list[str]
    opsets: list[str]
    metadata: list[str]
    operators: list[dict[str, Any]]
    nodes: Part
    initializers: Part

    @property
    def same(self) -> bool:
        """Whether no difference was found."""
        return not (self.interface or self.opsets or self.metadata or self.operators) and self.nodes.same and self.initializers.same

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"same": self.same, **asdict(self)}


def diff(a: ir.Model, b: ir.Model) -> Difference:
    """Compare two graphs. Weights are read only where both have one under a name, of one type and shape."""
    operators = operator_changes(describe(a, None)["operators"], describe(b, None)["operators"])
    return Difference(
        interface=_interface(describe_interface(a, ""), describe_interface(b, "")),
        opsets=_entries({d or "ai.onnx": v for d, v in a.opset_imports.items()}, {d or "ai.onnx": v for d, v in b.opset_imports.items()}),
        metadata=_entries(a.metadata_props, b.metadata_props),
        operators=[{"operator": op, "before": before, "after": after} for op, before, after in operators],
        nodes=_part(dict(_nodes(a)), dict(_nodes(b)), _node_changes),
        initializers=_part(dict(_initializers(a)), dict(_initializers(b)), _tensor_changes),
    )


def _interface(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    lines = []
    for kind in ("inputs", "outputs"):
        old, new = ({v["name"]: _typed(v) for v in side[kind]} for side in (a, b))
        lines += [f"{kind[:-1]} {line}" for line in _entries(old, new)]
        if not lines and list(old) != list(new):
            lines.append(f"{kind}: another order: {', '.join(old)} became {', '.join(new)}")
    return lines


def _typed(value: dict[str, Any]) -> str:
    shape = value["shape"]
    return f"{value['type']}" + ("" if shape is None else f" [{', '.join('?' if d is None else str(d) for d in shape)}]")


def _entries(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    lines = [f"{k}: {_short(v)} added" for k, v in b.items() if k not in a]
    lines += [f"{k}: {_short(v)} removed" for k, v in a.items() if k not in b]
    return lines + [f"{k}: {_short(v)} became {_short(b[k])}" for k, v in a.items() if k in b and b[k] != v]


def _part(a: dict[str, Any], b: dict[str, Any], compare: Any) -> Part:
    found = Part([k for k in b if k not in a], [k for k in a if k not in b])
    for name, value in a.items():
        if name in b and (changes := compare(value, b[name])):
            found.changed.append(Changed(name, changes))
    return found


def _graphs(model: ir.Model) -> Iterator[tuple[str, Any]]:
    """Every graph with the path that its nodes stand under: "" for the main graph."""
    waiting: list[tuple[str, Any]] = [
        ("::".join(part for part in key if part) + "/", function) for key, function in reversed(model.functions.items())
    ]
    waiting.append(("", model.graph))
    while waiting:
        path, graph = waiting.pop()
        yield path, graph
        inner = []
        for node in graph:
            for i, sub in enumerate(subgraphs_of(node)):
                inner.append((f"{path}{node_label(node)}[{i}]/", sub))
        waiting.extend(reversed(inner))


def _nodes(model: ir.Model) -> Iterator[tuple[str, ir.Node]]:
    seen: dict[str, int] = {}
    for path, graph in _graphs(model):
        for node in graph:
            name = path + node_label(node)
            seen[name] = seen.get(name, 0) + 1
            yield (name if seen[name] == 1 else f"{name}#{seen[name]}"), node


def _initializers(model: ir.Model) -> Iterator[tuple[str, ir.TensorProtocol]]:
    for path, graph in _graphs(model):
        for name, value in getattr(graph, "initializers", {}).items():
            if value.const_value is not None:
                yield path + name, value.const_value


def _node_changes(a: ir.Node, b: ir.Node) -> list[str]:
    changes = []
    if _operator(a) != _operator(b):
        changes.append(f"{_operator(a)} became {_operator(b)}")
    for what in ("inputs", "outputs"):
        old, new = ([v.name if v is not None else "" for v in getattr(side, what)] for side in (a, b))
        if old != new:
            changes.append(f"{what} {_short(old)} became {_short(new)}")
    for name in sorted(a.attributes.keys() | b.attributes.keys()):
        old, new = a.attributes.get(name), b.attributes.get(name)
        if old is None or new is None:
            changes.append(f"{name}={_attribute(old if new is None else new)} {'removed' if new is None else 'added'}")
        elif not _same_attribute(old, new):
            changes.append(f"{name}={_attribute(old)} became {_attribute(new)}")
    return changes


def _operator(node: ir.Node) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


def _same_attribute(a: ir.Attr, b: ir.Attr) -> bool:
    if a.type != b.type or a.is_ref() != b.is_ref():
        return False
    if a.is_ref():
        return a.ref_attr_name == b.ref_attr_name
    if a.type == ir.AttributeType.TENSOR:
        return not _tensor_changes(a.value, b.value)
    if a.type == ir.AttributeType.TENSORS:
        return len(a.value) == len(b.value) and not any(_tensor_changes(x, y) for x, y in zip(a.value, b.value, strict=True))
    if a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        return True  # its nodes are compared one by one
    return str(a.value) == str(b.value) if a.type == ir.AttributeType.FLOAT else a.value == b.value  # str: NaN is NaN


def _attribute(attribute: ir.Attr) -> str:
    if attribute.is_ref():
        return f"@{attribute.ref_attr_name}"
    if attribute.type == ir.AttributeType.TENSOR:
        return f"{attribute.value.dtype.name.lower()} {list(attribute.value.shape.numpy())}"
    return f"({attribute.type.name.lower()})" if attribute.type.name.startswith(("GRAPH", "SPARSE", "TENSORS")) else _short(attribute.value)


def _tensor_changes(a: Any, b: Any) -> list[str]:
    """In what two tensors differ: their type, else their shape, else their content."""
    if a is b:
        return []
    if a.dtype != b.dtype:
        return [f"{a.dtype.name.lower()} became {b.dtype.name.lower()}"]
    old, new = list(a.shape.numpy()), list(b.shape.numpy())
    if old != new:
        return [f"shape {old} became {new}"]
    x, y = np.asarray(a.numpy()), np.asarray(b.numpy())
    if x.dtype == object or y.dtype == object:
        return [] if x.tolist() == y.tolist() else ["other strings"]
    if _same_bytes(x, y):
        return []
    if x.size > _MEASURED or x.dtype.kind == "c":
        return ["other values"]
    with np.errstate(all="ignore"):
        gap = np.abs(x.astype(np.float64) - y.astype(np.float64))
    differing = int((x != y).sum())
    return [f"{differing:,} of {x.size:,} values differ, by up to {np.nanmax(gap, initial=0.0):.3g}"]


def _same_bytes(x: np.ndarray, y: np.ndarray) -> bool:
    flat = [np.ascontiguousarray(side).reshape(-1).view(np.uint8) for side in (x, y)]
    return all(np.array_equal(flat[0][i : i + _CHUNK], flat[1][i : i + _CHUNK]) for i in range(0, flat[0].size, _CHUNK))


def _short(value: Any, width: int = 60) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= width else text[: width - 3] + "..."
