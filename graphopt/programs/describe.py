"""A torch program in numbers and names, for the report; what `graphopt.reporting.describe` is to ONNX models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.programs.captured import Captured

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

_TYPES = {"float32": "float", "float64": "double"}


def describe_program(program: ExportedProgram, path: Path | None = None) -> dict[str, Any]:
    """{"nodes", "bytes", "parameters", "operators"} of a program.

    nodes, operators: of the graph and of those of control flow; bytes: of the file, without one of the tensors, each
    once; parameters: elements of all parameters, buffers and constants.
    """
    operators: Counter[str] = Counter()
    for node in _operators(program):
        operators[node] += 1
    held = list(_held(program))
    size = sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}.values())
    return {
        "nodes": sum(operators.values()),
        "bytes": path.stat().st_size if path is not None and path.is_file() else size,
        "parameters": sum(t.numel() for t in held),
        "operators": dict(sorted(operators.items(), key=lambda item: (-item[1], item[0]))),
    }


def describe_captured(captured: Captured, path: str) -> dict[str, Any]:
    """The report's "model": path, kind, inputs and outputs with types and shapes."""
    import torch

    inputs = []
    for name, tensor in captured.tensors().items():
        dims = captured.dims.get(name, {})
        inputs.append({"name": name, "type": _type(tensor), "shape": [dims.get(axis, int(n)) for axis, n in enumerate(tensor.shape)]})
    signature = captured.program.graph_signature
    values = {node.name: node.meta.get("val") for node in captured.program.graph.nodes}
    given = [values.get(name) for name in signature.user_outputs if isinstance(name, str)]
    outputs = []
    for name, value in zip(captured.outputs, given, strict=True):
        if isinstance(value, torch.Tensor):
            outputs.append({"name": name, "type": _type(value), "shape": _shape(value, captured)})
        else:  # a size
            outputs.append({"name": name, "type": "tensor(int64)", "shape": []})
    return {"path": path, "kind": "torch", "opset": None, "inputs": inputs, "outputs": outputs}


def inspected(model: Path, top: int) -> dict[str, Any]:
    """What `graphopt inspect` tells of a torch program: the report's "model", figures, the largest tensors, what a call changes."""
    from graphopt.extras import require_torch
    from graphopt.programs.capture import capture

    require_torch()
    captured = capture(model)
    program, signature = captured.program, captured.program.graph_signature
    held = {**program.constants, **program.state_dict}
    weights = [
        {"name": name, "type": str(t.dtype).removeprefix("torch."), "shape": list(t.shape), "bytes": t.numel() * t.element_size()}
        for name, t in held.items() if hasattr(t, "dtype")
    ]  # fmt: skip
    weights.sort(key=lambda w: (-w["bytes"], w["name"]))
    return {
        "model": describe_captured(captured, str(model)),
        "metadata": {},
        "functions": [],
        **describe_program(program, model if model.is_file() else None),
        "initializers": len(weights),
        "largest": weights[:top],
        "mutated": [*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()],
        "notes": list(captured.notes),
    }


def _shape(value: torch.Tensor, captured: Captured) -> list[int | str]:
    from graphopt.programs.naming import renamed

    return [dim if isinstance(dim, int) else renamed(str(dim), captured.symbols) for dim in value.shape]


def _type(tensor: torch.Tensor) -> str:
    name = str(tensor.dtype).removeprefix("torch.")
    return f"tensor({_TYPES.get(name, name)})"


def _operators(program: ExportedProgram) -> Iterable[str]:
    import operator

    import torch

    from graphopt.aten import operator_of

    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                if node.op == "call_function" and node.target is not operator.getitem:
                    yield operator_of(node)


def _held(program: ExportedProgram) -> Iterable[torch.Tensor]:
    import torch

    seen = set()
    for tensor in (*program.state_dict.values(), *program.constants.values()):
        if isinstance(tensor, torch.Tensor) and id(tensor) not in seen:
            seen.add(id(tensor))
            yield tensor
