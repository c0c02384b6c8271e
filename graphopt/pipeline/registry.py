"""Passes by name: the built-in ones and plug-ins, found the same way."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from graphopt.errors import OptionError, PluginError
from graphopt.rewriting.base import Pass, check_contract

ENTRY_POINT_GROUP = "graphopt.passes"


@dataclass(frozen=True)
class Registered:
    """A pass and where it was found.

    Attributes:
        cls: the pass.
        origin: the distribution ("graphopt 0.1.0"), or the file or module of a plug-in.
    """

    cls: type[Pass]
    origin: str


class Registry:
    """Passes by name. `Registry()` holds none; `Registry.discover()` what is installed."""

    def __init__(self) -> None:
        self._passes: dict[str, Registered] = {}

    @classmethod
    def discover(cls) -> Registry:
        """All passes of the entry-point group `graphopt.passes`: each names a class, a module or a package.

        Raises:
            PluginError: an entry point cannot be loaded, or two passes have one name.
        """
        registry = cls()
        points = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
        for point in sorted(set(points), key=lambda p: (p.name != "builtin", p.name, p.value)):
            origin = f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.value
            try:
                found = point.load()
            except Exception as error:
                raise PluginError(f"plug-in {point.name} ({origin}) cannot be loaded: {_cause(error)}") from error
            registry.add(found, origin)
        return registry

    def add(self, found: type[Pass] | ModuleType, origin: str) -> list[str]:
        """Register a pass, or every pass of a module or package; returns the names.

        Raises:
            PluginError: no pass in it, a pass that breaks the contract, a name that is taken.
        """
        classes = [found] if inspect.isclass(found) else list(_passes_of(found))
        if not classes:
            raise PluginError(f"plug-in {origin} defines no pass (a subclass of graphopt.Pass or graphopt.Rewrite with a name)")
        for cls in classes:
            if not (inspect.isclass(cls) and issubclass(cls, Pass)):
                raise PluginError(f"plug-in {origin}: {cls!r} is not a pass")
            check_contract(cls)
            known = self._passes.get(cls.name)
            if known is not None and known.cls is not cls:
                raise PluginError(f"two passes are called {cls.name!r}: one of {known.origin}, one of {origin}")
            self._passes[cls.name] = Registered(cls, origin)
        return [cls.name for cls in classes]

    def load_plugin(self, where: str) -> list[str]:
        """Import a plug-in, `FILE.py` or `package.module`, and register its passes; returns their names.

        Raises:
            PluginError: not found, it raises when imported, or as for `add`.
        """
        if where.endswith(".py") or "/" in where:
            path = Path(where)
            if not path.is_file():
                raise PluginError(f"plug-in {where}: no such file")
            # The name is made from the path, so that two plug-ins called pass.py do not meet in sys.modules.
            name = f"graphopt_plugin_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
            spec = importlib.util.spec_from_file_location(name, path)
            if spec is None or spec.loader is None:
                raise PluginError(f"plug-in {where}: not a Python file")
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module
            try:
                spec.loader.exec_module(module)
            except (Exception, SystemExit) as error:
                del sys.modules[name]
                raise PluginError(f"plug-in {where} cannot be imported: {_cause(error)}") from error
        else:
            try:
                module = importlib.import_module(where)
            except (Exception, SystemExit) as error:
                raise PluginError(f"plug-in {where} cannot be imported: {_cause(error)}") from error
        return self.add(module, where)

    def get(self, name: str) -> type[Pass]:
        """The pass of that name.

        Raises:
            OptionError: there is none; the message offers the nearest names.
        """
        if name not in self._passes:
            near = difflib.get_close_matches(name, self._passes, n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else "; `graphopt passes` lists them"
            raise OptionError(f"unknown pass {name!r}{hint}")
        return self._passes[name].cls

    def __iter__(self) -> Iterator[Registered]:
        return iter(sorted(self._passes.values(), key=lambda r: r.cls.name))

    def __contains__(self, name: str) -> bool:
        return name in self._passes


def _passes_of(module: ModuleType) -> Iterator[type[Pass]]:
    """The passes that a module, or any module of a package, defines (not those that it only imports)."""
    modules = [module]
    if hasattr(module, "__path__"):
        for info in sorted(pkgutil.walk_packages(module.__path__, module.__name__ + "."), key=lambda i: i.name):
            try:
                modules.append(importlib.import_module(info.name))
            except Exception as error:
                raise PluginError(f"plug-in module {info.name} cannot be imported: {_cause(error)}") from error
    for each in modules:
        for cls in vars(each).values():
            if inspect.isclass(cls) and issubclass(cls, Pass) and cls.__module__ == each.__name__ and cls.name:
                yield cls


def _cause(error: BaseException) -> str:
    """The exception in one line, with the line of the plug-in's file where it was raised."""
    text = " ".join(str(error).split()) or type(error).__name__
    frame = None
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if "importlib" not in code.co_filename and code.co_filename != __file__:
            frame = f"{Path(code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return f"{type(error).__name__}: {text}" + (f" ({frame})" if frame else "")
