"""The ONNX backend node tests as cases for the importer: which of them count, and what one of them answers.

`python -m tests.importing.node_cases [PART OF A NAME ...]` runs cases and prints what went wrong with each that failed.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, numpy_helper
from onnx.backend.test.loader import load_model_tests

_TYPES = {
    TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.BOOL,
    TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64,
    TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64,
}  # fmt: skip

#: Attributes that name an element type.
_TYPE_ATTRIBUTES = {"to", "dtype", "output_dtype", "softmax_precision", "stash_type"}

_RANDOM = {"Bernoulli", "RandomUniformLike", "RandomNormalLike", "RandomUniform", "RandomNormal", "Multinomial"}


@functools.cache
def all_cases() -> dict[str, Any]:
    """Every node case by name. Read or generated when first asked for: a few seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the generators of the cases divide by zero on purpose
        return {case.name: case for case in load_model_tests(kind="node")}


def out_of_scope(case: Any) -> str | None:
    """Why a case is none of a float or int operator, or None where it is one."""
    graph = case.model.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        reason = _type_reason(value.type)
        if reason:
            return reason
    for node in _nodes(graph):
        if node.domain in ("ai.onnx.ml", "ai.onnx.preview.training"):
            return f"operators of {node.domain}"
        if node.op_type in _RANDOM or case.name.startswith("test_training_dropout"):
            return "random results"
        if node.op_type == "ImageDecoder":
            return "files of images"
        if node.op_type.startswith("Optional"):
            return "optional types"
        for attribute in node.attribute:
            if attribute.name in _TYPE_ATTRIBUTES and attribute.i and attribute.i not in _TYPES:
                return _element_reason(attribute.i)
            for tensor in (attribute.t, *attribute.tensors):
                if tensor.data_type and tensor.data_type not in _TYPES:
                    return _element_reason(tensor.data_type)
    return None


@functools.cache
def counted() -> tuple[str, ...]:
    """Names of the cases of float and int operators, sorted."""
    return tuple(sorted(name for name, case in all_cases().items() if out_of_scope(case) is None))


def _type_reason(kind: onnx.TypeProto) -> str | None:
    which = kind.WhichOneof("value")
    if which == "optional_type":
        return "optional types"
    if which == "sequence_type":
        return _type_reason(kind.sequence_type.elem_type)
    if which == "tensor_type" and kind.tensor_type.elem_type not in _TYPES:
        return _element_reason(kind.tensor_type.elem_type)
    return None


def _element_reason(element: int) -> str:
    return "strings" if element == TensorProto.STRING else "floats of 8 bits and types narrower than a byte"


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def to_tensor(value: Any) -> Any:
    """A case's datum as the importer's module takes it: a tensor, a list of tensors, or None."""
    import torch

    if value is None:
        return None
    if isinstance(value, list | tuple):
        return [to_tensor(v) for v in value]
    array = np.array(numpy_helper.to_array(value) if isinstance(value, TensorProto) else value)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _compare(want: Any, got: Any, rtol: float, atol: float, where: str) -> None:
    import torch

    if isinstance(want, list | tuple):
        assert isinstance(got, list | tuple), f"{where}: {type(got).__name__}, not a sequence"
        assert len(want) == len(got), f"{where}: {len(got)} elements, not {len(want)}"
        for index, (w, g) in enumerate(zip(want, got)):
            _compare(w, g, rtol, atol, f"{where}[{index}]")
        return
    if want is None:
        assert got is None, f"{where}: not None"
        return
    assert isinstance(got, torch.Tensor), f"{where}: {type(got).__name__}, not a tensor"
    expected = to_tensor(want)
    assert got.dtype == expected.dtype, f"{where}: {got.dtype}, not {expected.dtype}"
    assert tuple(got.shape) == tuple(expected.shape), f"{where}: shape {tuple(got.shape)}, not {tuple(expected.shape)}"
    if expected.dtype == torch.bfloat16:
        expected, got = expected.float(), got.float()
    np.testing.assert_allclose(got.detach().resolve_neg().numpy(), expected.numpy(), rtol=rtol, atol=atol, err_msg=where)


def run_case(name: str) -> str | None:
    """Imports a case and runs it on its data, as strictly as the case asks; returns what went wrong, or None."""
    import torch

    from graphopt.importing import to_torch

    case = all_cases()[name]
    try:
        module = to_torch(ir.from_proto(case.model))
        with torch.no_grad():
            for inputs, expected in case.data_sets:
                answer = module(*(to_tensor(value) for value in inputs))
                answers = answer if isinstance(answer, tuple) else (answer,)
                assert len(answers) == len(expected), f"{len(answers)} outputs, not {len(expected)}"
                for index, (want, got) in enumerate(zip(expected, answers)):
                    _compare(want, got, case.rtol, case.atol, f"output {index}")
    except Exception as error:  # whatever it is, it is this case's answer
        return f"{type(error).__name__}: " + " ".join(str(error).split())[:400]
    return None


def main(parts: Iterable[str]) -> int:
    import torch

    torch.set_num_threads(1)
    parts = list(parts)
    names = [name for name in counted() if not parts or any(part in name for part in parts)]
    failed = 0
    for name in names:
        problem = run_case(name)
        if problem:
            failed += 1
            print(f"{name}\n    {problem}", flush=True)
    print(f"{len(names) - failed} of {len(names)} pass")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
