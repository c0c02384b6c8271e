"""Quality of a model that computes another function than the original: figures of its outputs on evaluation samples."""

from graphopt.quality.figures import Quality, measure
from graphopt.quality.predictions import agreement

__all__ = ["Quality", "agreement", "measure"]
