"""From ONNX to a torch.fx.GraphModule: a table from operator to torch code, and what strings its functions together.

Importing this package does not import torch; :func:`to_torch` does.
"""

from __future__ import annotations

from graphopt.importing.entry import to_torch

__all__ = ["to_torch"]
