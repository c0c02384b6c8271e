"""The models that tools are compared on, with plausible inputs: the public zoo, and recipes exported to a folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# Sizes of a recipe's symbolic axes: what is timed, and a second size that results are also held to.
_SIZES = ("single", "medium")


@dataclass(frozen=True)
class Case:
    """A model: its name, its file, and `feeds(i)`, inputs at the size that is timed (0) and at another (1)."""

    name: str
    path: Path
    feeds: Callable[[int], dict[str, Any]]


def zoo() -> list[Case]:
    """The public trained models, fetched on first use."""
    from models.zoo import MODELS, feeds, fetch

    return [Case(name, fetch(name), lambda i, name=name: feeds(name, seed=7, alt=bool(i))) for name in MODELS]


def recipes(folder: Path) -> list[Case]:
    """The recipes that `python -m models.recipes --all` wrote to `folder`."""
    return [Case(path.stem, path, lambda i, path=path: _recipe_feeds(path.stem, i)) for path in sorted(folder.glob("*.onnx"))]


def _recipe_feeds(stem: str, i: int) -> dict[str, np.ndarray]:
    from models.recipes import RECIPES

    name, _, how = stem.partition(".")
    return {key: value.numpy() for key, value in RECIPES[name].example_inputs(seed=7 + i, size=_SIZES[i], how=how).items()}
