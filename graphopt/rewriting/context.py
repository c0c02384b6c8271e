"""What a pass is given: the model, the log, and analyses that are cached and kept up to date."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import CalibrationError
from graphopt.rewriting.changes import ChangeLog
from graphopt.rewriting.constants import constant_tensor
from graphopt.rewriting.pattern import ONNX_DOMAINS
from graphopt.rewriting.shapes import Dim, ShapeAnalysis

if TYPE_CHECKING:
    from graphopt.calibration import Calibration, Statistics
    from graphopt.measurement import Target
    from graphopt.rewriting.rows import Rows


@dataclass(frozen=True)
class Tools:
    """What a run has for its passes beyond the model.

    Attributes:
        calibration: statistics on the calibration samples; None where the run has none.
        target: where the result will run; None where nobody said.
        known: what passes worked out, see `once`.
    """

    calibration: Calibration | None = None
    target: Target | None = None
    known: dict[Hashable, Any] = field(default_factory=dict)

    def once(self, key: Hashable, work: Callable[[], Any]) -> Any:
        """What `work` gives, from an earlier replay of the run where it was worked out under that key before.

        The key must hold all that the result follows from: options, and digests of weights and statistics.
        """
        if key not in self.known:
            self.known[key] = work()
        return self.known[key]


@dataclass(frozen=True)
class Scope:
    """Where a graph stands.

    Attributes:
        opsets: opset versions by domain in force in the graph ("" for the standard one).
        owner: the node that holds the graph as an attribute; None for a model's main graph and a function's body.
        function: the local function that the graph belongs to, or None.
    """

    opsets: dict[str, int]
    owner: ir.Node | None
    function: ir.Function | None


class Index:
    """All graphs and nodes of a model, by operator; built by one walk, kept up to date by the editor."""

    def __init__(self, model: ir.Model) -> None:
        self.scopes: dict[ir.Graph, Scope] = {}
        self._names: set[str] = set()
        self._counters: dict[str, int] = {}
        self._by_type: dict[str, dict[ir.Node, None]] = {}
        self._add_graph(model.graph, Scope(_normal(model.opset_imports), None, None))
        for function in model.functions.values():
            self._add_graph(function.graph, Scope(_normal(function.opset_imports), None, function))

    def _add_graph(self, graph: ir.Graph, scope: Scope) -> None:
        pending = [(graph, scope)]
        while pending:  # a stack, not recursion: nesting is data
            graph, scope = pending.pop()
            self.scopes[graph] = scope
            self._names.update(v.name for v in graph.inputs if v.name)
            self._names.update(graph.initializers)
            for node in graph:
                self.add(node)
                for attribute in node.attributes.values():
                    for inner in attribute_graphs(attribute):
                        pending.append((inner, Scope(scope.opsets, node, scope.function)))

    def add(self, node: ir.Node) -> None:
        """Enter a node; its subgraphs must be known already."""
        self._by_type.setdefault(node.op_type, {})[node] = None
        if node.name:
            self._names.add(node.name)
        self._names.update(v.name for v in node.outputs if v.name)

    def drop(self, node: ir.Node) -> None:
        """Forget a node that was removed."""
        self._by_type.get(node.op_type, {}).pop(node, None)

    def of_types(self, types: Iterator[str] | tuple[str, ...]) -> list[ir.Node]:
        """The nodes of the given operator types (any domain), by type and then in order of appearance."""
        return [node for t in types for node in self._by_type.get(t, ())]

    def fresh_name(self, hint: str) -> str:
        """A name that no value and no node of the model bears, made from `hint`."""
        if hint and hint not in self._names:
            self._names.add(hint)
            return hint
        count = self._counters.get(hint, 0)
        while True:
            count += 1
            name = f"{hint}_{count}"
            if name not in self._names:
                self._counters[hint] = count
                self._names.add(name)
                return name


class Context:
    """One pass over one model.

    Attributes:
        model: the graph, changed in place.
        log: what the pass applied and refused.
        notes: lines for the report that concern the model rather than a pass.
        tools: what the run has beyond the model.
    """

    def __init__(
        self, model: ir.Model, log: ChangeLog | None = None, previous: Context | None = None, tools: Tools | None = None
    ) -> None:
        self.tools = tools or (previous.tools if previous is not None else Tools())
        self.model = model
        self.log = log if log is not None else ChangeLog("")
        self._index = previous._index if previous is not None else None
        self._shapes = previous._shapes if previous is not None else None
        self.notes: list[str] = previous.notes if previous is not None else []

    # --- analyses -----------------------------------------------------------------------------------------------

    @property
    def index(self) -> Index:
        """All nodes by operator; built when first asked for."""
        if self._index is None:
            self._index = Index(self.model)
        return self._index

    @property
    def shapes(self) -> ShapeAnalysis:
        """Shapes and known values; inferred when first asked for."""
        if self._shapes is None:
            self._shapes = ShapeAnalysis(self.model)
            self.notes.extend(self._shapes.conflicts)
        return self._shapes

    def invalidate(self, *, shapes: bool = False) -> None:
        """Forget the index after changes that did not go through the editor, and with `shapes` what was inferred."""
        self._index = None
        if shapes:
            self._shapes = None

    # --- questions ----------------------------------------------------------------------------------------------

    def scope(self, node: ir.Node) -> Scope:
        """Where the graph of `node` stands."""
        assert node.graph is not None, f"{node.name} is not in a graph"
        return self.index.scopes[node.graph]

    def opset(self, node: ir.Node, domain: str | None = None) -> int:
        """The opset version in force at `node` for its own domain, or for `domain`; 0 where it is not imported."""
        wanted = node.domain if domain is None else domain
        return self.scope(node).opsets.get("" if wanted in ONNX_DOMAINS else wanted, 0)

    def import_domain(self, node: ir.Node, domain: str) -> None:
        """Let the model, or the function that `node` stands in, import a domain, at version 1 where it does not yet."""
        scope = self.scope(node)
        if domain in ONNX_DOMAINS or domain in scope.opsets:
            return
        scope.opsets[domain] = 1  # one dict for a graph and all that are nested in it
        (self.model if scope.function is None else scope.function).opset_imports[domain] = 1

    def dims(self, value: ir.Value | None) -> tuple[Dim, ...] | None:
        """The inferred shape of a value: an int or a symbolic expression (str) a dimension; None: rank unknown."""
        tensor = constant_tensor(value)
        if tensor is not None:
            return tuple(tensor.shape.numpy())
        return self.shapes.dims(value)

    def static_dims(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """The shape of a value where every dimension is a known number, or None."""
        dims = self.dims(value)
        return None if dims is None or any(not isinstance(d, int) for d in dims) else dims  # type: ignore[return-value]

    def rank(self, value: ir.Value | None) -> int | None:
        """The number of dimensions, or None."""
        dims = self.dims(value)
        return None if dims is None else len(dims)

    def dtype(self, value: ir.Value | None) -> ir.DataType | None:
        """The element type of a value, inferred where it is not declared; None where it is unknown."""
        if value is None:
            return None
        tensor = constant_tensor(value)
        if tensor is not None:
            return tensor.dtype
        if value.dtype is None:
            self.shapes
        return value.dtype

    def known_value(self, value: ir.Value | None) -> np.ndarray | None:
        """The elements of a value that shapes alone determine (a Shape of a static input and what is computed of it).

        Constants are left to `constant_array`. The result is int64, of rank 0 or 1.
        """
        return self.shapes.known_value(value)

    def calibrate(
        self, values: Iterable[ir.Value], *, method: str | None = None, channels: Mapping[ir.Value, int] | None = None,
        moments: Iterable[ir.Value] = (), samples: int | None = None,
    ) -> dict[ir.Value, Statistics]:  # fmt: skip
        """Statistics of float values of the main graph, as it is now, on the calibration samples of the run.

        `method`: the one that ranges are wanted of ("min-max" and "moving-average" are quicker); None: any. `channels`:
        value -> axis, for extremes by channel. `moments`: values whose E[x x^T] along the last axis is wanted.
        `samples`: on how many samples, evenly spread over those there are; None: all. What was found of the same graph
        before is not sought again.

        Raises:
            CalibrationError: the run has no calibration samples, or they do not fit.
        """
        if self.tools.calibration is None:
            raise CalibrationError(f"pass {self.log.name} needs calibration samples, and there are none here")
        asked = {value.name: value for value in (*values, *(channels or ()), *moments)}
        found = self.tools.calibration.statistics(
            self.model, asked, method=method, channels={v.name: axis for v, axis in (channels or {}).items()},
            moments=[v.name for v in moments], samples=samples,
        )  # fmt: skip
        return {asked[name]: statistics for name, statistics in found.items()}

    def mean_shifts(self, wanted: Mapping[ir.Value, tuple[int, np.ndarray]], *, samples: int | None = None) -> dict[ir.Value, np.ndarray]:
        """What must be added to each channel of float32 values of the main graph for their means to be the wanted ones.

        `wanted`: value -> axis of its channels, and the means. Each is what is missing once those before it have been
        corrected; NaN where a value is not finite.

        Raises:
            CalibrationError: as `calibrate` does.
        """
        if self.tools.calibration is None:
            raise CalibrationError(f"pass {self.log.name} needs calibration samples, and there are none here")
        by_name = {value.name: value for value in wanted}
        found = self.tools.calibration.mean_shifts(self.model, {v.name: w for v, w in wanted.items()}, samples=samples)
        return {by_name[name]: shift for name, shift in found.items()}

    @property
    def provider(self) -> str:
        """The short name of the execution provider that the result is for."""
        return self.tools.target.provider if self.tools.target is not None else "cpu"

    def has_kernel(self, node: ir.Node, element: str) -> bool | None:
        """Whether the runtime has a kernel of a node's operator for tensors of a type ("float16"); None: it does not tell."""
        from graphopt import runtime

        return runtime.has_kernel(self.provider, node.domain, node.op_type, self.opset(node), element)

    def row_moments(self, wanted: Iterable[Rows], *, samples: int | None = None) -> Iterator[tuple[Rows, np.ndarray | None]]:
        """The mean of r^T r over rows that products read, [groups, length, length], a few at a time; None: not finite.

        Raises:
            CalibrationError: as `calibrate` does.
        """
        if self.tools.calibration is None:
            raise CalibrationError(f"pass {self.log.name} needs calibration samples, and there are none here")
        yield from self.tools.calibration.row_moments(self.model, wanted, samples=samples)

    def once(self, what: Any, work: Callable[[], Any]) -> Any:
        """The result of some work on the graph as it is and the calibration samples, done once over all replays of a run."""
        return work() if self.tools.calibration is None else self.tools.calibration.once(self.model, (self.log.name, what), work)

    def nodes(self) -> Iterator[ir.Node]:
        """Every node: main graph, subgraphs, functions; order is not topological across graphs."""
        for graph in self.index.scopes:
            yield from graph


def attribute_graphs(attribute: ir.Attr) -> tuple[ir.Graph, ...]:
    """The subgraphs that an attribute holds."""
    if attribute.is_ref():
        return ()
    if attribute.type == ir.AttributeType.GRAPH:
        return (attribute.as_graph(),)
    if attribute.type == ir.AttributeType.GRAPHS:
        return tuple(attribute.as_graphs())
    return ()


def _normal(opsets: dict[str, int]) -> dict[str, int]:
    return {("" if domain in ONNX_DOMAINS else domain): version for domain, version in opsets.items()}
