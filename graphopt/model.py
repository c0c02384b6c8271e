"""The model: a graph, its kind, and where it came from.

There is one graph in memory, an :class:`onnx_ir.Model`; :class:`Model` only says what that graph is and how to get
an untouched copy of it. Reading and writing files is the business of :mod:`graphopt.formats`.

Keys in ``meta`` that the engine and the formats agree on (``meta`` never reaches a file):

``value.meta["graphopt.inferred"] = True``
    The type and shape of this value were worked out by shape inference. They are not written.
``value.meta["graphopt.declared"] = (type, shape)``
    What the file declared for this value, where inference replaced it. This is what is written.
``value.meta["graphopt.kept"] = {axis: mask}``
    What is left of this value of what it was when the model was loaded, where channels were cut.
``value.meta["graphopt.in-float"] = {"mean": array, ...}``
    What was found of this value before anything was narrowed; a value that is made `like` this one has it too.
``value.meta["graphopt.rounded"] = (integers, scale, axis)``
    What a weight is to be rounded to: int8, one scale for each index along the axis, in the type of the weight.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from graphopt.errors import InputError

INFERRED = "graphopt.inferred"
DECLARED = "graphopt.declared"
KEPT = "graphopt.kept"
SALIENCE = "graphopt.salience"
IN_FLOAT = "graphopt.in-float"
ROUNDED = "graphopt.rounded"


@dataclass
class Model:
    """A graph, its kind, and where it came from.

    ``graph`` is an :class:`onnx_ir.Model`; where ``kind`` is "torch" it is a :class:`graphopt.aten.Program`.
    ``notes`` are remarks of the loader for the report: what was tolerated, and how it was read.
    """

    graph: ir.Model
    kind: str = "onnx"
    path: Path | None = None
    notes: list[str] = field(default_factory=list)
    #: (size, mtime_ns) of every file the graph was read from; tensors may still be read from them.
    stamps: dict[Path, tuple[int, int]] = field(default_factory=dict, repr=False)
    #: An untouched clone, for a model that has no file to be read from again.
    pristine: ir.Model | None = field(default=None, repr=False)
    #: What was asked for right after loading (shapes fixed, initializers that are inputs no more): part of "as it was loaded".
    prepared: list[Callable[[Model], None]] = field(default_factory=list, repr=False)

    @classmethod
    def from_ir(cls, graph: ir.Model, *, path: Path | None = None) -> Model:
        """A model that was built in memory. A clone that shares its tensors is kept for :meth:`fresh`."""
        return cls(graph, path=path, pristine=graph.clone())

    def fresh(self) -> Model:
        """An independent copy of the model as it was loaded. Tensors are shared or read again lazily, never copied.

        Raises:
            InputError: the file, or a data file it refers to, was changed or removed since it was loaded.
        """
        if self.pristine is not None:
            copy = Model(self.pristine.clone(), self.kind, self.path, list(self.notes), pristine=self.pristine)
        else:
            from graphopt.formats import load_model  # the formats know Model; this is the one way back

            if self.path is None:
                raise InputError("this model has neither a file nor a copy kept in memory: build it with Model.from_ir")
            self.check_unchanged()
            copy = load_model(self.path)
        for step in self.prepared:
            copy.prepare(step)
        return copy

    def prepare(self, step: Callable[[Model], None]) -> None:
        """Does ``step`` to the model and makes it part of "as it was loaded": :meth:`fresh` does it again."""
        step(self)
        self.prepared.append(step)

    def check_unchanged(self) -> None:
        """Raises InputError where a file that the graph was read from is not the file it was."""
        for path, stamp in self.stamps.items():
            if file_stamp(path) != stamp:
                raise InputError(f"{path}: the file was changed or removed while graphopt was working on it")


def file_stamp(path: os.PathLike | str) -> tuple[int, int] | None:
    """(size, mtime_ns) of a file, None where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def subgraphs_of(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs that a node carries in its attributes (If, Loop, Scan, SequenceMap, custom ones), in order."""
    for attr in node.attributes.values():
        if attr.type == ir.AttributeType.GRAPH and not attr.is_ref():
            yield attr.value
        elif attr.type == ir.AttributeType.GRAPHS and not attr.is_ref():
            yield from attr.value


def iter_graphs(model: ir.Model) -> list[ir.Graph]:
    """The main graph, the graphs nested in it, then each function's graph with those nested in it.

    A graph comes before the graphs inside it, those in the order of the nodes that carry them; functions come in the
    order of the file. The list is complete when it is returned, so graphs may be rewritten while walking it.
    """
    return list(_nested([model.graph, *(function.graph for function in model.functions.values())]))


def count_nodes(model: ir.Model) -> int:
    """Nodes of the main graph, of all graphs nested in it, and of the functions in use with theirs."""
    total, seen = 0, set()
    todo = list(_nested([model.graph]))
    while todo:
        graph = todo.pop()
        total += len(graph)
        for node in graph if model.functions else ():
            identifier = node.op_identifier()
            function = model.functions.get(identifier)
            if function is not None and identifier not in seen:
                seen.add(identifier)
                todo.extend(_nested([function.graph]))
    return total


def _nested(graphs: Iterable[ir.Graph]) -> Iterator[ir.Graph]:
    # An explicit stack: nesting is data from a file and must not be able to exhaust Python's.
    stack = list(graphs)[::-1]
    while stack:
        graph = stack.pop()
        yield graph
        inner = []
        for node in graph:
            for attr in node.attributes.values():  # inline, not subgraphs_of: this runs over every node of a model
                if attr.type in _GRAPHS:
                    inner.extend(subgraphs_of(node))
                    break
        stack.extend(reversed(inner))
