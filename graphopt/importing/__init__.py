"""ONNX into torch: an ONNX model as a `torch.fx.GraphModule` that can be exported, differentiated and tuned."""
