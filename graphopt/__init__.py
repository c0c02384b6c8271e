# ruff: noqa: F401  (the imports for type checkers; a test holds them to `_WHERE`)
"""graphopt: makes a trained model as fast as this machine allows, and proves that it still computes the same thing.

Everything named in `__all__` is the public API. It is imported on first use: `import graphopt` alone loads neither
onnx nor ONNX Runtime nor torch. A whole run from Python is `graphopt.optimize(model)`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# Module -> the public names that it defines; `guards` is a module itself.
_WHERE = {
    "graphopt.api": ("Optimized", "optimize"),
    "graphopt.errors": ("GraphoptError", "InputError", "OptionError", "OutputError", "PluginError", "ProviderError"),
    "graphopt.formats": ("load_model", "save_model"),
    "graphopt.importing": ("to_torch",),
    "graphopt.model": ("Model",),
    "graphopt.pipeline.presets": ("Pipeline", "build_pipeline", "load_preset", "preset_names"),
    "graphopt.pipeline.registry": ("Registry",),
    "graphopt.pipeline.runner": ("Candidate", "Hold", "run_pipeline"),
    "graphopt.reporting": ("Report",),
    "graphopt.request": ("Request",),
    "graphopt.rewriting": (
        "ChangeLog", "Context", "Editor", "Effect", "Match", "Option", "Pass", "Pattern", "Refusal", "Refuse", "Rewrite",
        "const", "constant_array", "guards", "op", "option", "scalar_of", "var",
    ),
    "graphopt.sessions": ("session",),
    "graphopt.rewriting.onnxscript_adapter": ("OnnxscriptRewrite",),
    "graphopt.verification": ("Reference", "Sample", "Verification", "load_samples", "synthesize", "verify"),
}  # fmt: skip
_HOME = {name: module for module, names in _WHERE.items() for name in names}

__all__ = sorted(_HOME)

if TYPE_CHECKING:
    from graphopt.api import Optimized, optimize
    from graphopt.errors import GraphoptError, InputError, OptionError, OutputError, PluginError, ProviderError
    from graphopt.formats import load_model, save_model
    from graphopt.importing import to_torch
    from graphopt.model import Model
    from graphopt.pipeline.presets import Pipeline, build_pipeline, load_preset, preset_names
    from graphopt.pipeline.registry import Registry
    from graphopt.pipeline.runner import Candidate, Hold, run_pipeline
    from graphopt.reporting import Report
    from graphopt.request import Request
    from graphopt.rewriting import (
        ChangeLog,
        Context,
        Editor,
        Effect,
        Match,
        Option,
        Pass,
        Pattern,
        Refusal,
        Refuse,
        Rewrite,
        const,
        constant_array,
        guards,
        op,
        option,
        scalar_of,
        var,
    )
    from graphopt.rewriting.onnxscript_adapter import OnnxscriptRewrite
    from graphopt.sessions import session
    from graphopt.verification import Reference, Sample, Verification, load_samples, synthesize, verify


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import version

        return version("graphopt")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(_HOME[name])
    value = importlib.import_module(f"{_HOME[name]}.{name}") if name == "guards" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
