"""What the tests of models ask of an ONNX graph."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph and of all its subgraphs."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from nodes(inner)


def norms(graph: onnx.GraphProto) -> tuple[list[onnx.NodeProto], int]:
    """The BatchNormalization nodes of a graph, and how many stand right behind a Conv or ConvTranspose."""
    made_by = {output: node.op_type for node in graph.node for output in node.output}
    found = [node for node in graph.node if node.op_type == "BatchNormalization"]
    return found, sum(made_by.get(node.input[0]) in ("Conv", "ConvTranspose") for node in found)


def in_inference(node: onnx.NodeProto) -> bool:
    """Whether a BatchNormalization has one output and is not in training mode."""
    modes = [attribute.i for attribute in node.attribute if attribute.name == "training_mode"]
    return len([output for output in node.output if output]) == 1 and not any(modes)


def session(path: Path) -> ort.InferenceSession:
    """A session on the CPU, with two threads and without chatter."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 3
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(path: Path, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of the model at `path` by name."""
    loaded = session(path)
    names = [output.name for output in loaded.get_outputs()]
    return dict(zip(names, loaded.run(names, feeds), strict=True))
