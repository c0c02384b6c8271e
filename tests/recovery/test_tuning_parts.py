"""Rates, losses and batches of a tuning, against torch's own schedulers and numpy."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.errors import CalibrationError, OptionError
from graphopt.recovery.tuning import Tuning
from graphopt.recovery.tuning.batches import Batches
from graphopt.recovery.tuning.rates import Rate
from graphopt.recovery.tuning.settings import parse
from graphopt.verification import Sample
from tests.support import array, model, node

torch = pytest.importorskip("torch")
from graphopt.recovery.tuning.losses import cosine, kl, loss_of, mse  # noqa: E402


def torch_rates(kind: str, epochs: int, **options) -> list[float]:
    """The rate of every epoch by a scheduler of torch."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = getattr(torch.optim.lr_scheduler, kind)(optimizer, **options)
    found = []
    for _ in range(epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(
    ("schedule", "kind", "options"),
    [
        ("constant", "ConstantLR", {"factor": 1.0}),
        ("step", "StepLR", {"step_size": 3, "gamma": 0.3}),
        ("exponential", "ExponentialLR", {"gamma": 0.3}),
        ("cosine", "CosineAnnealingLR", {"T_max": 12}),
    ],
)
def test_rates_are_those_of_torch(schedule: str, kind: str, options: dict):
    rate = Rate(Tuning(rate=0.5, schedule=schedule, every=3, decay=0.3, epochs=12), steps=1)
    np.testing.assert_allclose([rate.at(i) for i in range(12)], torch_rates(kind, 12, **options), rtol=1e-6)


def test_a_rate_within_an_epoch_and_warm_up():
    rate = Rate(Tuning(rate=1.0, schedule="step", every=1, decay=0.5, warmup=4, epochs=3), steps=5)
    assert [rate.at(i) for i in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0] and rate.at(5) == 0.5 and rate.at(14) == 0.25


def test_the_rate_falls_where_the_loss_does_not():
    losses = [3.0, 2.0, 2.5, 2.5, 2.5, 1.0, 1.5, 1.5, 1.5, 1.5]
    rate, found = Rate(Tuning(rate=0.5, schedule="plateau", patience=2, decay=0.1), steps=1), []
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=2, factor=0.1, threshold=0.0)
    expected = []
    for loss in losses:
        rate.after_epoch(loss)
        scheduler.step(loss)
        found.append(rate.at(0))
        expected.append(optimizer.param_groups[0]["lr"])
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert min(found) < 0.01  # it fell twice


def test_a_rate_goes_on_from_its_state():
    first = Rate(Tuning(schedule="plateau", patience=0), steps=1)
    for loss in (1.0, 2.0):
        first.after_epoch(loss)
    second = Rate(Tuning(schedule="plateau", patience=0), steps=1)
    second.restore(first.state())
    assert second.at(0) == first.at(0) == pytest.approx(1e-4)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_losses_against_numpy():
    a, b = array(3, 4, 5, seed=1), array(3, 4, 5, seed=2)
    ours, teacher = torch.from_numpy(a), torch.from_numpy(b)
    assert float(mse(ours, teacher, 2.0)) == pytest.approx(((a - b) ** 2).mean() / 2, rel=1e-5)
    p, q = softmax(b / 3), softmax(a / 3)
    assert float(kl(ours, teacher, 3.0)) == pytest.approx(9 * (p * np.log(p / q)).sum(-1).mean(), rel=1e-4)
    cosines = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    assert float(cosine(ours, teacher)) == pytest.approx(1 - cosines.mean(), rel=1e-5)


def test_inner_values_count_together_and_integers_do_not():
    ours = [torch.tensor([1.0, 3.0]), torch.tensor([1]), torch.tensor([2.0]), torch.tensor([4.0])]
    teacher = [torch.tensor([1.0, 1.0]), torch.tensor([5]), torch.tensor([1.0]), torch.tensor([1.0])]
    loss = loss_of(Tuning(inner=("a", "b"), inner_weight=0.5), [2.0, 1.0, 1.0, 3.0], outputs=2)
    assert float(loss(ours, teacher)) == pytest.approx(1.0 + 0.25 * 1.0 + 0.25 * 3.0)


def net(dims: list) -> ir.Model:
    return ir.from_proto(model([node("Relu", ["x"], ["y"])], {"x": dims}, ["y"]))


def samples(*shapes: tuple[int, ...]) -> list[Sample]:
    return [Sample({"x": array(*shape, seed=i)}, str(i)) for i, shape in enumerate(shapes)]


def test_rows_of_all_samples_make_the_batches():
    given = samples((3, 2), (4, 2), (1, 2))
    batches = Batches(given, net(["n", 2]), 3)
    assert (batches.rows, batches.steps) == (8, 3)
    first, again, second = ([b["x"] for b in batches.epoch(5, number)] for number in (0, 0, 1))
    assert [len(b) for b in first] == [3, 3, 2]
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(first, second, strict=True))
    rows = np.concatenate([s.feeds["x"] for s in given])
    for epoch in (first, second):
        found = np.concatenate(epoch)
        np.testing.assert_array_equal(found[np.lexsort(found.T)], rows[np.lexsort(rows.T)])
    np.testing.assert_array_equal(np.concatenate([b["x"] for b in batches.epoch(None)]), rows)


@pytest.mark.parametrize(("dims", "shapes"), [([2, 2], ((2, 2), (2, 2))), (["n", "m"], ((2, 2), (2, 3)))])
def test_samples_that_cannot_be_put_together_are_batches(dims: list, shapes: tuple):
    batches = Batches(samples(*shapes), net(dims), 8)
    assert batches.steps == 2 and [b["x"].shape for b in batches.epoch(None)] == list(shapes)


def test_rows_are_not_mixed_where_the_outputs_have_none():
    graph = ir.from_proto(model([node("ReduceMean", ["x"], ["y"], keepdims=0)], {"x": ["n", 2]}, ["y"]))
    assert Batches(samples((3, 2), (3, 2)), graph, 2).steps == 2


def test_no_samples_are_an_error():
    with pytest.raises(CalibrationError, match="no samples to tune on"):
        Batches([], net(["n", 2]), 2)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("speed=2",), "expected NAME=VALUE with NAME one of optimizer"),
        (("rate",), "expected NAME=VALUE"),
        (("rate=fast",), "rate='fast' is no float"),
        (("optimizer=lion",), "optimizer must be one of gd, sgd, adam, adamw"),
        (("epochs=-1",), "epochs must be 0 or more"),
        (("rate=nan",), "rate must be 0 or more"),
        (("rate=0",), "must be above 0"),
        (("momentum=1",), "momentum must be below 1"),
    ],
)
def test_settings_that_make_no_sense(words: tuple[str, ...], text: str):
    with pytest.raises(OptionError, match=text):
        parse(words)


def test_settings_in_words():
    found = parse(("optimizer=sgd", "rate=0.01", "weight-decay=1e-4", "inner=a,b", "keep-zeros=no", "epochs=3"))
    assert found == Tuning("sgd", 0.01, weight_decay=1e-4, inner=("a", "b"), keep_zeros=False, epochs=3)
