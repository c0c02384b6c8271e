"""`fold-constants` and `fold-float-constants` on ATen graphs: what depends on constants alone is computed once, by torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphopt.rewriting import Refuse

from .linear import folded_name

if TYPE_CHECKING:
    from torch.fx import Node

    from graphopt.aten import AtenContext, AtenEditor

# Movement of data, whole numbers, comparisons, and the operations that IEEE 754 rounds in one way.
_NAMES = """
_to_copy _unsafe_view abs add alias amax amin arange argmax argmin as_strided bitwise_and bitwise_left_shift bitwise_not
bitwise_or bitwise_right_shift bitwise_xor cat ceil chunk clamp clone constant_pad_nd contiguous detach diagonal div
embedding eq expand expand_as eye fill flatten flip floor floor_divide full full_like gather ge gt index index_select
isinf isnan le logical_and logical_not logical_or logical_xor lt masked_fill maximum minimum movedim mul narrow ne neg
new_full new_ones new_zeros ones ones_like pad permute reciprocal relu remainder repeat repeat_interleave reshape roll
round rsub scalar_tensor scatter select select_scatter sign slice slice_scatter split split_with_sizes sqrt squeeze
stack sub t tile to transpose tril triu type_as unbind unflatten unsqueeze view view_as where zeros zeros_like
"""
_EXACT = frozenset(_NAMES.split())
_NARROW = ("int8", "uint8", "int16", "uint16")
_SMALL = 1024  # bytes up to which narrow integers are no weights
_KEPT = 1 << 16  # bytes up to which a value is kept for the next that needs it
_LARGE = 1 << 28  # bytes of a value on the way
_NODE_BYTES = 64  # what an operator takes in a file, about
_SPENT = "graphopt.folding.spent"


def run(context: AtenContext, growth: int, total: float, *, exact: bool) -> None:
    """Fold what is needed and may be folded: operators of exact results, or any that are a function of their arguments."""
    _Folder(context, growth, total, exact).run()


class _Folder:
    """One run over a program."""

    def __init__(self, context: AtenContext, growth: int, total: float, exact: bool) -> None:
        self.context, self.growth, self.exact = context, growth, exact
        self.known: dict[Node, Any] = {}
        weights = sum(context.weight_bytes(n) for n in context.program.specs)
        self.limit, self.spent = context.program.meta.get(_SPENT, (int(total * weights), 0))
        self.net = 0
        self.foldable: dict[Node, None] = {}

    def run(self) -> None:
        """Mark, then fold from where a value is needed, and what it is made of where that may not be."""
        from graphopt.aten.driver import apply

        for node in self.context.graph.nodes:
            if node.op == "call_function" and self._is_constant(node):
                self.foldable[node] = None
        pending = [n for n in self.foldable if any(u not in self.foldable for u in n.users)][::-1]
        seen = set(pending)
        while pending:
            node = pending.pop()
            if node not in self.foldable or not node.users:
                continue
            apply(self.context, node, self._fold)
            if not node.users:
                self.spent += self.net
                continue
            for source in reversed(node.all_input_nodes):
                if source in self.foldable and source not in seen:
                    seen.add(source)
                    pending.append(source)
        self.context.program.meta[_SPENT] = self.limit, self.spent

    def _is_constant(self, node: Node) -> bool:
        from graphopt.aten.evaluation import can_evaluate

        context, operator = self.context, self.context.op(node)
        name = operator.split(".")[1] if "." in operator else operator
        if operator != "getitem" and self.exact and not self._is_exact(node, name):
            return False
        if not can_evaluate(node) or not all(n in self.foldable or context.is_constant(n) for n in node.all_input_nodes):
            return False
        widened = (context.dtype(node) or "bool") not in (*_NARROW, "bool")  # a cast, or a product with scales
        apart = name.startswith("bitwise") or name == "sub"  # what is packed is taken apart, and moved by its zero points
        narrow = (widened or apart) and any(context.dtype(n) in _NARROW and _size(n) > _SMALL for n in node.all_input_nodes)
        if narrow:
            context.log.refuse(node, "its weights are kept in their narrow type")
            return False
        return True

    def _is_exact(self, node: Node, name: str) -> bool:
        if name not in _EXACT:
            return False
        return name not in ("add", "sub") or self.context.arguments(node).get("alpha", 1) in (1, 2)

    def _fold(self, node: Node, editor: AtenEditor) -> None:
        from graphopt.aten.evaluation import nbytes, stored

        context, size = self.context, nbytes(node)
        if size is None or self._only_views(node):
            return
        sources, nodes = self._freed(node)
        freed = sum(context.weight_bytes(s) for s in sources)
        net = size - freed - _NODE_BYTES * nodes
        if net > self.growth:
            raise Refuse(f"folded it would take {size:,} bytes in the place of {freed:,}")
        self.net = net if net > 0 and size > _SMALL else 0
        if self.net and self.spent + net > self.limit:
            raise Refuse(f"folded it would take {size:,} bytes in the place of {freed:,}; the model may grow by {self.limit:,} in all")
        try:
            tensor = stored(self._value(node))
        except Refuse:
            raise
        except Exception as error:
            raise Refuse(f"it cannot be evaluated: {(str(error) or type(error).__name__).splitlines()[0]}") from error
        made_of = self._made_of(node)
        name = context.program.name_of(made_of[0]) if made_of else None
        constant = editor.constant(tensor, folded_name(name) if name else f"folded_{node.name}", made_of=made_of)
        editor.replace(node, constant)

    def _only_views(self, node: Node) -> bool:
        """Whether a value is a constant looked at in another way: nothing is computed, and nothing would be gained."""
        from graphopt.aten.evaluation import is_view

        while is_view(node):
            node = node.all_input_nodes[0]
        return node.op == "placeholder"

    def _freed(self, node: Node) -> tuple[list[Node], int]:
        """The constants that only `node` needs, by way of nodes that only it needs, and the number of these, itself too."""
        constants, count, todo, left = [], 0, [node], {}
        while todo:
            at = todo.pop()
            count += 1
            for source in at.all_input_nodes:
                left[source] = left.get(source, len(source.users)) - 1
                if left[source] == 0:
                    constants.append(source) if source.op == "placeholder" else todo.append(source)
        return constants, count

    def _made_of(self, node: Node) -> list[Node]:
        found: dict[Node, None] = {}
        seen, todo = {node}, [node]
        while todo:
            for source in todo.pop().all_input_nodes:
                if source.op == "placeholder":
                    found[source] = None
                elif source not in seen:
                    seen.add(source)
                    todo.append(source)
        return [n for n in self.context.program.specs if n in found]

    def _value(self, node: Node) -> Any:
        """What a foldable node gives; what it is made of is computed first, without recursion."""
        from graphopt.aten.evaluation import evaluate, nbytes

        todo = [node]
        while todo:
            at = todo[-1]
            missing = [n for n in at.all_input_nodes if n.op != "placeholder" and n not in self.known]
            if at in self.known:
                todo.pop()
            elif missing:
                todo += missing
            else:
                if (nbytes(at) or 0) > _LARGE:
                    raise Refuse(f"{at.name!r}, which it is made of, would take {nbytes(at):,} bytes")
                self.known[at] = evaluate(at, self.context, self.known)
                todo.pop()
        found = self.known[node]
        self.known = {n: v for n, v in self.known.items() if nbytes(n) is not None and nbytes(n) <= _KEPT}
        return found


def _size(node: Node) -> int:
    from graphopt.aten.evaluation import nbytes

    return nbytes(node) or 0
