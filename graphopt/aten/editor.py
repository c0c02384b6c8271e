"""How a rewrite of an ATen graph states its replacement: staged, and undone where a guard refuses after all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from graphopt.aten import aliasing
from graphopt.aten.arrays import to_tensor
from graphopt.aten.context import AtenContext
from graphopt.aten.layouts import relaid, same_layout, substituted
from graphopt.rewriting.base import Refuse


class AtenEditor:
    """The changes that one application of a rewrite makes at `root`.

    New nodes stand before `root`, in the order in which they were made. Look at users before anything is staged: staged
    nodes are users too. Nodes that end without users are removed with what only they used; so are their tensors.
    """

    def __init__(self, context: AtenContext, root: fx.Node) -> None:
        self.context = context
        self.root = root
        self.created: list[fx.Node] = []
        self.constants: list[fx.Node] = []
        self.replacements: list[tuple[fx.Node, fx.Node]] = []
        self.updates: list[tuple[fx.Node, str, Any]] = []
        self.relaid: dict[fx.Node, Any] = {}

    # --- statements ---------------------------------------------------------------------------------------------

    def call(
        self, operator: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, *, like: fx.Node | None = None
    ) -> fx.Node:
        """A new node that calls an operator, "aten.conv2d.default"; its type and shape are worked out, or those of `like`.

        Raises:
            Refuse: the operator does not take such arguments.
        """
        target = operator_named(operator)
        with self.context.graph.inserting_before(self.root):
            node = self.context.graph.call_function(target, tuple(args), dict(kwargs or {}))
        for key in ("nn_module_stack", "stack_trace", "from_node"):
            if key in self.root.meta:
                node.meta[key] = self.root.meta[key]
        self.created.append(node)  # before anything that can raise: what is created is what is discarded
        if like is not None:
            node.meta["val"] = like.meta["val"]
            return node
        try:
            node.meta["val"] = self._inferred(node, {})
        except Exception as error:
            text = (str(error) or type(error).__name__).splitlines()[0]
            raise Refuse(f"{operator} does not take its place: {text}") from error
        return node

    def constant(
        self, data: np.ndarray | torch.Tensor, name: str, *, made_of: Sequence[fx.Node] = (), parameter: bool | None = None
    ) -> fx.Node:
        """A new tensor of the program, under `name` or one made from it.

        Args:
            data: its elements; kept where they are contiguous and writable.
            name: as in a state dict: "layer.weight_folded".
            made_of: placeholders that it was computed from; the report maps the names.
            parameter: whether it is a parameter; None: where the first of `made_of` is one.
        """
        program = self.context.program
        if parameter is None:
            parameter = bool(made_of) and program.is_parameter(made_of[0])
        tensor = data if isinstance(data, torch.Tensor) else to_tensor(data)
        parameter = parameter and tensor.dtype.is_floating_point
        node = program.add_constant(tensor, name, parameter=parameter, made_of=made_of)
        self.constants.append(node)
        return node

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """Let every user of `old`, outputs included, take `new`, which stands before all of them."""
        self.replacements.append((old, new))

    def set_argument(self, node: fx.Node, name: str, value: Any) -> None:
        """Give an existing operator another argument, by the name of its schema."""
        self.updates.append((node, name, value))

    @property
    def empty(self) -> bool:
        """Whether nothing was stated that would change the graph."""
        return not (self.replacements or self.updates)

    # --- carrying out -------------------------------------------------------------------------------------------

    def discard(self) -> None:
        """Undo the staging."""
        for node in reversed(self.created):
            self.context.graph.erase_node(node)
        for node in self.constants:
            self.context.program.drop_constant(node)

    def check(self) -> None:
        """Turn down, before anything changes, what would not fit.

        Raises:
            Refuse: a new value has another shape or type, lies in memory as an operator behind it cannot take it, or a
                caller would see memory shared that was not.
        """
        context = self.context
        for old, new in self.replacements:
            if not isinstance(old.meta.get("val"), torch.Tensor):
                continue
            if context.dtype(old) != context.dtype(new) or not _same_shape(context, old, new):
                raise Refuse(
                    f"the replacement would be {context.dtype(new)}{_text(context.shape(new))}, "
                    f"not {context.dtype(old)}{_text(context.shape(old))}"
                )
            aliasing.guard(context, old, new)
            if not same_layout(old.meta["val"], new.meta["val"]):
                self.relaid.update(relaid(old, new, self._inferred))

    def commit(self) -> list[fx.Node]:
        """Carry out what was stated; the nodes that were made or changed."""
        context, touched = self.context, []
        loose: list[fx.Node] = []
        for node in self.created:
            context.added(node)
            touched.append(node)
        for node in self.constants:
            context.added(node)
        made = frozenset(self.created)
        for old, new in self.replacements:
            touched += [n for n in old.users if n is not context.program.output]
            old.replace_all_uses_with(new, delete_user_cb=lambda user: user not in made)  # the new ones may read the old value
            loose.append(old)
        for node, value in self.relaid.items():
            node.meta["val"] = value
        for node, name, value in self.updates:
            loose += node.all_input_nodes
            _set_argument(node, name, value)
            touched.append(node)
        replaced = [self.root, *(old for old, _ in self.replacements)]  # a dropout counts as random, in training mode or not
        gone = remove_unused(context, [self.root, *loose, *self.created, *self.constants], in_spite=replaced)
        context.log.provenance([n for n in self.created if n not in gone], [*gone] or [self.root])
        return [n for n in dict.fromkeys(touched) if n not in gone]

    def _inferred(self, node: fx.Node, changed: dict[fx.Node, Any]) -> Any:
        args, kwargs = substituted(node, changed)
        with self.context.program.fake_mode:
            return node.target(*args, **kwargs)  # type: ignore[operator]


def remove_unused(context: AtenContext, candidates: Sequence[fx.Node], *, in_spite: Sequence[fx.Node] = ()) -> dict[fx.Node, None]:
    """Remove those of `candidates` that have no users and no effect, and what only they used; what was removed.

    Those of `in_spite` have an effect and go all the same.
    """
    given = frozenset(in_spite)
    gone: dict[fx.Node, None] = {}
    todo = list(candidates)
    while todo:
        node = todo.pop()
        if node in gone or node.users or node.op == "output":
            continue
        if node.op == "placeholder":
            if context.program.constant(node) is not None:
                context.removed(node)
                context.program.drop_constant(node)
                gone[node] = None
            continue
        if node not in given and node.is_impure():
            continue
        inputs = node.all_input_nodes
        context.removed(node)
        context.graph.erase_node(node)
        gone[node] = None
        todo += inputs
    return gone


def operator_named(name: str) -> Any:
    """The operator of that name: "aten.conv2d.default", or "getitem".

    Raises:
        LookupError: there is none.
    """
    if name == "getitem":
        import operator

        return operator.getitem
    try:
        namespace, packet, overload = name.split(".")
        return getattr(getattr(getattr(torch.ops, namespace), packet), overload)
    except (ValueError, AttributeError):
        raise LookupError(f"torch has no operator {name}") from None


def _set_argument(node: fx.Node, name: str, value: Any) -> None:
    for i, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if argument.name != name:
            continue
        if argument.kwarg_only or name in node.kwargs or i > len(node.args):
            node.update_kwarg(name, value)
        elif i == len(node.args):
            node.args = (*node.args, value)
        else:
            node.update_arg(i, value)
        return
    raise LookupError(f"{node.target} has no argument {name}")


def _same_shape(context: AtenContext, old: fx.Node, new: fx.Node) -> bool:
    a, b = context.shape(old), context.shape(new)
    return a is not None and b is not None and len(a) == len(b) and all(x == y for x, y in zip(a, b))


def _text(shape: Any) -> str:
    return "" if shape is None else f"[{', '.join(str(d) for d in shape)}]"
