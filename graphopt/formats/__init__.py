"""Reading and writing models, by kind and file name. Nothing else in graphopt touches the files of models."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from graphopt.errors import InputError, OutputError
from graphopt.formats import onnx
from graphopt.formats._carried import keep_contract
from graphopt.formats._files import write_text
from graphopt.formats._inputs import fix_initializers, fix_shapes
from graphopt.formats._tapped import Tapped
from graphopt.formats.onnx import digest
from graphopt.model import Model

__all__ = ["Tapped", "digest", "fix_initializers", "fix_shapes", "keep_contract", "load_model", "save_model", "write_text"]

#: File names of models in other formats, with the words for them in a message.
_OTHER = {
    ".pt2": "a torch.export program",
    ".pt": "a torch file",
    ".pth": "a torch file",
    ".ts": "a TorchScript file",
    ".torchscript": "a TorchScript file",
    ".safetensors": "a file of weights without a graph",
    ".tflite": "a TensorFlow Lite model",
    ".pb": "a TensorFlow graph",
    ".h5": "a Keras model",
    ".keras": "a Keras model",
    ".ort": "ONNX Runtime's own format",
}


def load_model(path: os.PathLike | str, *, shapes: Mapping[str, Sequence[int]] | None = None) -> Model:
    """Loads a model; ``shapes`` fixes the dimensions of inputs by name.

    Raises:
        InputError: the file cannot be read, is no model, or is one in a format that graphopt does not load.
        OptionError: ``shapes`` names an unknown input or contradicts the model.
    """
    kind = _OTHER.get(Path(path).suffix.lower())
    # A model saved by torch.onnx or by hand may carry any name: only a file that is not ONNX inside is turned away.
    if kind is not None and Path(path).is_file() and not onnx.looks_like_onnx(path):
        raise InputError(f"{path}: {kind} is not supported by this build of graphopt; export it to ONNX first")
    return onnx.load(path, shapes=shapes)


def save_model(model: Model, path: os.PathLike | str, *, in_place: bool = False) -> list[Path]:
    """Saves a model and returns the files written. The file it was loaded from is only replaced with ``in_place``.

    Raises:
        OutputError: the target cannot be written, is the input, or the model's kind cannot be written there.
    """
    if model.kind != "onnx":
        raise OutputError(f"{path}: a model of kind '{model.kind}' cannot be written by this build of graphopt")
    return onnx.save(model, path, in_place=in_place)
