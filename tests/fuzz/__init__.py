"""Random models weighted to the patterns that the passes look for, checked against ONNX Runtime: `python -m tests.fuzz`."""
