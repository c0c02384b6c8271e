"""What every use of torch here shares: that it is quiet, and that a module is left as it was."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


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
def preserved(module: torch.nn.Module) -> Iterator[set[str]]:
    """Run `module` inside in eval mode and without gradients, and find it as it was after: its mode, buffers, attributes,
    and lists and dicts among them.

    What it prints goes to standard error. The set that is given holds, after, the names of attributes that were
    changed and put back; buffers are not among them, for those may change.
    """
    import torch

    changed: set[str] = set()
    with in_eval_mode(module):
        parts = [(name, part, _state(part)) for name, part in module.named_modules()]
        try:
            with kept_buffers(module), torch.no_grad(), contextlib.redirect_stdout(sys.stderr):
                yield changed
        finally:
            for name, part, before in parts:
                changed.update(f"{name}.{key}" if name else key for key in _put_back(part, before))


@contextlib.contextmanager
def kept_buffers(module: torch.nn.Module) -> Iterator[None]:
    """The buffers of `module` are after what they were before: the same tensors with the same values."""
    import torch

    buffers = [(part, dict(part._buffers)) for part in module.modules()]
    values = {id(buffer): (buffer, buffer.detach().clone()) for _, held in buffers for buffer in held.values() if buffer is not None}
    try:
        yield
    finally:
        with torch.no_grad():
            for part, held in buffers:
                part._buffers.update(held)
            for buffer, value in values.values():
                if not _identical(buffer, value):  # one that did not change may be memory that cannot be written
                    buffer.copy_(value)


def _state(part: torch.nn.Module) -> dict[str, tuple[Any, Any]]:
    """The plain attributes of a module, each with a copy of what it holds where it is a list, a dict or a set."""
    return {
        key: (value, value.copy() if type(value) in (list, dict, set) else None)
        for key, value in vars(part).items()
        if key not in ("_parameters", "_buffers", "_modules")
    }


def _put_back(part: torch.nn.Module, before: dict[str, tuple[Any, Any]]) -> list[str]:
    """Gives a module its attributes back; returns the names of those that had changed."""
    changed = []
    attributes = vars(part)
    for key in [key for key in attributes if key not in before and key not in ("_parameters", "_buffers", "_modules")]:
        del attributes[key]
        changed.append(key)
    for key, (value, held) in before.items():
        same = attributes.get(key) is value
        if held is not None and not (len(held) == len(value) and _same_elements(value, held)):
            same = False
            if isinstance(value, list):
                value[:] = held
            else:
                value.clear()
                value.update(held)
        if not same:
            attributes[key] = value
            changed.append(key)
    return changed


def _identical(one: torch.Tensor, other: torch.Tensor) -> bool:
    import torch

    return torch.equal(one, other) or (one.is_floating_point() and bool(torch.isclose(one, other, rtol=0, atol=0, equal_nan=True).all()))


def _same_elements(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return list(one) == list(other) and all(one[key] is other[key] for key in one)
    if isinstance(one, set):
        return one == other
    return all(a is b for a, b in zip(one, other, strict=True))


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
