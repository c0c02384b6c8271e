"""A model with an input that chooses between branches, made into programs of single values of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.cli.conftest import Cli
from tests.support import array, model, node

torch = pytest.importorskip("torch")


def _branch(name: str, size: int) -> onnx.GraphProto:
    """x [n, size] times a matrix of its own: no other size of x will do."""
    matrix = numpy_helper.from_array(array(size, 3, seed=size), f"{name}.weight")
    result = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    return helper.make_graph([node("MatMul", ["x", f"{name}.weight"], [name])], name, [], [result], [matrix])


def _net(path: Path, *, dtype: int = TensorProto.INT64, shape: tuple[int, ...] = ()) -> Path:
    nodes = [
        node("Equal", ["rate", "wanted"], ["chosen"]),
        node("If", ["chosen"], ["y"], then_branch=_branch("wide", 8), else_branch=_branch("narrow", 4)),
    ]
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    proto = model(
        nodes, {"x": ["n", "size"], "rate": shape}, {"y": ["n", 3]}, {"wanted": np.full(shape, 16, kind)}, types={"rate": dtype}
    )
    onnx.save(proto, path)
    return path


@pytest.fixture
def net(tmp_path: Path) -> Path:
    return _net(tmp_path / "net.onnx")


@pytest.mark.parametrize(("rate", "size", "kept"), [(16, 8, "wide.weight"), (5, 4, "narrow.weight")])
def test_a_value_that_was_asked_for(cli: Cli, net: Path, tmp_path: Path, rate: int, size: int, kept: str) -> None:
    out = tmp_path / "net.pt2"
    done = cli("convert", net, "-o", out, "--fix", f"rate={rate}", "--json")
    assert done.code == 0, done.err
    assert done.json["values"] == {"rate": rate} and done.json["program"]["inputs"] == ["x"]
    assert set(done.json["tensors"].values()) == {kept} and done.json["program"]["parameters"] == size * 3
    assert done.json["verification"]["samples"] > 0 and "n" in done.json["dynamic"]
    program = torch.export.load(out)
    assert list(program.state_dict) == [kept]
    x = array(2, size)
    np.testing.assert_allclose(program.module()(torch.from_numpy(x)).detach().numpy(), x @ array(size, 3, seed=size), rtol=1e-5, atol=1e-6)


def test_where_nothing_else_exports_the_value_of_the_first_sample(cli: Cli, net: Path, tmp_path: Path) -> None:
    done = cli("convert", net, "-o", tmp_path / "net.pt2", "--json")
    assert done.code == 0, done.err
    (rate,) = done.json["values"].values()
    assert any(f"input 'rate' is fixed at {rate}" in note and "--fix rate=VALUE" in note for note in done.json["notes"])
    told = cli("convert", net, "-o", tmp_path / "net.pt2")
    assert f"input 'rate' is fixed at {rate}" in told.out


def test_the_samples_of_the_user_say_which(cli: Cli, net: Path, tmp_path: Path) -> None:
    samples = tmp_path / "samples"
    samples.mkdir()
    for i, (rate, size) in enumerate([(5, 4), (16, 8)]):
        np.savez(samples / f"{i}.npz", x=array(3, size), rate=np.int64(rate))
    done = cli("convert", net, "-o", tmp_path / "net.pt2", "--samples", samples, "--json")
    assert done.code == 0 and done.json["values"] == {"rate": 5}
    done = cli("convert", net, "-o", tmp_path / "net.pt2", "--samples", samples, "--fix", "rate=16", "--json")
    assert done.code == 0 and done.json["values"] == {"rate": 16}
    done = cli("convert", net, "-o", tmp_path / "none.pt2", "--samples", samples, "--fix", "rate=7")
    assert done.code == 2 and "no sample has rate=7" in done.err and not (tmp_path / "none.pt2").exists()


@pytest.mark.parametrize(("dtype", "shape", "text", "value"), [("FLOAT", (), "16.0", 16.0), ("BOOL", (1,), "true", [True])])
def test_other_types(cli: Cli, tmp_path: Path, dtype: str, shape: tuple[int, ...], text: str, value: object) -> None:
    net = _net(tmp_path / "net.onnx", dtype=getattr(TensorProto, dtype), shape=shape)
    done = cli("convert", net, "-o", tmp_path / "net.pt2", "--fix", f"rate={text}", "--json")
    assert done.code == 0 and done.json["values"] == {"rate": value} and set(done.json["tensors"].values()) == {"wide.weight"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["rate"], "expected INPUT=VALUE"),
        (["rate="], "expected INPUT=VALUE"),
        (["rate=16", "rate=5"], "was given a value already"),
        (["other=1"], "no input of the model; it has 'x', 'rate'"),
        (["rate=fast"], "expected a number of type int64"),
        (["rate=1.5"], "expected a number of type int64"),
        (["rate=9999999999999999999999"], "expected a number of type int64"),
        (["rate=1,2"], "the input has 1 elements, not 2"),
        (["x=1"], "a size of the input is free"),
        (["x=1", "rate=16"], "an input must be left"),
    ],
)
def test_refused(cli: Cli, net: Path, tmp_path: Path, given: list[str], said: str) -> None:
    done = cli("convert", net, "-o", tmp_path / "net.pt2", *(part for text in given for part in ("--fix", text)))
    assert done.code == 2 and said in done.err and done.err.count("\n") == 1 and not (tmp_path / "net.pt2").exists()


def test_a_choice_by_sizes_or_by_data_fixes_nothing() -> None:
    from graphopt.model import Model
    from graphopt.programs.fixing import deciding_inputs

    branches = {"then_branch": _branch("wide", 8), "else_branch": _branch("narrow", 4)}
    for condition in (
        [node("Size", ["x"], ["elements"]), node("Equal", ["elements", "wanted"], ["chosen"])],
        [
            node("ReduceMax", ["x"], ["top"], keepdims=0),
            node("Cast", ["top"], ["whole"], to=TensorProto.INT64),
            node("Add", ["whole", "rate"], ["sum"]),
            node("Equal", ["sum", "wanted"], ["chosen"]),
        ],
    ):
        proto = model(
            [*condition, node("If", ["chosen"], ["y"], **branches)], {"x": ["n", "size"], "rate": ()}, {"y": ["n", 3]},
            {"wanted": np.int64(16)}, types={"rate": TensorProto.INT64},
        )  # fmt: skip
        assert deciding_inputs(Model.from_ir(ir.from_proto(proto))) == []
