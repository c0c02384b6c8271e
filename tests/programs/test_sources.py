"""What may be handed in: factories, wrapped modules, programs; and what is none of them."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from graphopt.errors import InputError, OptionError  # noqa: E402
from graphopt.programs.capture import capture, is_factory  # noqa: E402

FACTORY = '''
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 2)

    def forward(self, x):
        return self.lin(x)


def pair():
    return Net().eval(), (torch.randn(3, 4),)


def three():
    return Net().eval(), {"x": torch.randn(3, 4)}, {"x": {0: "rows"}}


def single():
    return Net().eval(), torch.randn(3, 4)


def alone():
    return Net().eval()


def wrong():
    return 1, 2


def fails():
    raise RuntimeError("no weights here")


not_callable = 3
'''


@pytest.fixture
def factory(tmp_path: Path) -> str:
    path = tmp_path / "nets.py"
    path.write_text(FACTORY)
    return str(path)


@pytest.mark.parametrize(("name", "dim"), [("pair", "batch"), ("three", "rows"), ("single", "batch")])
def test_a_factory_in_a_file(factory: str, name: str, dim: str) -> None:
    captured = capture(f"{factory}:{name}")
    assert captured.dims == {"x": {0: dim}} and captured.name == name and captured.is_eager


def test_a_factory_in_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_nets").mkdir()
    (tmp_path / "my_nets" / "__init__.py").write_text("")
    (tmp_path / "my_nets" / "small.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    assert capture("my_nets.small:pair").inputs == ("x",)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("alone", "needs example inputs"),
        ("wrong", r"returned \(int, int\); expected \(module, example_inputs\)"),
        ("fails", r"RuntimeError: no weights here, at .*nets\.py:\d+ \(raise RuntimeError"),
        ("absent", "has no 'absent'"),
        ("not_callable", "'not_callable' is a int, not a function"),
    ],
)
def test_a_factory_at_fault(factory: str, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        capture(f"{factory}:{name}")


def test_what_cannot_be_imported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file"):
        capture(f"{tmp_path}/absent.py:f")
    with pytest.raises(InputError, match="there is no module 'no_such_package_here'"):
        capture("no_such_package_here.nets:f")
    broken = tmp_path / "broken.py"
    broken.write_text("x = 1 +\n")
    with pytest.raises(InputError, match="cannot be imported: SyntaxError"):
        capture(f"{broken}:f")
    needy = tmp_path / "needy.py"
    needy.write_text("import no_such_package_here\n")
    with pytest.raises(InputError, match="cannot be imported: ModuleNotFoundError"):
        capture(f"{needy}:f")


def test_what_is_a_factory() -> None:
    assert is_factory("nets.py:f") and is_factory("package.module:f") and is_factory("/a/b/nets.py:f")
    assert not is_factory("model.pt2") and not is_factory("C:\\model.onnx") and not is_factory("a/b:c") and not is_factory("a.b:c d")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.lin(x))


def test_a_graph_module_and_modules_around_a_module() -> None:
    module, x = Net().eval(), torch.randn(3, 4)
    expected = module(x)
    for source in (torch.fx.symbolic_trace(module), torch.compile(module), nn.DataParallel(module).eval()):
        captured = capture(source, x)
        assert captured.inputs == ("x",) and captured.dims == {"x": {0: "batch"}}
        torch.testing.assert_close(captured.program.module()(x), expected)


def test_an_exported_program_brings_its_inputs_and_dims() -> None:
    module, x = Net().eval(), torch.randn(3, 4)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("rows", min=2, max=9)},))
    captured = capture(program)
    assert not captured.is_eager and captured.dims == {"x": {0: "batch"}} and captured.ranges == {"batch": (2, 9)}
    torch.testing.assert_close(captured.reference(x), module(x))
    with pytest.raises(OptionError, match="fixed when it was exported"):
        capture(program, dynamic_shapes={"x": {0: "n"}})
    assert capture(program.module(), x).inputs == ("x",)


def test_a_program_in_training_mode_is_refused() -> None:
    program = torch.export.export(Net().train(), (torch.randn(3, 4),))
    named = r"node 'batch_norm' \(aten\.batch_norm\.default\) is BatchNorm in training mode"
    with pytest.raises(InputError, match=named + r".*at .*module\.eval\(\)"):
        capture(program)
    with pytest.raises(InputError, match="is BatchNorm in training mode"):
        capture(program.run_decompositions())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Net, r"Net: is a class, not a module: make one of it, Net\(\.\.\.\)"),
        (lambda x: x, "is a function, not a module"),
        (3, "a int is neither a module nor a program"),
    ],
)
def test_what_is_no_module(source: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        capture(source, torch.randn(3, 4))


def test_a_scripted_module_is_named() -> None:
    with pytest.warns(DeprecationWarning):
        scripted = torch.jit.script(nn.Linear(4, 2).eval())
    with pytest.raises(InputError, match="Linear: is a TorchScript module"):
        capture(scripted, torch.randn(3, 4))


def test_without_torch_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"need torch, which is not installed: pip install 'graphopt\[torch\]'$"):
        capture("model.pt2")


def test_a_program_without_example_inputs_gets_some_of_its_sizes() -> None:
    dims = {0: torch.export.Dim("rows", min=6, max=9)}
    program = torch.export.export(nn.Embedding(5, 3).eval(), (torch.zeros(6, 2, dtype=torch.int64),), dynamic_shapes=(dims,))
    program.example_inputs = None
    captured = capture(program)
    assert captured.tensors()["input"].tolist() == [[0, 0]] * 6


def test_example_inputs_that_a_program_does_not_take() -> None:
    program = torch.export.export(Net().eval(), (torch.randn(3, 4),))
    with pytest.raises(InputError, match="the exported program: fails on the example inputs"):
        capture(program, torch.randn(3, 5))
