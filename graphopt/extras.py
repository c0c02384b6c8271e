"""What is installed only on request, and what to say where it is missing."""

from __future__ import annotations

import importlib.util

from graphopt.errors import InputError


def require_torch(what: str = "torch modules and programs") -> None:
    """Raises InputError, saying what to install, where torch is missing."""
    if importlib.util.find_spec("torch") is None:
        raise InputError(f"{what} need torch, which is not installed: pip install 'graphopt[torch]'")
