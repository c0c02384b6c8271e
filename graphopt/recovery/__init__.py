"""Recovery: winning back what a lossy change cost, without labels."""

from graphopt.recovery.reconstruct import Reconstructed, kept_in, reconstruct

__all__ = ["Reconstructed", "kept_in", "reconstruct"]
