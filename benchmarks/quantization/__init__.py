"""graphopt's quantization beside ONNX Runtime's own, NNCF, Neural Compressor and Olive: quality, speed and size, in one run."""
