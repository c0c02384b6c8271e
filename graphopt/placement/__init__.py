"""Which units run on integers: their latencies and those of the conversions between them, measured, and a minimum cut."""

from graphopt.placement.result import Placement, UnitCost

__all__ = ["Placement", "UnitCost"]
