"""Verification: samples, the reference, and the verdict on a candidate.

reference = Reference(path)
made = synthesize(model, reference.run)
verification = verify(path, candidate, made.samples, effect="rounding", reference=reference)
"""

from graphopt.verification.compare import OutputComparison, Verification, verify
from graphopt.verification.reference import Reference
from graphopt.verification.samples import Sample, for_timing, load_samples
from graphopt.verification.synthesize import Synthesis, synthesize

__all__ = [
    "OutputComparison",
    "Reference",
    "Sample",
    "Synthesis",
    "Verification",
    "for_timing",
    "load_samples",
    "synthesize",
    "verify",
]
