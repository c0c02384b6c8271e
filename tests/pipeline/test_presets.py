"""Presets and pipelines: what TOML and the command line may say, and what is turned down."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from graphopt.errors import OptionError, PluginError
from graphopt.pipeline.presets import build_pipeline, load_preset, preset_names
from graphopt.pipeline.registry import Registry
from graphopt.rewriting import Effect
from tests.pipeline import faulty


@pytest.fixture
def registry() -> Registry:
    registry = Registry.discover()
    registry.add(faulty, "tests")
    return registry


def write(tmp_path: Path, text: str) -> str:
    file = tmp_path / "p.toml"
    file.write_text(text)
    return str(file)


def test_installed_presets_load(registry: Registry) -> None:
    assert {"clean", "default", "ort", "weights-int8"} <= set(preset_names())
    for name in preset_names():
        assert load_preset(name, registry).steps
    assert load_preset("clean", registry).effect is Effect.EXACT
    assert load_preset("default", registry).effect is Effect.ROUNDING
    assert load_preset("weights-int8", registry).effect is Effect.LOSSY


def test_options_of_a_step(registry: Registry, tmp_path: Path) -> None:
    pipeline = load_preset(write(tmp_path, '[[step]]\npass = "slow-down"\noptions = { count = 7 }\n'), registry)
    assert pipeline.name == "p"
    assert pipeline.steps[0].count == 7


def test_options_from_the_command_line_go_over_those_of_the_preset(registry: Registry, tmp_path: Path) -> None:
    preset = write(tmp_path, 'rounds = 2\n[[step]]\npass = "slow-down"\noptions = { count = 7 }\n')
    pipeline = build_pipeline(registry, preset=preset, options={"slow-down": {"count": "9"}})
    assert pipeline.steps[0].count == 9
    assert pipeline.rounds == 2


def test_an_included_preset_keeps_its_rounds(registry: Registry, tmp_path: Path) -> None:
    text = "[[step]]\npass = 'neg-to-relu'\n[[step]]\npreset = 'clean'\n[[step]]\npass = 'slow-down'\n"
    pipeline = load_preset(write(tmp_path, text), registry)
    clean = load_preset("clean", registry)
    assert [s.rounds for s in pipeline.stages] == [1, clean.rounds, 1]
    assert pipeline.stages[1].steps == clean.steps
    assert [s.name for s in pipeline.steps] == ["neg-to-relu", *(s.name for s in clean.steps), "slow-down"]


def test_passes_of_an_included_preset_that_are_left_out(registry: Registry, tmp_path: Path) -> None:
    pipeline = load_preset(write(tmp_path, "[[step]]\npreset = 'clean'\nskip = ['eliminate-identity', 'merge-casts']\n"), registry)
    clean = load_preset("clean", registry)
    assert [s.name for s in pipeline.steps] == [s.name for s in clean.steps if s.name not in ("eliminate-identity", "merge-casts")]
    assert pipeline.rounds == clean.rounds


def test_skip_and_passes(registry: Registry) -> None:
    full = build_pipeline(registry, preset="clean")
    less = build_pipeline(registry, preset="clean", skip=["eliminate-identity"])
    assert len(less.steps) < len(full.steps)
    names = ["neg-to-relu", "eliminate-identity"]
    assert [s.name for s in build_pipeline(registry, passes=names).steps] == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[step]\n", "not valid TOML"),
        ("steps = 1\n", "unknown key 'steps'"),
        ("rounds = 0\n[[step]]\npass = 'neg-to-relu'\n", "rounds must be"),
        ("rounds = true\n[[step]]\npass = 'neg-to-relu'\n", "rounds must be"),
        ("", "has no steps"),
        ("[step]\npass = 'neg-to-relu'\n", r"\[\[step\]\]"),
        ("[[step]]\nname = 'x'\n", "step 1: unknown key 'name'"),
        ("[[step]]\n", "needs either"),
        ("[[step]]\npass = 'neg-to-rely'\n", "did you mean neg-to-relu"),
        ("[[step]]\npass = 'slow-down'\noptions = { count = 0 }\n", "below the minimum of 1"),
        ("[[step]]\npass = 'slow-down'\noptions = { count = 1.5 }\n", "not a valid int"),
        ("[[step]]\npass = 'slow-down'\noptions = { many = 1 }\n", "has no option 'many'"),
        ("[[step]]\npreset = 'nope'\n", "unknown preset 'nope'"),
        ("[[step]]\npreset = 'clean'\noptions = { a = 1 }\n", "options belong to a pass"),
        ("[[step]]\npass = 'neg-to-relu'\nskip = ['neg-to-relu']\n", "skip belongs to a preset"),
        ("[[step]]\npreset = 'clean'\nskip = 'merge-casts'\n", "skip is a list of names"),
        ("[[step]]\npreset = 'clean'\nskip = ['neg-to-relu']\n", "skip names 'neg-to-relu', which preset clean does not run"),
    ],
)
def test_bad_presets(registry: Registry, tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        load_preset(write(tmp_path, text), registry)


def test_passes_that_pay_on_one_provider_only(registry: Registry) -> None:
    on_cpu = {s.name for s in build_pipeline(registry).steps}
    on_cuda = {s.name for s in build_pipeline(registry, provider="cuda").steps}
    assert on_cpu - on_cuda == {
        "activations-to-uint8", "bound-masked-softmax", "keep-add-before-layernorm", "keep-pad-before-conv", "spell-out-conv-transpose",
        "spell-out-prelu", "spell-out-softmax",
    }  # fmt: skip
    asked = build_pipeline(registry, passes=["keep-add-before-layernorm"], provider="cuda")
    assert [s.name for s in asked.steps] == ["keep-add-before-layernorm"]


def test_a_preset_that_includes_itself(registry: Registry, tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text(f"[[step]]\npreset = '{file}'\n")
    with pytest.raises(OptionError, match="includes itself"):
        load_preset(str(file), registry)


def test_unknown_names(registry: Registry) -> None:
    with pytest.raises(OptionError, match="unknown pass 'nope'"):
        build_pipeline(registry, passes=["nope"])
    with pytest.raises(OptionError, match="unknown pass 'nope'"):
        build_pipeline(registry, skip=["nope"])
    with pytest.raises(OptionError, match="does not run"):
        build_pipeline(registry, preset="clean", options={"slow-down": {"count": "3"}})
    with pytest.raises(OptionError, match="no such file"):
        load_preset("missing.toml", registry)


def test_two_passes_with_one_name() -> None:
    registry = Registry()
    registry.add(faulty.NegToRelu, "one")
    other = dataclass(frozen=True)(type("Other", (faulty.NegToRelu,), {"__doc__": "Another.", "__module__": "elsewhere"}))
    with pytest.raises(PluginError, match="two passes are called 'neg-to-relu'"):
        registry.add(other, "two")


def test_steps_for_calibrated_runs(registry: Registry, tmp_path: Path) -> None:
    text = "[[step]]\npass = 'merge-casts'\n[[step]]\npass = 'eliminate-identity'\nwhen = 'calibration'\n"
    text += "[[step]]\npreset = 'clean'\nwhen = 'calibration'\n"
    preset = write(tmp_path, text)
    names = [s.name for s in build_pipeline(registry, preset=preset).steps]
    assert names[:2] == ["merge-casts", "eliminate-identity"] and len(names) > 2
    assert [s.name for s in build_pipeline(registry, preset=preset, calibrated=False).steps] == ["merge-casts"]
    with pytest.raises(OptionError, match='step 1: when is "calibration" or not there'):
        load_preset(write(tmp_path, "[[step]]\npass = 'merge-casts'\nwhen = 'often'\n"), registry)
