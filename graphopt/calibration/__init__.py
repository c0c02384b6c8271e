"""Calibration: what the values of a model take on samples, and the ranges that integer types should stand for.

source = open_source("samples/", model)
statistics = calibrate(model, ["conv1_output"], source)
low, high = statistics["conv1_output"].range("percentile")
"""

from graphopt.calibration.collect import calibrate
from graphopt.calibration.observers import METHODS, Statistics
from graphopt.calibration.service import Calibration
from graphopt.calibration.sources import Given, Source, open_source, split
from graphopt.calibration.stepwise import mean_shifts

__all__ = ["METHODS", "Calibration", "Given", "Source", "Statistics", "calibrate", "mean_shifts", "open_source", "split"]
