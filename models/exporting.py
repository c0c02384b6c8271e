"""Export of a torch module to one ONNX file, by any of torch's exporters, BatchNormalization kept where it can be.

torch is imported on the first call, never with this module.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.programs.torch_side import forget_dispatch, quiet

if TYPE_CHECKING:
    import torch

MODES = ("dynamo-raw", "dynamo", "legacy", "legacy-folded")
LEGACY_OPSET = 17
DYNAMO_OPSET = 20

# Above this a protobuf cannot hold the weights, and they go to a file beside the model.
_PROTOBUF_LIMIT = 1_900_000_000


def export_module(
    module: torch.nn.Module,
    inputs: Mapping[str, torch.Tensor],
    path: str | os.PathLike[str],
    how: str,
    *,
    outputs: Sequence[str],
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
) -> Path:
    """Write `module` to `path` as ONNX and return the path.

    `inputs` maps the names of the arguments of `forward`, in its order, to example tensors; they become the
    names of the graph's inputs. `dynamic` maps an input to its symbolic axes, `{"image": {0: "batch"}}`.
    `how` is one of:

    - `dynamo-raw`: `torch.export` and its ONNX translation as it comes, BatchNormalization nodes kept;
    - `dynamo`: the same, then torch's own optimizer, which folds BatchNormalization into Conv itself;
    - `legacy`: the TorchScript exporter, opset 17. A module with BatchNorm is exported with
      `training=PRESERVE` and without constant folding, which would fold it away;
    - `legacy-folded`: the TorchScript exporter with its ordinary settings.

    The module must be in eval mode: a BatchNormalization of the result is always the inference form.
    The file appears under its name only when it is whole.
    """
    import torch

    if how not in MODES:
        raise ValueError(f"unknown exporter {how!r}: expected one of {', '.join(MODES)}")
    if module.training:
        raise ValueError("the module is in training mode: call eval() first")
    target = Path(path)
    dynamic = {name: dict(axes) for name, axes in (dynamic or {}).items() if axes}
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        whole = Path(scratch) / target.name
        with torch.no_grad(), quiet():
            if how.startswith("legacy"):
                _legacy(module, inputs, whole, outputs, dynamic, keep_norms=how == "legacy")
            else:
                _dynamo(module, inputs, whole, outputs, dynamic, optimize=how == "dynamo")
        # External weights first: a model under its final name always finds them.
        for made in sorted(Path(scratch).iterdir(), key=lambda file: file == whole):
            os.replace(made, target.parent / made.name)
    return target


def _legacy(
    module: torch.nn.Module,
    inputs: Mapping[str, torch.Tensor],
    path: Path,
    outputs: Sequence[str],
    dynamic: Mapping[str, Mapping[int, str]],
    *,
    keep_norms: bool,
) -> None:
    import torch

    norms = any(isinstance(part, torch.nn.modules.batchnorm._BatchNorm) for part in module.modules())
    keep: dict[str, Any] = {}
    if norms and keep_norms:
        keep = {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False}
    torch.onnx.export(
        module,
        tuple(inputs.values()),
        str(path),
        dynamo=False,
        opset_version=LEGACY_OPSET,
        input_names=list(inputs),
        output_names=list(outputs),
        dynamic_axes={name: dict(axes) for name, axes in dynamic.items()},
        **keep,
    )


def _dynamo(
    module: torch.nn.Module,
    inputs: Mapping[str, torch.Tensor],
    path: Path,
    outputs: Sequence[str],
    dynamic: Mapping[str, Mapping[int, str]],
    *,
    optimize: bool,
) -> None:
    import torch

    forget_dispatch()
    weights = sum(t.numel() * t.element_size() for t in module.state_dict().values())
    torch.onnx.export(
        module,
        (),
        str(path),
        kwargs=dict(inputs),
        dynamo=True,
        optimize=optimize,
        verbose=False,
        opset_version=DYNAMO_OPSET,
        input_names=list(inputs),
        output_names=list(outputs),
        dynamic_shapes={name: dict(dynamic.get(name, {})) for name in inputs},
        external_data=weights > _PROTOBUF_LIMIT,
    )
