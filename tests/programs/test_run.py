"""Runs on torch programs: what comes out, what is rolled back, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

torch = pytest.importorskip("torch")

import graphopt  # noqa: E402
from graphopt.errors import InputError, OptionError, OutputError  # noqa: E402
from graphopt.programs import run as programs  # noqa: E402
from graphopt.programs.capture import capture  # noqa: E402
from graphopt.programs.run import Optimized, ProgramRun  # noqa: E402
from graphopt.reporting.html import render as html  # noqa: E402
from graphopt.reporting.progress import Progress  # noqa: E402
from graphopt.reporting.terminal import render  # noqa: E402
from graphopt.request import Request, plan  # noqa: E402
from graphopt.workbench import Stages  # noqa: E402
from tests.programs import nets  # noqa: E402
from tests.programs.nets import conv_net, counting  # noqa: E402


def carried_out(captured: Any, destination: Path | None, *passes: str, **changes: Any) -> Optimized:
    """A run on what was captured before, as `optimize_program` does it."""
    plugins = (str(Path(nets.__file__)),)
    request = Request(model=Path("net"), passes=passes or None, threads=1, plugins=plugins, **{"bench": False, **changes})
    _, pipeline = plan(request)
    return ProgramRun(request, pipeline, destination, Stages(Progress(quiet=True))).on(lambda: captured)


def test_a_program_comes_out(tmp_path: Path) -> None:
    module, captured = conv_net()
    made = carried_out(captured, tmp_path / "fast.pt2", "fuse-conv-bn", "prune-dead-nodes")
    assert made.exit_code == 0 and made.report.verification["verdict"] == "equivalent"
    report = made.report.to_dict()
    assert (report["model"]["kind"], report["output"]) == ("torch", str(tmp_path / "fast.pt2"))
    assert not any("batch_norm" in name for name in report["after"]["operators"])
    assert report["before"]["nodes"] - report["after"]["nodes"] == 2
    first = report["passes"][0]
    assert (first["name"], first["kind"], first["applied"]) == ("fuse-conv-bn", "torch", 2)
    assert "first.weight_folded" in report["parameters"]["first.weight"] and report["parameters"]["head.weight"] == ["head.weight"]
    read = torch.export.load(tmp_path / "fast.pt2").module()
    for size in ((2, 3, 8, 8), (1, 3, 6, 9)):
        x = torch.randn(size)
        for candidate in (read, made.module):
            torch.testing.assert_close(candidate(x), module(x), rtol=1e-5, atol=1e-5)
    for text in (render(made.report), html(made.report)):
        assert "fuse-conv-bn" in text and "equivalent" in text


def test_an_onnx_model_comes_out(tmp_path: Path) -> None:
    module, captured = conv_net()
    made = carried_out(captured, tmp_path / "fast.onnx")
    assert made.exit_code == 0 and made.onnx == tmp_path / "fast.onnx"
    report = json.loads(made.report.to_json())
    assert {p["kind"] for p in report["passes"]} == {"torch", "onnx"}
    assert "BatchNormalization" not in report["after"]["operators"] and report["exported"]["nodes"] >= report["after"]["nodes"]
    assert report["verification"]["verdict"] == "equivalent" and len(report["verification"]["sizes"]) >= 2
    assert [v.name for v in onnx.load(made.onnx).graph.input] == ["image"]
    session = ort.InferenceSession(made.onnx)
    for size in ((2, 3, 8, 8), (3, 3, 12, 7)):
        x = torch.randn(size)
        np.testing.assert_allclose(session.run(None, {"image": x.numpy()})[0], module(x).detach(), rtol=1e-4, atol=1e-5)
    assert list(tmp_path.iterdir()) == [made.onnx]


def test_an_application_that_is_wrong_is_rolled_back_alone() -> None:
    module, captured = conv_net()
    made = carried_out(captured, None, "relu-to-abs", "fuse-conv-bn")
    assert made.exit_code == 0 and made.report.verification["verdict"] == "equivalent"
    assert any(w.startswith("relu-to-abs at relu_1 was rolled back") for w in made.report.warnings)
    assert [(p.name, p.applied) for p in made.report.passes] == [("relu-to-abs", 1), ("fuse-conv-bn", 2)]
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(made.module(x), module(x), rtol=1e-5, atol=1e-5)
    assert made.report.output is None


@pytest.mark.slow
def test_what_keeps_a_program_from_onnx_is_rolled_back(tmp_path: Path) -> None:
    _, captured = conv_net()
    made = carried_out(captured, tmp_path / "fast.onnx", "untranslatable", "fuse-conv-bn")
    assert made.exit_code == 0 and made.onnx.exists()
    assert any("untranslatable" in w and "no ONNX translation" in w for w in made.report.warnings)


def test_buffers_that_change_stay_and_are_refused_on_the_way_to_onnx(tmp_path: Path) -> None:
    module, captured = counting()
    made = carried_out(captured, tmp_path / "fast.pt2")
    assert made.report.verification["verdict"] == "identical"
    assert any(o["name"] == "buffer calls (second call)" for o in made.report.verification["outputs"])
    assert made.module.calls.item() == 0 and module.calls.item() == 0
    with pytest.raises(InputError, match=r"depend on 'calls', 'last', which it changes when it runs"):
        carried_out(captured, tmp_path / "fast.onnx")
    assert not (tmp_path / "fast.onnx").exists()


def test_buffers_that_no_answer_depends_on_are_no_obstacle(tmp_path: Path) -> None:
    class Watched(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls.add_(1)
            return x.sin() + 1

    captured = capture(Watched().eval(), torch.randn(2, 5), dynamic_shapes={})
    made = carried_out(captured, tmp_path / "fast.onnx", "prune-dead-nodes")
    assert made.exit_code == 0 and [o["name"] for o in made.report.verification["outputs"]] == ["output"]


def test_speeds_are_those_of_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, captured = conv_net()
    monkeypatch.setattr(programs, "_SECONDS", 0.5)
    monkeypatch.setattr("graphopt.steering.neverslower._SECONDS", 0.5)
    monkeypatch.setattr("graphopt.steering.neverslower._TRIAL_SECONDS", 0.3)
    made = carried_out(captured, tmp_path / "fast.onnx", "fuse-conv-bn", bench=True, tune=False)
    speeds = made.report.to_dict()["speeds"]
    assert list(speeds) == ["eager", "optimized", "onnxruntime"] and all(row["ms"] > 0 for row in speeds.values())
    assert speeds["onnxruntime"]["pairs"] == speeds["optimized"]["pairs"] >= 1
    assert made.report.to_dict()["speed"]["ratio"] == speeds["onnxruntime"]["ratio"]
    assert made.report.speed["beside"] == "the eager module"
    assert "onnxruntime" in render(made.report)
    before = torch.get_num_threads()
    made = carried_out(captured, None, "fuse-conv-bn", bench=True)
    assert torch.get_num_threads() == before
    # Kept and timed, or undone because it measured slower: a small module on a loaded machine may go either way.
    speeds = made.report.to_dict()["speeds"]
    assert list(speeds) == ["eager", "optimized"] or any("slower" in w for w in made.report.warnings)


def test_a_program_that_is_slower_is_not_what_comes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    _, captured = conv_net()
    monkeypatch.setattr("graphopt.steering.neverslower._SECONDS", 0.3)
    monkeypatch.setattr("graphopt.steering.neverslower._TRIAL_SECONDS", 0.3)
    made = carried_out(captured, None, "slow-down-relu", bench=True)
    assert any(w.startswith("slow-down-relu was rolled back: with it the model is slower") for w in made.report.warnings)
    assert made.report.after["nodes"] == made.report.before["nodes"]


@pytest.mark.parametrize(
    ("changes", "destination", "said"),
    [
        ({"shapes": {"image": (1, 3, 8, 8)}}, "a.onnx", "--shape: the shapes of a torch program"),
        ({"fix_initializers": True}, "a.onnx", "--fix-initializers: a torch program has no initializers"),
        ({"metric": "m:f"}, "a.onnx", "--metric: measures of quality"),
        ({"bake": True}, "a.pt2", "--bake: only an ONNX model can be baked"),
        ({"provider": "cuda"}, "a.pt2", "--provider: only an ONNX model runs on a provider"),
        ({"in_place": True}, "a.onnx", "--in-place: there is no file to replace"),
        ({}, "a.pth", "a.pth: the name of the result must end in .onnx or .pt2"),
        ({"passes": ("raise-opset",)}, "a.pt2", "pass 'raise-opset' works on ONNX graphs alone"),
    ],
)
def test_options_that_make_no_sense(changes: dict[str, Any], destination: str, said: str, tmp_path: Path) -> None:
    module, _ = conv_net()
    with pytest.raises(OptionError) as raised:
        programs.optimize_program(module, Request(model=Path("net"), **changes), destination=Path(destination))
    assert said in str(raised.value)


def test_from_python(tmp_path: Path) -> None:
    module, _ = conv_net()
    x = torch.randn(2, 3, 8, 8)
    result = graphopt.optimize(module, (x,), dynamic_shapes={"image": {0: "batch"}}, threads=1)
    assert result.verified and result.exit_code == 0 and result.onnx is None and result.output is None
    torch.testing.assert_close(result.module(x[:1]), module(x[:1]), rtol=1e-5, atol=1e-5)
    assert isinstance(result.program, torch.export.ExportedProgram)
    again = graphopt.optimize(result.program, output=tmp_path / "again.pt2", threads=1)
    assert again.verified and (tmp_path / "again.pt2").exists()
    with pytest.raises(InputError, match="is in training mode"):
        graphopt.optimize(nets.ConvNet(), (x,))
    with pytest.raises(InputError, match="needs example inputs"):
        graphopt.optimize(module)
    with pytest.raises(OutputError, match="there is no folder"):
        graphopt.optimize(module, (x,), output=tmp_path / "none" / "a.onnx")
    path = tmp_path / "m.onnx"
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["a"]), onnx.helper.make_node("Relu", ["a"], ["y"])], "g",
        [onnx.helper.make_tensor_value_info("x", 1, [2])], [onnx.helper.make_tensor_value_info("y", 1, [2])],
    ), opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)  # fmt: skip
    result = graphopt.optimize(path)
    assert result.verified and result.module is None and result.onnx == tmp_path / "m.opt.onnx"
    with pytest.raises(OptionError, match="example inputs, dynamic shapes"):
        graphopt.optimize(path, (x,))
    with pytest.raises(InputError, match="an ONNX model in memory"):
        graphopt.optimize(onnx.load(path))
