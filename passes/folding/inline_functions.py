"""Local functions: their bodies take the place of the calls."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from graphopt.rewriting import Context, Pass, Refuse

from .cloning import Cloner
from .graft import all_nodes, graft, nodes_within

_Identifier = tuple[str, str, str]


@dataclass(frozen=True)
class InlineFunctions(Pass):
    """Put the bodies of local functions in the place of their calls, and drop functions that are no longer called.

    A call is left where the function calls itself, where an operator of its body means something else under the opset
    version of the model, or where a parameter is a subgraph.
    """

    name = "inline-functions"

    def run(self, context: Context) -> None:
        functions = context.model.functions
        if not functions:
            return
        recursive = _recursive(functions)
        pending = [n for graph, scope in context.index.scopes.items() if scope.function is None for n in graph]
        pending = [n for n in pending if n.op_identifier() in functions]
        pending.reverse()
        changed = False
        while pending:
            call = pending.pop()
            function = functions[call.op_identifier()]
            try:
                if call.op_identifier() in recursive:
                    raise Refuse("the function calls itself")
                _check_opsets(context, function)
                body, results = _instance(context, call, function)
            except Refuse as refusal:
                context.log.refuse(call, refusal.reason)
                continue
            if not context.log.permit(call):
                _let_go(body)
                continue
            _import_domains(context, function)
            graft(context, call, body, results)
            changed = True
            pending.extend(n for new in reversed(body) for n in (*nodes_within(new), new) if n.op_identifier() in functions)
        if changed:
            context.invalidate(shapes=True)  # of a call nothing was known
        _drop_unused(context)


def _recursive(functions: dict[_Identifier, ir.Function]) -> set[_Identifier]:
    """The functions that reach themselves by calls."""
    calls = {i: [n.op_identifier() for n in all_nodes(f) if n.op_identifier() in functions] for i, f in functions.items()}
    found = set()
    for start in functions:
        seen: set[_Identifier] = set()
        pending = list(calls[start])
        while pending:
            at = pending.pop()
            if at not in seen:
                seen.add(at)
                pending.extend(calls[at])
        if start in seen:
            found.add(start)
    return found


def _check_opsets(context: Context, function: ir.Function) -> None:
    """Refuse where an operator of the body is of another version than the same one in the model."""
    ours = {_plain(d): v for d, v in context.model.opset_imports.items()}
    theirs = {_plain(d): v for d, v in function.opset_imports.items()}
    for node in all_nodes(function):
        domain = _plain(node.domain)
        wanted, given = theirs.get(domain), ours.get(domain)
        if wanted == given or given is None or node.op_identifier() in context.model.functions:
            continue
        if wanted is None or _since(node, wanted) != _since(node, given) or _since(node, given) is None:
            where = f"domain {domain}" if domain else "the standard operators"
            raise Refuse(f"its {node.op_type} follows version {wanted} of {where} and the model version {given}")


def _since(node: ir.Node, version: int) -> int | None:
    """The opset version from which the definition holds that an operator has at `version`."""
    import onnx

    try:
        return onnx.defs.get_schema(node.op_type, version, _plain(node.domain)).since_version
    except onnx.defs.SchemaError:
        return None


def _plain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _instance(context: Context, call: ir.Node, function: ir.Function) -> tuple[list[ir.Node], list[ir.Value]]:
    """A copy of the body for one call, and the values that stand for the call's outputs."""
    if len(call.inputs) > len(function.inputs) or len(call.outputs) > len(function.outputs):
        raise Refuse("the call has more inputs or outputs than the function")
    parameters = {name: a for name, a in function.attributes.items() if a.value is not None}
    parameters.update(call.attributes)
    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in parameters.values()):
        raise Refuse("a parameter of the function is a subgraph")
    given = list(call.inputs) + [None] * (len(function.inputs) - len(call.inputs))
    values: dict[ir.Value, ir.Value | None] = dict(zip(function.inputs, given))
    cloner = Cloner(context, values, parameters, prefix=f"{call.name}/" if call.name else "", metadata=call.metadata_props)
    body: list[ir.Node] = []
    try:
        body.extend(cloner.node(n) for n in function)
        results = []
        for value, output in zip(function.outputs, call.outputs):
            result = values.get(value)
            if result is None and (output.uses() or output.is_graph_output()):
                raise Refuse(f"output {value.name!r} of the function is an input that the call leaves out")
            results.append(result if result is not None else output)
    except Refuse:
        _let_go(cloner.made)
        raise
    return body, results


def _let_go(nodes: list[ir.Node]) -> None:
    for node in nodes:
        for inner in (node, *nodes_within(node)):
            for i in range(len(inner.inputs)):
                inner.replace_input_with(i, None)


def _import_domains(context: Context, function: ir.Function) -> None:
    known = {_plain(d) for d in context.model.opset_imports}
    for domain, version in function.opset_imports.items():
        if _plain(domain) not in known:
            context.model.opset_imports[domain] = version


def _drop_unused(context: Context) -> None:
    functions = context.model.functions
    live: set[_Identifier] = set()
    pending: list[ir.Graph | ir.Function] = [context.model.graph]
    while pending:
        for node in all_nodes(pending.pop()):
            identifier = node.op_identifier()
            if identifier in functions and identifier not in live:
                live.add(identifier)
                pending.append(functions[identifier])
    dead = [i for i in functions if i not in live]
    for identifier in dead:
        if context.log.permit(label="function " + ":".join(part for part in identifier if part)):
            del functions[identifier]
    if dead:
        context.invalidate()


