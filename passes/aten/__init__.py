"""What passes do on ATen graphs: one adapter for each, under the name of its pass. Arithmetic is shared with ONNX.

Nothing here imports torch: operators are named by strings, constants are numpy arrays.
"""
