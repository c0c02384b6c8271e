"""The table: (domain, operator, version) -> the torch code that does it.

A function of the table is plain torch code. It takes the node's inputs in their order (None for one that is left out),
and the node's attributes as keyword-only arguments under their ONNX names; an attribute that it does not take makes
the node unsupported. Ask for what else it needs by a keyword-only argument of this name:

``outputs``    how many outputs the node has, those left out in the middle included
``captures``   (operators with subgraphs) the values of the graphs around that the subgraphs use. A subgraph is a
               GraphModule called as ``body(*its_inputs, *captures)``, and returns a tuple

Inputs are tensors, sequences are lists of tensors, an empty optional is None. With ``hosts=True`` a function also gets
values as :class:`~graphopt.importing.values.Host`, and may return them. Functions run at each call of the module, under
torch.export with symbolic sizes: what they look at in Python (dtype, rank, sizes, Hosts) must not be a tensor's data.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx

from graphopt.importing.values import as_tensor, as_tensors

_SPECIAL = frozenset({"outputs", "captures"})


@dataclass(frozen=True)
class Entry:
    """One row. ``since``: the ONNX version from which on it holds; ``several``: the function returns a tuple of outputs."""

    domain: str
    name: str
    since: int
    function: Callable[..., Any]
    hosts: bool
    several: bool
    #: Looks at the attributes, when the model is imported: why the node is not supported, or None.
    refuse: Callable[[dict[str, Any]], str | None] | None
    attributes: frozenset[str]
    special: frozenset[str]


_TABLE: dict[tuple[str, str], list[Entry]] = {}


def operator(
    name: str,
    *,
    since: int = 1,
    domain: str = "",
    hosts: bool = False,
    several: bool = False,
    refuse: Callable[[dict[str, Any]], str | None] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enters a function into the table; several of these may stand over one function, with the same ``hosts``."""

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        call = function if hasattr(function, "__wrapped__") else leaf(function if hosts else _on_tensors(function))
        keywords = {p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}
        entry = Entry(domain, name, since, call, hosts, several, refuse, frozenset(keywords - _SPECIAL), frozenset(keywords & _SPECIAL))
        rows = _TABLE.setdefault((domain, name), [])
        if any(row.since == since for row in rows):
            raise ValueError(f"two functions for {domain}:{name} since version {since}")
        rows.append(entry)
        rows.sort(key=lambda row: row.since)
        return call

    return enter


def _on_tensors(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*inputs: Any, **attributes: Any) -> Any:
        return function(*as_tensors(inputs), **attributes)

    return call


def leaf(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as one that torch.fx does not look into: traced anew, as on being read from a file, a module keeps
    its calls of the table."""

    @functools.wraps(function)
    def call(*inputs: Any, **attributes: Any) -> Any:
        proxy = next((i for i in (*inputs, *attributes.get("captures", ())) if isinstance(i, fx.Proxy)), None)
        if proxy is not None:
            return proxy.tracer.create_proxy("call_function", call, inputs, attributes)
        return function(*inputs, **attributes)

    return call


@leaf
def result(value: Any) -> Any:
    """An output of a module: a tensor, whatever it was."""
    return as_tensor(value)


@functools.cache
def _load() -> None:
    """Imports every module of graphopt.importing.operators, which fills the table."""
    from graphopt.importing import operators

    for module in pkgutil.iter_modules(operators.__path__):
        importlib.import_module(f"{operators.__name__}.{module.name}")


def find(domain: str, name: str, version: int) -> Entry | None:
    """The row for an operator in an opset version; None where there is none."""
    _load()
    rows = [row for row in _TABLE.get((domain, name), ()) if row.since <= version]
    return rows[-1] if rows else None


def entries() -> list[Entry]:
    """All rows, sorted by domain, name and version."""
    _load()
    return sorted((row for rows in _TABLE.values() for row in rows), key=lambda row: (row.domain, row.name, row.since))
