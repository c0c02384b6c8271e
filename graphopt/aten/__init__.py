"""Rewriting of ATen graphs: what `graphopt.rewriting` is to ONNX graphs, for `torch.export.ExportedProgram`.

The graph is functional: operators that write in place became ones that do not, and a buffer that changes is an output
that the graph signature names. So a value never changes after it was computed, and only views of a caller's tensors can
be seen from outside.
"""

from graphopt.aten.context import AtenContext
from graphopt.aten.driver import drive
from graphopt.aten.editor import AtenEditor, remove_unused
from graphopt.aten.program import Program, count_nodes, operator_of

__all__ = ["AtenContext", "AtenEditor", "Program", "count_nodes", "drive", "operator_of", "remove_unused"]
