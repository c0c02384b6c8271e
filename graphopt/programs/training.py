"""Nothing that belongs to training may be in a program: it would be optimized, and verified, as what it is not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from graphopt.errors import InputError
from graphopt.programs.failures import Line, line_in_text

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

_NORMS = ("batch_norm", "native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm", "miopen_batch_norm", "_batch_norm_impl_index")
_UPDATING = ("_native_batch_norm_legit_functional", "_batch_norm_with_update", "_batch_norm_with_update_functional")
_DROPOUTS = ("dropout", "dropout_", "alpha_dropout", "alpha_dropout_", "feature_dropout", "feature_dropout_", "feature_alpha_dropout",
             "feature_alpha_dropout_", "native_dropout")  # fmt: skip
_RANDOM = ("bernoulli", "bernoulli_", "rand", "rand_like", "randn", "randn_like", "randint", "randint_like", "randperm", "multinomial",
           "normal", "normal_", "uniform", "uniform_", "exponential_", "poisson", "rrelu_with_noise",
           "rrelu_with_noise_functional")  # fmt: skip
_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")
_RANDOM_WORDS = "draws random numbers, so no two answers are the same and none can be verified"


def training_module(module: torch.nn.Module) -> str | None:
    """The name of the first part of `module` that is in training mode; "" is the module itself, None: there is none.

    The module of an exported program says that it is in training mode whatever was exported, and cannot be switched;
    what it does is seen in its graph.
    """
    if "train" in vars(module):
        return None
    return next((name for name, part in module.named_modules() if part.training), None)


def refuse_training(program: ExportedProgram, what: str) -> None:
    """Raises InputError, naming node and source line, where the program holds what is done only in training.

    That is BatchNorm on the statistics of the batch while it keeps running ones, active Dropout, and random numbers.
    BatchNorm that keeps no running statistics uses the batch's in eval mode too, and is left alone.
    """
    for node in _nodes(program.graph_module):
        reason = _reason(node)
        if reason is not None:
            place = line_in_text(node.meta.get("stack_trace") or "")
            remedy = "" if reason == _RANDOM_WORDS else "; export it in eval mode: module.eval()"
            raise InputError(f"{what}: node '{node.name}' ({node.target}) {reason}{_at(place)}{remedy}")


def _at(place: Line | None) -> str:
    return f", at {place}" if place is not None else ""


def _nodes(graph_module: torch.fx.GraphModule) -> Iterator[torch.fx.Node]:
    """Every call of the graph and of the graphs inside it (branches, loops, regions of another gradient mode)."""
    import torch

    for part in graph_module.modules():
        if isinstance(part, torch.fx.GraphModule):
            yield from (node for node in part.graph.nodes if node.op == "call_function")


def _reason(node: torch.fx.Node) -> str | None:
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.name.startswith("aten::"):
        return None
    name = schema.name.removeprefix("aten::")
    given = dict(zip((argument.name for argument in schema.arguments), node.args, strict=False)) | dict(node.kwargs)
    if name in _NORMS and (given.get("training") or given.get("train")) and given.get("running_mean") is not None:
        return "is BatchNorm in training mode, on the statistics of the batch"
    if name in _UPDATING:
        return "is BatchNorm in training mode: it updates its running statistics"
    if name in _DROPOUTS and given.get("train", True) is not False and given.get("p", 0.5) != 0:
        return "is Dropout in training mode"
    if name == "scaled_dot_product_attention" and (given.get("dropout_p") or 0) != 0:
        return "is attention with Dropout in training mode"
    if name in _RECURRENT and given.get("train") and given.get("dropout"):
        return "is a recurrent layer with Dropout in training mode"
    if name == "rrelu" and given.get("training"):
        return "is RReLU in training mode"
    if name in _RANDOM:
        return _RANDOM_WORDS
    return None
