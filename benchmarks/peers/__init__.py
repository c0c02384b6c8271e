"""graphopt beside the other graph optimizers for ONNX: nodes, size, correctness and latency, measured in one run."""
