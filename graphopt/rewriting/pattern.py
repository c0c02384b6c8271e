"""Patterns over `onnx_ir` values, matched backwards from a root node.

    op("BatchNormalization", op(("Conv", "Gemm"), bind="linear"), ..., bind="bn")

matches a BatchNormalization whose first input is produced by a Conv or a Gemm. Patterns state structure only; whether
a match may be rewritten (consumers, types, constants that a caller may override) is for guards, which refuse with a
reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import EllipsisType
from typing import Any

import onnx_ir as ir

from graphopt.rewriting.constants import constant_tensor

ONNX_DOMAINS = ("", "ai.onnx")


@dataclass
class Match:
    """A place where a pattern holds.

    Attributes:
        root: the node that the match was found at.
        nodes: all nodes matched by an `op`, the root first.
        bound: what each `bind` name stands for: a node for `op`, a value (or None, an omitted input) for the others.
    """

    root: ir.Node
    nodes: list[ir.Node] = field(default_factory=list)
    bound: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.bound[name]

    def __contains__(self, name: str) -> bool:
        return name in self.bound


@dataclass(frozen=True)
class Pattern:
    """An operator with patterns for its leading inputs. Built with `op`."""

    types: tuple[str, ...]
    inputs: tuple[ValuePattern, ...] | None
    open_ended: bool
    domain: str
    bind: str | None
    commutative: bool
    where: Callable[[ir.Node], bool] | None

    @property
    def depth(self) -> int:
        """The number of operators on the longest path from the root."""
        return 1 + max((p.depth for p in self.inputs or () if isinstance(p, Pattern)), default=0)

    def match(self, node: ir.Node) -> Match | None:
        """The match at `node`, or None. Cost: the size of the pattern, times 2 per commutative operator in it."""
        match = Match(node)
        return match if self._node(node, match) else None

    def _node(self, node: ir.Node, match: Match) -> bool:
        if node.op_type not in self.types or not same_domain(node.domain, self.domain):
            return False
        if self.where is not None and not self.where(node):
            return False
        if self.inputs is None:
            orders: Sequence[Sequence[ir.Value | None]] = ((),)
        else:
            actual = tuple(node.inputs)
            count = len(self.inputs)
            if len(actual) < count:
                actual += (None,) * (count - len(actual))  # trailing optional inputs may be left out
            elif len(actual) > count and not self.open_ended and any(v is not None for v in actual[count:]):
                return False
            orders = ((actual, (actual[1], actual[0], *actual[2:])) if self.commutative and count >= 2 else (actual,))
        mark, bound = len(match.nodes), match.bound
        for order in orders:
            match.nodes.append(node)
            match.bound = dict(bound)
            if self.bind:
                match.bound[self.bind] = node
            for pattern, value in zip(self.inputs or (), order):
                if not pattern._value(value, match):
                    break
            else:
                return True
            del match.nodes[mark:]
        match.bound = bound
        return False

    def _value(self, value: ir.Value | None, match: Match) -> bool:
        producer = value.producer() if value is not None else None
        return producer is not None and self._node(producer, match)


@dataclass(frozen=True)
class ValuePattern:
    """Any value, or only a constant one. Built with `var` and `const`."""

    bind: str | None
    constant: bool = False
    optional: bool = False

    def _value(self, value: ir.Value | None, match: Match) -> bool:
        if value is None and not self.optional:
            return False
        if self.constant and constant_tensor(value) is None and not (value is None and self.optional):
            return False
        if self.bind:
            if self.bind in match.bound and match.bound[self.bind] is not value:
                return False  # one name used twice means the same value twice
            match.bound[self.bind] = value
        return True


def op(
    types: str | Sequence[str],
    *inputs: Pattern | ValuePattern | EllipsisType,
    bind: str | None = None,
    domain: str = "",
    commutative: bool = False,
    where: Callable[[ir.Node], bool] | None = None,
) -> Pattern:
    """A node of one of `types` whose leading inputs match `inputs`.

    No `inputs` at all: any. A final `...`: further inputs may follow. `commutative`: the first two inputs in either
    order. `where`: a further test of the node, for attributes.
    """
    open_ended = bool(inputs) and inputs[-1] is ...
    given = tuple(i for i in inputs if i is not ...)
    return Pattern((types,) if isinstance(types, str) else tuple(types), given or None, open_ended, domain, bind, commutative, where)


def var(bind: str | None = None, *, optional: bool = False) -> ValuePattern:
    """Any value; with `optional`, also an omitted input (bound to None)."""
    return ValuePattern(bind, optional=optional)


def const(bind: str | None = None, *, optional: bool = False) -> ValuePattern:
    """A value known before the model runs: an initializer that no caller can override, or a Constant node's output."""
    return ValuePattern(bind, constant=True, optional=optional)


def same_domain(a: str, b: str) -> bool:
    """Whether two operator domains are one; "" and "ai.onnx" are."""
    return a == b or (a in ONNX_DOMAINS and b in ONNX_DOMAINS)
