"""Measuring: the target, paired timing of models (or of anything that runs), latency of one, a profile per operator."""

from graphopt.measurement.integers import asks_for_integers, integer_kernels, on_integers
from graphopt.measurement.optimizers import active_optimizers
from graphopt.measurement.pairs import Contender, Latency, Speed, bench, compare, race
from graphopt.measurement.profile import OpTime, Profile, profile
from graphopt.measurement.runtime_graph import FinalGraph, final_graph, same_runtime_graph
from graphopt.measurement.target import Target, detect
from graphopt.measurement.timing import Timed

__all__ = [
    "Contender", "FinalGraph", "Latency", "OpTime", "Profile", "Speed", "Target", "Timed", "active_optimizers", "asks_for_integers",
    "bench", "compare", "detect", "final_graph", "integer_kernels", "on_integers", "profile", "race", "same_runtime_graph",
]  # fmt: skip
