"""Random torch modules through the default preset, beside eager; `python -m tests.fuzz.modules` runs for longer."""

from __future__ import annotations

import os

import pytest

torch = pytest.importorskip("torch")

from tests.fuzz.modules import BLOCKS, Builder, check, drawn, run  # noqa: E402
from tests.support import REGISTRY  # noqa: E402


def test_random_modules() -> None:
    checked, rejected, findings = run(600, 0, limit=4)
    assert not findings, findings[0].text
    assert checked == 4 and rejected <= 1


@pytest.mark.slow
def test_fuzz() -> None:
    """Seconds by the environment variable GRAPHOPT_FUZZ_MODULE_SECONDS, the first seed by GRAPHOPT_FUZZ_SEED."""
    seconds = float(os.environ.get("GRAPHOPT_FUZZ_MODULE_SECONDS", "50"))
    checked, rejected, findings = run(seconds, int(os.environ.get("GRAPHOPT_FUZZ_SEED", "100000")))
    assert not findings, [f"seed {f.seed}: {f.text}; gone without {f.passes}" for f in findings]
    assert checked >= seconds / 25 and rejected <= checked // 5


def test_every_kind_of_step_is_drawn_and_the_same_again() -> None:
    assert {name for name in BLOCKS if callable(getattr(Builder, name))} == set(BLOCKS)
    (one, inputs, program), (other, again, _) = drawn(3), drawn(3)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(inputs, again, strict=True))
    with torch.no_grad():
        for a, b in zip(one(inputs[1]), program.module()(inputs[1]), strict=True):
            torch.testing.assert_close(a, b)


def test_a_wrong_answer_is_found_and_its_pass_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from graphopt.passes.aten import fuse_conv_bn

    from graphopt.pipeline.presets import Pipeline

    right = fuse_conv_bn.read_bn
    monkeypatch.setattr(fuse_conv_bn, "read_bn", lambda *a, **k: tuple(1.01 * part for part in right(*a, **k)))
    steps = [REGISTRY.get(name).configure() for name in ("fuse-conv-bn", "prune-dead-nodes")]
    pipeline = Pipeline.of("test", steps, 1)
    found = next(f for seed in range(20) if (f := check(seed, pipeline)) is not None)
    assert found.passes == ("fuse-conv-bn",)
