"""A model as ONNX Runtime itself optimizes it for one target, written out: its sessions are made quickly, and only there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphopt import runtime
from graphopt.errors import GraphoptError, OptionError
from graphopt.formats import keep_contract, load_model
from graphopt.measurement import Target
from graphopt.model import Model
from graphopt.settings import Settings

#: Key of the metadata of a baked file that says what it was baked for.
KEY = "graphopt.baked"
_INLINE = 1 << 30  # bytes up to which weights go into the file that the runtime writes; protobuf holds less than 2 GB
_EXTERNAL = {
    "session.optimized_model_external_initializers_file_name": "baked.onnx.data",
    "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
}


def bake(original: ir.Model, path: Path, target: Target) -> tuple[Model, dict[str, Any]]:
    """The graph that the runtime, with all its optimizations, makes of a file, and what it was made for.

    The result refers to weights beside `path`, and in files that the runtime writes there. Interface and metadata are
    those of `original`, the graph in the file. The layout of blocked convolutions is that of this machine's
    instruction set; operators are those that this version of the runtime has.

    Raises:
        OptionError: the runtime cannot write the graph: a provider compiles nodes into code, or there is no room.
    """
    made = path.with_name("baked.onnx")
    large = sum(file.stat().st_size for file in path.parent.iterdir()) > _INLINE
    settings = Settings(threads=target.threads, config=_EXTERNAL if large else {})
    try:
        runtime.session(path, threads=target.threads, provider=target.provider, settings=settings, optimized_path=made)
    except GraphoptError as error:
        raise OptionError(f"--bake: ONNX Runtime cannot write the graph that it runs on {target.provider}: {_cause(error, path)}") from None
    if not made.exists():
        raise OptionError(f"--bake: ONNX Runtime does not write the graph that it runs on {target.provider}")
    model = load_model(made)
    keep_contract(original, model.graph)
    about = {"runtime": runtime.version(), "provider": target.provider, "isa": target.isa, "device": target.device}
    model.graph.metadata_props[KEY] = json.dumps(about)
    return model, about


def _cause(error: GraphoptError, path: Path) -> str:
    return str(error).removeprefix(f"{path}: ")
