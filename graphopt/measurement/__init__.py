"""Measuring: the target, paired timing of two models, latency of one, a profile per operator. All of it runs on ONNX Runtime."""

from graphopt.measurement.optimizers import active_optimizers
from graphopt.measurement.pairs import Latency, Speed, bench, compare
from graphopt.measurement.profile import OpTime, Profile, profile
from graphopt.measurement.runtime_graph import FinalGraph, final_graph, same_runtime_graph
from graphopt.measurement.target import Target, detect

__all__ = [
    "FinalGraph", "Latency", "OpTime", "Profile", "Speed", "Target", "active_optimizers", "bench", "compare", "detect", "final_graph",
    "profile", "same_runtime_graph",
]  # fmt: skip
