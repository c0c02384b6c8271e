"""A program as a module that is quick to call: results, state, names, and what it turns down."""

from __future__ import annotations

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from graphopt.programs.module import ProgramModule, as_module  # noqa: E402
from tests.programs.nets import conv_net, counting  # noqa: E402


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, scale: float = 2.0, more: dict[str, Any] | None = None) -> dict[str, Any]:
        y = self.linear(x) * scale + more["a"]
        return {"y": y, "pair": (y.sum(), x)}


@pytest.fixture(scope="module")
def nested() -> tuple[nn.Module, Any]:
    module = Nested().eval()
    auto = torch.export.Dim.AUTO
    shapes = {"x": {0: auto}, "more": {"a": {0: auto}}}
    program = torch.export.export(module, (torch.randn(3, 4),), {"more": {"a": torch.ones(3, 4)}}, dynamic_shapes=shapes)
    return module, program.run_decompositions({})


def test_it_computes_what_the_module_does_under_the_same_names() -> None:
    module, captured = conv_net()
    made = as_module(captured.program)
    assert isinstance(made, ProgramModule)
    assert made.state_dict().keys() == module.state_dict().keys()
    for size in ((2, 3, 8, 8), (1, 3, 5, 9)):
        x = torch.randn(size)
        torch.testing.assert_close(made(x), module(x), rtol=1e-6, atol=1e-6)
    assert made.first.weight is module.first.weight  # shared, as in the program


def test_nested_arguments_and_results(nested) -> None:
    module, program = nested
    made = as_module(program)
    x, more = torch.randn(2, 4), {"a": torch.randn(2, 4)}
    expected, found = module(x, more=more), made(x, more=more)
    torch.testing.assert_close(found, expected)
    with pytest.raises(TypeError, match="was exported with 1 positional arguments and more"):
        made(x)


def test_what_does_not_fit_is_turned_down(nested) -> None:
    _, program = nested
    made = as_module(program)
    for x, a, said in (
        (torch.randn(2, 5), torch.randn(2, 4), "'x' has size 5 in dimension 1, not 4"),
        (torch.randn(2, 4), torch.randn(3, 4), "'more_a' has size 3 in dimension 0, not 2"),
        (torch.randn(2, 4).double(), torch.randn(2, 4), "'x' is torch.float64, not torch.float32"),
        (torch.randn(2, 4, 1), torch.randn(2, 4), "'x' has 3 dimensions, not 2"),
    ):
        with pytest.raises(ValueError, match=said):
            made(x, more={"a": a})


def test_state_changes_in_the_module_and_not_in_the_program() -> None:
    module, captured = counting()
    made, eager = as_module(captured.program), copy.deepcopy(module)
    for seed in range(3):
        x = torch.randn(2, 4, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(made(x), eager(x))
    assert made.calls.item() == 3 and module.calls.item() == 0
    assert captured.program.state_dict["calls"].item() == 0
    other = copy.deepcopy(made)
    other(x)
    assert other.calls.item() == 4 and made.calls.item() == 3


def test_gradients_loading_and_types() -> None:
    module, captured = conv_net()
    made = copy.deepcopy(as_module(captured.program))
    made(torch.randn(2, 3, 8, 8)).sum().backward()
    assert made.first.weight.grad is not None
    state = {name: torch.zeros_like(t) for name, t in module.state_dict().items()}
    made.load_state_dict(state, assign=True)
    assert not made(torch.randn(2, 3, 8, 8)).any()
    assert made.to(torch.float32) is made and made._held[0] is made.get_parameter(made._places[0])
