"""What a pass is, and the engine that runs rewrites. The public API is re-exported by `graphopt`."""

from graphopt.rewriting.base import Effect, Option, Pass, Refuse, Rewrite, check_contract, node_label, option
from graphopt.rewriting.changes import ChangeLog, Refusal, origin
from graphopt.rewriting.constants import constant_array, constant_tensor, is_sparse, scalar_of
from graphopt.rewriting.context import Context, Index, Scope, attribute_graphs
from graphopt.rewriting.driver import apply, drive
from graphopt.rewriting.editor import Editor, remove_unused
from graphopt.rewriting.pattern import Match, Pattern, const, op, same_domain, var
from graphopt.rewriting.shapes import Dim, ShapeAnalysis
from graphopt.rewriting.uses import is_used, use_count

__all__ = [
    "ChangeLog",
    "Context",
    "Dim",
    "Editor",
    "Effect",
    "Index",
    "Match",
    "Option",
    "Pass",
    "Pattern",
    "Refusal",
    "Refuse",
    "Rewrite",
    "Scope",
    "ShapeAnalysis",
    "apply",
    "attribute_graphs",
    "check_contract",
    "const",
    "constant_array",
    "constant_tensor",
    "drive",
    "is_sparse",
    "is_used",
    "node_label",
    "op",
    "option",
    "origin",
    "remove_unused",
    "same_domain",
    "scalar_of",
    "use_count",
    "var",
]
