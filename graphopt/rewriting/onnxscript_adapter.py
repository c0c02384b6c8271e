"""Rewrite rules of onnxscript run as passes: what they match and build is theirs, everything else is the engine's.

A rule is matched at the nodes of its root operator alone, in the worklist of the engine. Each application asks first,
goes through the editor, and is recorded, so that it can be held back and found by bisection; what a rule's conditions
turn down is a refusal with their reason. onnxscript is imported by those who write such rules, not here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from graphopt.rewriting import guards
from graphopt.rewriting.base import Pass, Refuse, node_label
from graphopt.rewriting.constants import constant_tensor
from graphopt.rewriting.context import Context
from graphopt.rewriting.driver import drive
from graphopt.rewriting.editor import Editor
from graphopt.rewriting.pattern import ONNX_DOMAINS, Match
from graphopt.rewriting.uses import drop_detached_uses

if TYPE_CHECKING:
    from onnxscript.rewriter import RewriteRule

_SHOWN = 3  # nodes and values that a reason names


@dataclass(frozen=True)
class OnnxscriptRewrite(Pass):
    """A pass given as rules of onnxscript; the first that matches a node is used."""

    def rules(self) -> Sequence[RewriteRule]:
        """The rules, made anew for each run: some keep state of the match that they are at."""
        raise NotImplementedError(f"{type(self).__name__}.rules")

    def run(self, context: Context) -> None:
        """Apply the rules to a fixpoint."""
        rules = [_Rule(rule, context) for rule in self.rules()]
        with _constants_as_rules_see_them(context):
            for rule in rules:
                if rule.rule.graph_pre_visitor:
                    rule.rule.graph_pre_visitor()
            drive(_Driven(self.name, rules), context)  # type: ignore[arg-type]
            for rule in rules:
                if rule.rule.graph_post_visitor:
                    rule.rule.graph_post_visitor()


class _Rule:
    """A rule with the face of a pattern."""

    def __init__(self, rule: RewriteRule, context: Context) -> None:
        self.rule = rule
        self._context = context
        pattern = rule._target_pattern
        if not pattern.has_single_output_node:
            raise ValueError(f"rule {rule}: a pattern that ends in several nodes is searched for in quadratic time; it is not run")
        root = pattern.output_node
        if any(v.producer() is not root for v in pattern.outputs):
            raise ValueError(f"rule {rule}: it gives out values from inside its pattern, which may be needed before its end")
        if rule.as_function:
            raise ValueError(f"rule {rule}: it makes functions of what it matches")
        self._nodes = pattern.num_nodes()
        self.depth = self._nodes
        identifier = root.op_identifier()
        self.types = (identifier[1],) if identifier is not None else tuple(dict.fromkeys(n.op_type for n in context.nodes()))

    def match(self, node: ir.Node) -> Match | None:
        """The match at `node`, with the reason where the rule turns it down; None where its pattern is not there."""
        scope = self._context.scope(node)
        container = scope.function if scope.function is not None and scope.owner is None else node.graph
        told = _Told()
        found = self.rule.match(
            self._context.model, container, node, check_nodes_are_removable=self.rule.remove_nodes, tracer=told,  # type: ignore[arg-type]
        )
        if found:
            others = [n for n in found.nodes if n is not node]
            return Match(node, [node, *others], {"rule": self.rule, "result": found})
        if told.condition is not None:
            return Match(node, [node], {"reason": _reason(told.condition, "a condition of the rule does not hold")})
        if found is not None and len(found.nodes) == self._nodes:  # all is there, but something else needs what is between
            return Match(node, [node], {"reason": _reason(found, "what it matches is used elsewhere")})
        return None


class _Told:
    """A tracer that keeps what a condition turned down: the only place where a rule says why."""

    def __init__(self) -> None:
        self.condition: Any = None

    def log(self, rule: RewriteRule, container: object, node: ir.Node, result: Any, status: Any) -> None:
        if status.name == "CONDITION_FAILED":
            self.condition = result


class _Driven:
    """What the driver asks of a rewrite."""

    def __init__(self, name: str, rules: Sequence[_Rule]) -> None:
        self.name = name
        self._rules = rules

    def patterns(self) -> Sequence[_Rule]:
        return self._rules

    def rewrite(self, match: Match, editor: Editor) -> None:
        if "reason" in match:
            raise Refuse(match["reason"])
        guards.same_graph(*match.nodes)
        rule, result = match["rule"], match["result"]
        made = rule._replacement_pattern.get_replacement(result)  # try_rewrite would change the imports before it is allowed
        if made is None:
            for value in dict.fromkeys(v for n in match.nodes for v in (*n.inputs, *n.outputs) if v is not None):
                drop_detached_uses(value)  # by nodes that were made before the rule gave up
            raise Refuse(_reason(result, "the rule makes nothing of it"))
        editor.adopt(made.new_nodes, made.new_initializers)
        if len(made.new_outputs) != len(result.outputs):
            raise ValueError(f"rule {rule}: {len(made.new_outputs)} values for the {len(result.outputs)} of its pattern")
        _check_imports(editor.context, match.root, made.used_opsets)
        if made.new_initializers and editor.context.scope(match.root).function is not None:
            raise Refuse("it needs an initializer, which a function cannot have")
        for old, new in zip(result.outputs, made.new_outputs):
            editor.replace(old, new)


def _check_imports(context: Context, node: ir.Node, used: Iterable[tuple[str, int | None]]) -> None:
    """Refuse what was written for another version of a domain than the model imports."""
    for domain, version in used:
        found = context.opset(node, domain)
        if version is not None and version != (found or 1):
            name = "ai.onnx" if domain in ONNX_DOMAINS else domain
            raise Refuse(f"its replacement is for version {version} of {name}, and the model has {found or 'none'}")


def _reason(result: Any, otherwise: str) -> str:
    """The reason of a failed match, with the first nodes and values at fault."""
    text = " ".join((result.reason or otherwise).split()).rstrip(".")
    sources = [s for s in result.failure_nodes_and_values if s is not None]
    names = dict.fromkeys(node_label(s) if isinstance(s, ir.Node) else (s.name or "?") for s in sources)
    shown = list(names)[:_SHOWN]
    return f"{text} ({', '.join(shown)})" if shown else text


@contextmanager
def _constants_as_rules_see_them(context: Context) -> Iterator[None]:
    """Rules take `const_value` for constants: it is set where Constant nodes stand, and hidden where a caller may override it."""
    context.shapes  # rules read the shapes of values
    for node in context.index.of_types(("Constant",)):
        for value in node.outputs[:1]:
            if value.const_value is None:
                value.const_value = constant_tensor(value)
    hidden = [(v, v.const_value) for v in context.model.graph.initializers.values() if v.is_graph_input()]
    for value, _ in hidden:
        value.const_value = None
    try:
        yield
    finally:
        for value, tensor in hidden:
            value.const_value = tensor
