"""What every use of torch here shares: that it is there, that it is quiet, and that a module is left as it was."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from graphopt.errors import InputError

if TYPE_CHECKING:
    import torch

INSTALL = "pip install 'graphopt[torch]'"


def require_torch(what: str = "torch modules and programs") -> None:
    """Raises InputError, saying what to install, where torch is missing."""
    if importlib.util.find_spec("torch") is None:
        raise InputError(f"{what} need torch, which is not installed: {INSTALL}")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back the chatter of torch's exporters; an error still comes as an exception."""
    previous = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def forget_dispatch() -> None:
    """Empty what torch remembers of how it resolved an LSTM.

    torch 2.13 keeps in the operator's dispatch cache how an earlier export, or an eager run, resolved it, and then
    unrolls the LSTM to the example's length; emptied, every export is like the first of its process.
    """
    import torch

    for name in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
        for overload in ("input", "data"):
            operator = getattr(getattr(torch.ops.aten, name), overload, None)
            getattr(operator, "_dispatch_cache", {}).clear()


@contextlib.contextmanager
def preserved(module: torch.nn.Module) -> Iterator[None]:
    """Run `module` inside without gradients; its buffers are put back, in place, to what they were."""
    import torch

    buffers = dict(module.named_buffers())
    kept = {name: buffer.detach().clone() for name, buffer in buffers.items()}
    try:
        with torch.no_grad():
            yield
    finally:
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                if name in kept and buffer is buffers[name]:
                    buffer.copy_(kept[name])


@contextlib.contextmanager
def in_eval_mode(module: torch.nn.Module) -> Iterator[None]:
    """Every part of `module` in eval mode inside, and in its own mode again after."""
    modes = {part: part.training for part in module.modules()}
    try:
        for part in modes:
            part.training = False
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
