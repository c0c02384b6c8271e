"""Shapes of all values, and what the file claims wrongly about them."""

from __future__ import annotations

from dataclasses import dataclass

from graphopt.rewriting import Context, Pass


@dataclass(frozen=True)
class InferShapes(Pass):
    """Infer types and shapes, and note declared shapes that are wrong; the graph stays as it is."""

    name = "infer-shapes"

    def run(self, context: Context) -> None:
        shapes = context.shapes
        static = symbolic = unknown = 0
        for graph, scope in context.index.scopes.items():
            if scope.function is not None:
                continue
            for node in graph:
                for value in node.outputs:
                    if value.shape is None:
                        unknown += 1
                    elif value.shape.is_static():
                        static += 1
                    else:
                        symbolic += 1
        context.log.note(f"shapes: {static} static, {symbolic} with symbolic dimensions, {unknown} unknown")
        for conflict in shapes.conflicts:
            context.log.note(conflict)
