"""What a pass is given of an ATen graph: the program, the log, an index by operator, shapes, types and constants."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import fx

from graphopt.aten.arrays import to_array
from graphopt.aten.layouts import same_layout
from graphopt.aten.program import Program, operator_of
from graphopt.rewriting.base import Refuse
from graphopt.rewriting.changes import ChangeLog

Dim = int | str
_MISSING = object()


class AtenContext:
    """One pass over one program.

    Passes need not import torch: operators are named by strings ("aten.conv2d.default"), constants are numpy arrays.

    Attributes:
        program: the graph, changed in place.
        log: what the pass applied and refused.
        notes: lines for the report that concern the model rather than a pass.
    """

    def __init__(self, program: Program, log: ChangeLog | None = None, previous: AtenContext | None = None) -> None:
        self.program = program
        self.log = log if log is not None else ChangeLog("")
        self.notes: list[str] = previous.notes if previous is not None else []
        self._index: dict[str, dict[fx.Node, None]] | None = previous._index if previous is not None else None

    def invalidate(self, *, shapes: bool = False) -> None:
        """Forget the index after changes that did not go through the editor."""
        self._index = None

    # --- nodes --------------------------------------------------------------------------------------------------

    @property
    def graph(self) -> fx.Graph:
        """The main graph."""
        return self.program.graph

    @property
    def index(self) -> dict[str, dict[fx.Node, None]]:
        """The nodes of the main graph by operator, in order of appearance; built when first asked for."""
        if self._index is None:
            self._index = {}
            for node in self.graph.nodes:
                self._index.setdefault(operator_of(node), {})[node] = None
        return self._index

    def of(self, operators: Iterable[str]) -> list[fx.Node]:
        """The nodes of the given operators, by operator and then in order of appearance."""
        return [node for name in operators for node in self.index.get(name, ())]

    def added(self, node: fx.Node) -> None:
        """Enter a new node."""
        self.index.setdefault(operator_of(node), {})[node] = None

    def removed(self, node: fx.Node) -> None:
        """Forget a node that is removed."""
        self.index.get(operator_of(node), {}).pop(node, None)

    def op(self, node: Any) -> str:
        """The operator of a node ("aten.conv2d.default", "getitem", "placeholder", "output"); "" for what is no node."""
        return operator_of(node) if isinstance(node, fx.Node) else ""

    def arguments(self, node: fx.Node) -> dict[str, Any]:
        """The arguments of an operator by the names of its schema, defaults filled in; nodes, numbers, lists, None.

        An operator without a schema (getitem) gives {"0": ..., "1": ...}.
        """
        if not isinstance(node.target, torch._ops.OpOverload):
            return {str(i): a for i, a in enumerate(node.args)}
        found = {}
        for i, argument in enumerate(node.target._schema.arguments):
            if i < len(node.args) and not argument.kwarg_only:
                found[argument.name] = node.args[i]
            elif argument.name in node.kwargs:
                found[argument.name] = node.kwargs[argument.name]
            elif argument.has_default_value():
                found[argument.name] = argument.default_value
        return found

    def users(self, node: fx.Node) -> list[fx.Node]:
        """Who takes the value: operators, and the output node where it is returned or stored in a buffer."""
        return list(node.users)

    def is_output(self, node: fx.Node) -> bool:
        """Whether the value is returned, or stored in a buffer, by the program."""
        return self.program.output in node.users

    def is_input(self, node: Any) -> bool:
        """Whether a node is a placeholder for what the caller gives."""
        return isinstance(node, fx.Node) and node.op == "placeholder" and self.program.name_of(node) is None

    # --- types and shapes ---------------------------------------------------------------------------------------

    def shape(self, node: Any) -> tuple[Dim, ...] | None:
        """The shape of a tensor: an int or the text of a symbolic expression a dimension; None: not a single tensor."""
        value = _value(node)
        return tuple(d if isinstance(d, int) else str(d) for d in value.shape) if isinstance(value, torch.Tensor) else None

    def static_shape(self, node: Any) -> tuple[int, ...] | None:
        """The shape where every dimension is a known number, or None."""
        dims = self.shape(node)
        return None if dims is None or any(not isinstance(d, int) for d in dims) else dims  # type: ignore[return-value]

    def rank(self, node: Any) -> int | None:
        """The number of dimensions, or None for what is not a single tensor."""
        dims = self.shape(node)
        return None if dims is None else len(dims)

    def strides(self, node: Any) -> tuple[Dim, ...] | None:
        """The strides of a tensor, as `shape` gives the shape."""
        value = _value(node)
        return tuple(d if isinstance(d, int) else str(d) for d in value.stride()) if isinstance(value, torch.Tensor) else None

    def dtype(self, node: Any) -> str | None:
        """The element type by torch's name without the prefix ("float32", "bool"); None for what is not a tensor."""
        value = _value(node)
        return str(value.dtype).removeprefix("torch.") if isinstance(value, torch.Tensor) else None

    def device(self, node: Any) -> str | None:
        """The device of a tensor ("cpu", "cuda:0"); None for what is not a tensor."""
        value = _value(node)
        return str(value.device) if isinstance(value, torch.Tensor) else None

    def alike(self, a: Any, b: Any) -> bool:
        """Whether two tensors are of one type, shape and device, and lie alike in memory."""
        if self.shape(a) is None or any(ask(a) != ask(b) for ask in (self.shape, self.dtype, self.device)):
            return False
        return same_layout(_value(a), _value(b))

    # --- constants ----------------------------------------------------------------------------------------------

    def constant(self, node: Any) -> np.ndarray | None:
        """The data of a parameter, a buffer or a constant that no call changes, read only; None for everything else.

        A type that numpy lacks gives None too.
        """
        tensor = self.program.constant(node)
        return None if tensor is None else to_array(tensor)

    def weight_bytes(self, node: Any) -> int:
        """The size of a constant tensor; 0 for everything else."""
        tensor = self.program.constant(node)
        return 0 if tensor is None else tensor.numel() * tensor.element_size()

    def is_constant(self, node: Any) -> bool:
        """Whether `constant` may have data for it; none are read."""
        return self.program.constant(node) is not None

    def required(self, node: Any, what: str) -> np.ndarray:
        """The data of a constant called `what` ("the weight"), or a refusal that says why there is none."""
        found = self.constant(node)
        if found is not None:
            return found
        name = self.program.name_of(node) if isinstance(node, fx.Node) else None
        if name is not None and name in self.program.mutated:
            raise Refuse(f"{what} {name!r} changes from call to call")
        if name is not None:
            raise Refuse(f"{what} {name!r} is of a type that cannot be folded")
        raise Refuse(f"{what} is not constant")

    def required_float(self, node: Any, what: str) -> np.ndarray:
        """The data of a constant of a real floating-point type."""
        array = self.required(node, what)
        if self.dtype(node) not in ("float16", "bfloat16", "float32", "float64"):
            raise Refuse(f"{what} is {self.dtype(node)}, not a type that can be folded")
        return array

    # --- guards -------------------------------------------------------------------------------------------------

    def only_user(self, node: fx.Node, what: str, user: fx.Node) -> None:
        """Refuse unless `user` alone takes the value of `node`, and the program does not return or store it."""
        if self.is_output(node):
            raise Refuse(f"{what} {node.name!r} is also an output of the program")
        others = [n.name for n in node.users if n is not user]
        if others:
            shown = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
            raise Refuse(f"{what} {node.name!r} has {len(node.users)} users: also {shown}")

    def require(self, condition: bool, reason: str) -> None:
        """Refuse unless `condition` holds."""
        if not condition:
            raise Refuse(reason)


def _value(node: Any) -> Any:
    return node.meta.get("val") if isinstance(node, fx.Node) else None
