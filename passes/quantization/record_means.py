"""What products give on average, noted before they are quantized."""

from __future__ import annotations

from dataclasses import dataclass

from graphopt.model import IN_FLOAT
from graphopt.rewriting import Context, Effect, Pass, constant_tensor, guards, option, same_domain

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
SAMPLES = "how many calibration samples are used, evenly spread; 0: all"


@dataclass(frozen=True)
class RecordMeans(Pass):
    """Note the mean of each channel of what Conv, Gemm and MatMul with constant weights give: what `correct-bias` goes by.

    The graph stays as it is.
    """

    name = "record-means"
    effect = Effect.EXACT
    calibrates = True

    samples: int = option(32, SAMPLES, minimum=0)

    def run(self, context: Context) -> None:
        values = {}
        for node in context.model.graph:
            if node.op_type not in PRODUCTS or not same_domain(node.domain, "") or len(node.inputs) < 2:
                continue
            tensor = constant_tensor(node.inputs[1])
            if tensor is not None and tensor.dtype in guards.FLOATS:
                values[node.outputs[0]] = 1 if node.op_type.startswith("Conv") else -1
        if not values:
            return
        found = context.calibrate((), method="min-max", channels=values, samples=self.samples or None)
        for value, statistics in found.items():
            if not statistics.faults and statistics.channel_mean is not None:
                value.meta[IN_FLOAT] = {"mean": statistics.channel_mean, "samples": self.samples or None}
