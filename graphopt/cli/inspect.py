"""`graphopt inspect`: what a model is made of."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphopt.cli import options as o
from graphopt.cli.output import print_json, print_text

if TYPE_CHECKING:
    from graphopt.model import Model


def inspect(
    model: o.AnyModel,
    top: Annotated[int, typer.Option(min=0, metavar="N", help="How many of the largest initializers to list.")] = 10,
    json: o.Json = False,
) -> None:
    """Show inputs, outputs, opsets, operators, sizes and the largest weights of a model; reads no weight."""
    from graphopt.programs.sources import is_program

    if is_program(model):
        from graphopt.programs.describe import inspected

        found = inspected(model, top)
    else:
        from graphopt.formats import load_model

        found = _inspected(load_model(model), top)
    if json:
        print_json(found)
    else:
        print_text(_text(found))


def _inspected(model: Model, top: int) -> dict[str, Any]:
    from graphopt.reporting import describe, describe_interface

    graph = model.graph
    weights = _initializers(model)
    return {
        "model": describe_interface(graph, str(model.path), model.kind),
        "ir_version": graph.ir_version,
        "opsets": dict(sorted(graph.opset_imports.items())),
        "producer": " ".join(t for t in (graph.producer_name, graph.producer_version) if t) or None,
        "metadata": dict(graph.metadata_props),
        "functions": sorted("::".join(part for part in key if part) for key in graph.functions),
        **describe(graph, model.path),
        "initializers": len(weights),
        "largest": weights[:top],
        "notes": model.notes,
    }


def _initializers(model: Model) -> list[dict[str, Any]]:
    """All initializers, the largest first."""
    from graphopt.model import iter_graphs

    found = []
    for graph in iter_graphs(model.graph):
        for value in getattr(graph, "initializers", {}).values():
            tensor = value.const_value
            if tensor is None:
                continue
            shape = [int(d) for d in tensor.shape]
            # Strings have no fixed width: their bytes are not known without reading them.
            size = None if tensor.dtype.name == "STRING" else math.ceil(math.prod(shape) * tensor.dtype.itemsize)
            found.append({"name": value.name, "type": tensor.dtype.name.lower(), "shape": shape, "bytes": size})
    return sorted(found, key=lambda w: (-(w["bytes"] or 0), w["name"]))


def _text(found: dict[str, Any]) -> str:
    from graphopt.reporting.words import size

    model = found["model"]
    if model["kind"] == "torch":
        rows = [("Model", f"{model['path']} (torch)")]
        rows += [("Changes", name) for name in found["mutated"]]
    else:
        opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in found["opsets"].items())
        rows = [("Model", f"{model['path']} ({model['kind']}, IR version {found['ir_version']})"), ("Opsets", opsets)]
        if found["producer"]:
            rows.append(("Producer", found["producer"]))
    rows += [("Inputs" if i == 0 else "", _value(v)) for i, v in enumerate(model["inputs"])]
    rows += [("Outputs" if i == 0 else "", _value(v)) for i, v in enumerate(model["outputs"])]
    rows.append(("Size", f"{size(found['bytes'])}, {found['parameters']:,} parameters in {found['initializers']:,} initializers"))
    rows.append(("Nodes", f"{found['nodes']:,}"))
    rows += [("Operators" if i == 0 else "", f"{n:>7,}  {name}") for i, (name, n) in enumerate(found["operators"].items())]
    if found["functions"]:
        rows.append(("Functions", ", ".join(found["functions"])))
    for i, weight in enumerate(found["largest"]):
        shown = "?" if weight["bytes"] is None else size(weight["bytes"])
        rows.append(("Largest" if i == 0 else "", f"{shown:>9}  {weight['name']}  {weight['type']} {weight['shape']}"))
    rows += [("Metadata" if i == 0 else "", f"{k} = {_short(v)}") for i, (k, v) in enumerate(found["metadata"].items())]
    rows += [("Notes" if i == 0 else "", note) for i, note in enumerate(found["notes"])]
    return "\n".join(f"{label:<12}{text}" for label, text in rows)


def _value(value: dict[str, Any]) -> str:
    shape = "unknown rank" if value["shape"] is None else "[" + ", ".join("?" if d is None else str(d) for d in value["shape"]) + "]"
    return f"{value['name']}  {value['type'] or 'unknown type'} {shape}"


def _short(text: str, width: int = 80) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 3] + "..."
