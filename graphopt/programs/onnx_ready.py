"""A program made ready for torch's ONNX exporter: without what the exporter passes over in silence or cannot take."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from graphopt.aten import Program, operator_of
from graphopt.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

    from graphopt.programs.captured import Captured

_ATTENTION = "aten.scaled_dot_product_attention.default"


def ready(program: ExportedProgram, what: str) -> tuple[ExportedProgram, list[str]]:
    """The program with outputs that are tensors or sizes only, and attention of rank 4; and remarks. Tensors are shared.

    Raises:
        InputError: an output depends on a buffer that the program changes: an ONNX model keeps nothing between calls.
    """
    notes = _mutations(program, what)
    rewritten = Program(program)
    dropped = _without_constants(rewritten)
    changed = [node for node in list(rewritten.graph.nodes) if operator_of(node) == _ATTENTION and _to_rank_four(node)]
    if dropped:
        notes.append(f"{dropped} outputs that are no tensors are left out of the ONNX model")
    if not dropped and not changed:
        return program, notes
    result = rewritten.export()
    if dropped:
        _forget_nesting(result)
    return result, notes


def stateless(captured: Captured) -> Captured:
    """What was captured, without the writing into buffers and inputs that an ONNX model cannot do, and with a remark on it.

    Raises:
        InputError: an output depends on a buffer that the program changes.
    """
    notes = _mutations(captured.program, captured.source)
    if not notes:
        return captured
    program = Program(captured.program)
    kept = [place for place, spec in enumerate(program.output_specs) if spec.kind.name == "USER_OUTPUT"]
    program.output.args = (tuple(program.output.args[0][place] for place in kept),)
    program.output_specs = [program.output_specs[place] for place in kept]
    program.mutated = set()
    return dataclasses.replace(captured, program=program.export(), notes=(*captured.notes, *notes))


def _mutations(program: ExportedProgram, what: str) -> list[str]:
    signature = program.graph_signature
    notes = []
    changed = set(signature.buffers_to_mutate.values())
    if changed:
        read = _read_by_outputs(program)
        names = {spec.target for spec in signature.input_specs if spec.arg.name in read} & changed
        if names:
            listed = ", ".join(repr(name) for name in sorted(names))
            raise InputError(f"{what}: its answers depend on {listed}, which it changes when it runs; an ONNX model cannot: write a .pt2")
        notes.append(f"the ONNX model does not change {', '.join(repr(name) for name in sorted(changed))}, on which no output depends")
    written = sorted(set(signature.user_inputs_to_mutate.values()))
    if written:
        notes.append(f"the ONNX model does not write into its inputs {', '.join(repr(name) for name in written)}, as the module does")
    return notes


def _read_by_outputs(program: ExportedProgram) -> set[str]:
    """Names of the placeholders that the outputs a caller sees are computed from."""
    given = set(program.graph_signature.user_outputs)
    todo = [node for node in program.graph.output_node().all_input_nodes if node.name in given]
    seen = set(todo)
    while todo:
        for node in todo.pop().all_input_nodes:
            if node not in seen:
                seen.add(node)
                todo.append(node)
    return {node.name for node in seen if node.op == "placeholder"}


def _without_constants(program: Program) -> int:
    """Takes outputs that are None, numbers or strings off the graph; returns how many."""
    from torch.export.graph_signature import ConstantArgument

    kept = [place for place, spec in enumerate(program.output_specs) if not isinstance(spec.arg, ConstantArgument)]
    dropped = len(program.output_specs) - len(kept)
    if dropped:
        program.output.args = (tuple(program.output.args[0][place] for place in kept),)
        program.output_specs = [program.output_specs[place] for place in kept]
    return dropped


def _forget_nesting(program: ExportedProgram) -> None:
    """The call signature of a program that gives a plain tuple, once outputs were taken off it."""
    from torch.utils import _pytree as pytree

    signature = program.module_call_graph[0].signature
    outputs = [spec.arg for spec in program.graph_signature.output_specs if spec.kind.name == "USER_OUTPUT"]
    signature.outputs = outputs
    signature.out_spec = pytree.tree_structure(tuple(range(len(outputs))))


def _to_rank_four(node: torch.fx.Node) -> bool:
    """Gives attention of rank 2 or 3 the axes that it lacks, and takes them off its result; whether it did."""
    import torch

    value = node.meta.get("val")
    if value is None or value.ndim not in (2, 3):
        return False
    missing = 4 - value.ndim
    unsqueeze, squeeze = torch.ops.aten.unsqueeze.default, torch.ops.aten.squeeze.dim
    arguments, named = list(node.args), dict(node.kwargs)

    def widened(given: torch.fx.Node) -> torch.fx.Node:
        # [B, L, E] as [B, 1, L, E]; a mask of fewer axes is broadcast as it is.
        for _ in range(missing if given.meta["val"].ndim > 2 or missing == 2 else 0):
            held = given.meta["val"]
            with node.graph.inserting_before(node):
                axis = max(held.ndim - 2, 0)
                given = node.graph.call_function(unsqueeze, (given, axis))
            given.meta["val"] = unsqueeze(held, axis)
        return given

    for place in range(min(len(arguments), 4)):
        if isinstance(arguments[place], torch.fx.Node):
            arguments[place] = widened(arguments[place])
    if isinstance(named.get("attn_mask"), torch.fx.Node):
        named["attn_mask"] = widened(named["attn_mask"])
    with node.graph.inserting_before(node):
        result = node.graph.call_function(node.target, tuple(arguments), named)
        result.meta["val"] = value.unsqueeze(value.ndim - 2) if missing == 1 else value.unsqueeze(0).unsqueeze(0)
        for _ in range(missing):
            held = result.meta["val"]
            axis = held.ndim - 3
            result = node.graph.call_function(squeeze, (result, axis))
            result.meta["val"] = squeeze(held, axis)
    node.replace_all_uses_with(result)
    node.graph.erase_node(node)
    return True
