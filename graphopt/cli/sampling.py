"""Inputs for the commands that run models: the user's own, or synthesized ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.errors import InputError

if TYPE_CHECKING:
    from graphopt.model import Model
    from graphopt.verification import Reference, Sample


def find_samples(
    model: Model, reference: Reference, given: Path | None, shapes: Mapping[str, tuple[int, ...]], seed: int, count: int = 4
) -> tuple[list[Sample], list[str]]:
    """Samples that the model runs on, and remarks on what they do not cover.

    Raises:
        InputError: the given ones do not fit the model, or none could be synthesized.
    """
    from graphopt.verification import load_samples, synthesize

    if given is not None:
        samples = load_samples(given, model.graph)
        reference.outputs(samples[0])
        return samples, []
    found = synthesize(model.graph, reference.run, seed=seed, shapes=shapes or None, count=count)
    if found.failure or not found.samples:
        raise InputError(f"{model.path}: {found.failure or 'no inputs could be synthesized; give some with --samples'}")
    return found.samples, found.warnings
