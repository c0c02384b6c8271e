"""The program that is rewritten: what is kept, what is shared, what comes out."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from graphopt.aten import AtenContext, AtenEditor, Program, count_nodes, drive  # noqa: E402
from graphopt.aten.arrays import to_array, to_tensor  # noqa: E402
from graphopt.pipeline.runner import Hold  # noqa: E402
from graphopt.rewriting import Refuse  # noqa: E402
from tests.aten.support import assert_same, exported, ops, result, rewritten  # noqa: E402


class Counting(nn.Module):
    """A convolution, a buffer that every call changes, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("count", torch.zeros(1))
        self.register_buffer("table", torch.arange(4.0), persistent=False)

    def forward(self, x):
        self.count.add_(1)
        y = torch.relu(self.conv(x))
        return y + self.table.view(1, 4, 1, 1), y.sum((2, 3)) * self.count


def _x(batch: int = 2):
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_unchanged_program_comes_out_as_it_went_in():
    module = Counting()
    program = exported(module, _x(), dynamic=({0: torch.export.Dim("batch")},))
    out = Program(program).export()
    assert [n.name for n in out.graph.nodes] == [n.name for n in program.graph.nodes]
    assert out.state_dict.keys() == program.state_dict.keys() and out.constants.keys() == program.constants.keys()
    assert [(s.kind, s.target, s.persistent) for s in out.graph_signature.input_specs] == [
        (s.kind, s.target, s.persistent) for s in program.graph_signature.input_specs
    ]
    assert all(out.state_dict[n] is program.state_dict[n] for n in out.state_dict)  # no weight is copied
    assert_same(module, out, (_x(2),), (_x(5),), (_x(1),))


def test_arguments_named_as_functions_of_python_keep_their_names_and_places():
    class Named(nn.Module):
        def forward(self, input, max, state):
            return input * max - state

    given = [(torch.randn(b, 4), torch.randn(4), torch.randn(b, 1)) for b in (3, 5)]
    batch = torch.export.Dim("batch")
    program = exported(Named(), *given[0], dynamic=({0: batch}, None, {0: batch}))
    out = Program(program).export()
    assert out.graph_signature.user_inputs == program.graph_signature.user_inputs == ("input", "max", "state")
    assert [n.name for n in out.graph.nodes] == [n.name for n in program.graph.nodes]
    again = Program(out).export()
    for other in (out, again):
        assert_same(Named(), other, *given)


def test_mutated_buffer_is_no_constant():
    program = Program(exported(Counting(), _x()))
    context = AtenContext(program)
    by_name = {program.name_of(n): n for n in program.specs}
    assert context.constant(by_name["count"]) is None and context.constant(by_name["table"]) is not None
    with pytest.raises(Refuse, match="changes from call to call"):
        context.required(by_name["count"], "the factor")


def test_new_constant_gets_a_free_name_and_is_saved(tmp_path):
    module = Counting()
    program = Program(exported(module, _x()))
    context = AtenContext(program)

    def double(node, editor: AtenEditor) -> None:
        given = context.arguments(node)
        weight = editor.constant(context.constant(given["weight"]) * np.float32(1), "conv.bias", made_of=[given["weight"]])
        editor.replace(node, editor.call("aten.conv2d.default", [given["input"], weight, given["bias"]], like=node))

    node = context.of(["aten.conv2d.default"])[0]
    editor = AtenEditor(context, node)
    double(node, editor)
    editor.check()
    editor.commit()
    out = program.export()
    assert "conv.bias_1" in out.state_dict and "conv.weight" not in out.state_dict
    assert program.parameters["conv.bias_1"] == ("conv.weight",) and program.parameters["conv.bias"] == ("conv.bias",)
    torch.export.save(out, tmp_path / "out.pt2")
    assert_same(module, torch.export.load(tmp_path / "out.pt2"), (_x(),))


def test_discarded_staging_leaves_no_trace():
    program = Program(exported(Counting(), _x()))
    before = str(program.graph), set(program.tensors)

    def refuse(node, editor: AtenEditor) -> None:
        constant = editor.constant(np.ones((4, 1, 1), np.float32), "ones")
        editor.replace(node, editor.call("aten.add.Tensor", [node, constant]))
        raise Refuse("not today")

    context = AtenContext(program)
    drive(context, ["aten.relu.default"], refuse)
    assert (str(program.graph), set(program.tensors)) == before
    assert [r.reason for r in context.log.refusals] == ["not today"]


def test_replacement_of_another_shape_or_type_is_refused():
    program = Program(exported(Counting(), _x()))

    def wrong(node, editor: AtenEditor) -> None:
        editor.replace(node, editor.call("aten.sum.dim_IntList", [node, [2]]))

    context = AtenContext(program)
    drive(context, ["aten.relu.default"], wrong)
    assert context.log.applied == 0
    assert "the replacement would be float32[2, 4, 6], not float32[2, 4, 6, 6]" in context.log.refusals[0].reason


def test_other_strides_before_a_view_are_refused():
    class Viewed(nn.Module):
        def forward(self, x):
            return torch.relu(x).view(2, -1)

    program = Program(exported(Viewed(), _x()))

    def turned(node, editor: AtenEditor) -> None:
        other = editor.call("aten.clone.default", [node.args[0]], {"memory_format": torch.channels_last})
        editor.replace(node, editor.call("aten.relu.default", [other]))

    context = AtenContext(program)
    drive(context, ["aten.relu.default"], turned)
    assert context.log.applied == 0 and "lays out otherwise" in context.log.refusals[0].reason


def test_drive_that_never_ends_is_stopped():
    program = Program(exported(Counting(), _x()))

    def again(node, editor: AtenEditor) -> None:
        editor.replace(node, editor.call("aten.relu.default", [node.args[0]], like=node))

    with pytest.raises(RuntimeError, match="does not come to an end"):
        drive(AtenContext(program), ["aten.relu.default"], again)


def test_arguments_are_named_and_defaults_filled_in():
    program = Program(exported(Counting(), _x()))
    context = AtenContext(program)
    given = context.arguments(context.of(["aten.conv2d.default"])[0])
    assert list(given) == ["input", "weight", "bias", "stride", "padding", "dilation", "groups"]
    assert given["dilation"] == [1, 1] and given["groups"] == 1 and context.static_shape(given["weight"]) == (4, 3, 3, 3)


def test_control_flow_is_opaque_and_counted():
    class Branch(nn.Module):
        def forward(self, x):
            return torch.cond(x.sum() > 0, lambda v: torch.relu(v) + 1, lambda v: v * 2, (x,))

    program = exported(Branch(), torch.randn(2, 3))
    assert count_nodes(Program(program)) == 6  # sum, gt, cond; relu and add; mul
    out = Program(program).export()
    for sign in (1, -1):
        assert_same(Branch(), out, (torch.ones(2, 3) * sign,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.bool])
def test_tensors_and_arrays_are_one_another(dtype):
    tensor = (torch.arange(12).reshape(3, 4) % 3).to(dtype)
    array = to_array(tensor)
    assert array.shape == (3, 4) and torch.equal(to_tensor(array), tensor) and to_tensor(array).dtype is dtype


def test_sparse_tensors_have_no_array():
    assert to_array(torch.eye(3).to_sparse()) is None


def test_held_back_application_is_not_made():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)) for _ in range(3)])

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    module = Net()
    program = exported(module, _x())
    whole = rewritten(program, "fuse-conv-bn")
    assert [a.number for a in whole.applications] == [0, 1, 2]
    part = rewritten(program, "fuse-conv-bn", hold=Hold(applications=frozenset({1})), rounds=3)
    assert ops(result(part))["_native_batch_norm_legit_no_training"] == 1
    assert_same(module, result(part), (_x(),))
