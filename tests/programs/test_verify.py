"""Samples from example inputs, and the eager module as the original: verdicts, state, noise."""

from __future__ import annotations

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from graphopt.errors import GraphoptError, InputError  # noqa: E402
from graphopt.programs.calling import Caller, threads_of  # noqa: E402
from graphopt.programs.capture import capture  # noqa: E402
from graphopt.programs.facts import facts_of  # noqa: E402
from graphopt.programs.sampling import given_samples, make_samples  # noqa: E402
from graphopt.programs.verify import EagerModule, same_bits  # noqa: E402
from graphopt.verification import verify  # noqa: E402
from tests.programs.nets import ConvNet, conv_net, counting, text  # noqa: E402


def test_samples_keep_bounds_masks_and_other_sizes() -> None:
    _, captured = text()
    facts = facts_of(captured.program)
    assert facts["ids"].high == 22 and facts["kinds"].high == 1 and not facts["attention_mask"].indexed
    samples, warnings = make_samples(captured, EagerModule(captured, threads=1).run)
    assert not warnings and len(samples) >= 4
    assert len({tuple(map(tuple, s.shapes().values())) for s in samples}) >= 3
    for sample in samples:
        ids, mask, kinds = (sample.feeds[n] for n in ("ids", "attention_mask", "kinds"))
        assert ids.shape == mask.shape == kinds.shape and ids.min() >= 0 and ids.max() < 23
        assert set(np.unique(mask)) <= {0, 1} and (np.diff(mask, axis=1) <= 0).all() and mask.sum(1).min() >= 1
        assert set(np.unique(kinds)) <= {0, 1}
    assert max(s.feeds["ids"].max() for s in samples[1:]) > 9  # the whole table, not the example's few ids
    again, _ = make_samples(captured, EagerModule(captured, threads=1).run)
    assert all(np.array_equal(a.feeds[n], b.feeds[n]) for a, b in zip(samples, again, strict=True) for n in a.feeds)


def test_floats_keep_their_statistics() -> None:
    class Pixels(nn.Module):
        def forward(self, pixels: torch.Tensor, unit: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
            return pixels * unit + zeros

    pixels, unit = torch.randint(0, 256, (2, 50)).float(), torch.rand(2, 50)
    captured = capture(Pixels().eval(), (pixels, unit, torch.zeros(2, 50)), dynamic_shapes={})
    samples, _ = make_samples(captured, EagerModule(captured, threads=1).run)
    drawn = samples[1].feeds
    assert np.array_equal(drawn["pixels"], np.round(drawn["pixels"]))
    assert drawn["pixels"].std() == pytest.approx(float(pixels.std()), rel=0.3)
    assert drawn["unit"].min() >= float(unit.min()) and drawn["unit"].max() <= float(unit.max())
    assert drawn["zeros"].std() > 0.5  # zeros stand for anything


def test_given_samples_are_checked(tmp_path) -> None:
    _, captured = text()
    feeds = {n: t.numpy() for n, t in captured.tensors().items()}
    np.savez(tmp_path / "ok.npz", **feeds)
    assert np.array_equal(given_samples(captured, tmp_path / "ok.npz")[0].feeds["ids"], feeds["ids"])
    np.savez(tmp_path / "bad.npz", **(feeds | {"ids": feeds["ids"].astype(np.int32)}))
    with pytest.raises(InputError, match=r"bad\.npz: input 'ids': expected int64, found int32"):
        given_samples(captured, tmp_path / "bad.npz")


def test_the_program_is_the_module_and_a_changed_one_is_not() -> None:
    module, captured = conv_net()
    original = EagerModule(captured, threads=1)
    samples, _ = make_samples(captured, original.run)
    same = Caller(captured, captured.program.module(), threads=1)
    assert same_bits(original, same, samples)
    found = verify(None, same, samples, effect="exact", reference=original)
    assert found.verdict == "identical" and found.samples == len(samples) and len(found.sizes) >= 2
    assert found.informative == len(samples) and found.exercised == 1.0
    assert set(found.to_dict()) >= {"verdict", "samples", "sizes", "outputs", "notes"}
    wrong = copy.deepcopy(module)
    with torch.no_grad():
        wrong.norm2.bias[3] += 0.01
    found = verify(None, Caller(captured, wrong, threads=1), samples, reference=original)
    assert found.verdict == "different" and "max relative error" in found.reason
    close = copy.deepcopy(module)
    with torch.no_grad():
        close.second.weight.mul_(1 + 1e-7)
    assert verify(None, Caller(captured, close, threads=1), samples, reference=original).verdict == "equivalent"


def test_noise_is_that_of_double_precision_and_of_one_rounding() -> None:
    _, captured = conv_net()
    original = EagerModule(captured, threads=1)
    samples, _ = make_samples(captured, original.run)
    (noise,) = original.noise(samples[0])["output"]
    assert 1e-9 < noise.rounding < 1e-5
    _, captured = text()  # integers alone: the weights are shaken
    original = EagerModule(captured, threads=1)
    assert original.has("shaken")
    (noise,) = original.noise(make_samples(captured, original.run)[0][0])["output"]
    assert 1e-9 < noise.rounding < 1e-5
    assert original.ranges["output"] == (0.0, 1.0)


def test_state_is_compared_after_one_call_and_after_two_and_the_module_stays() -> None:
    module, captured = counting()
    original = EagerModule(captured, threads=1)
    assert original.output_names == [
        "output", "buffer calls", "buffer last", "output (second call)", "buffer calls (second call)", "buffer last (second call)",
    ]  # fmt: skip
    samples, _ = make_samples(captured, original.run)
    answer = original.run(samples[0].feeds)
    assert answer["buffer calls"].item() == 1 and answer["buffer calls (second call)"].item() == 2
    assert not np.array_equal(answer["output"], answer["output (second call)"])
    assert module.calls.item() == 0 and not module.last.any()
    program = Caller(captured, captured.program.module(), threads=1)
    assert verify(None, program, samples, effect="exact", reference=original).verdict == "identical"

    class Forgetful(type(module)):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = super().forward(x)
            self.last.zero_()
            return y

    forgetful = Forgetful().eval()
    forgetful.load_state_dict(module.state_dict())
    found = verify(None, Caller(captured, forgetful, threads=1), samples, reference=original)
    assert found.verdict == "different" and "buffer last" in found.reason


def test_a_module_that_raises_says_where() -> None:
    class Fussy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    captured = capture(Fussy().eval(), torch.randn(2, 3), dynamic_shapes={})

    class Raises(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError("no\nsuch thing")

    with pytest.raises(GraphoptError, match=r"^ValueError: no, at .*test_verify\.py:\d+ \(raise ValueError"):
        Caller(captured, Raises(), threads=1).run({"x": np.zeros((2, 3), np.float32)})


def test_threads_are_put_back_and_a_module_that_cannot_be_copied_runs_all_the_same() -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyError), threads_of(3):
        assert torch.get_num_threads() == 3
        raise KeyError
    assert torch.get_num_threads() == before
    module = ConvNet().eval()
    module.lock = (n for n in ())  # a generator has no copy
    _, captured = conv_net()
    assert Caller(captured, module, threads=1).module is module
    assert Caller(captured, module, threads=1).run({"image": np.zeros((1, 3, 8, 8), np.float32)})["output"].shape == (1, 5)
