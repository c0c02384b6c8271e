"""Rewriting of ATen graphs: what `graphopt.rewriting` is to ONNX graphs, for `torch.export.ExportedProgram`."""
