"""Tuning: each optimizer against arithmetic by hand, what is tuned and what is not, trouble, and going on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt.errors import InputError
from graphopt.recovery.tuning import Tuned, Tuning, tune
from graphopt.verification import Sample
from tests.support import array, model, node, session

pytest.importorskip("torch")

PLAIN = {"schedule": "constant", "clip": 0.0, "stop_after": 0, "batch": 1000}


def linear(weight: np.ndarray, **more) -> onnx.ModelProto:
    return model([node("MatMul", ["x", "w"], ["y"])], {"x": ["n", len(weight)]}, ["y"], {"w": weight}, **more)


def cnn(seed: int) -> onnx.ModelProto:
    nodes = [node("Conv", ["x", "w1", "b1"], ["c"], pads=[1, 1, 1, 1]), node("Relu", ["c"], ["r"]),
             node("GlobalAveragePool", ["r"], ["g"]), node("Flatten", ["g"], ["f"]), node("MatMul", ["f", "w2"], ["y"])]  # fmt: skip
    weights = {"w1": array(6, 3, 3, 3, seed=seed), "b1": array(6, seed=seed + 1), "w2": array(6, 4, seed=seed + 2)}
    return model(nodes, {"x": ["n", 3, 6, 6]}, ["y"], weights)


def samples(*shape: int, count: int = 4, seed: int = 50) -> list[Sample]:
    return [Sample({"x": array(*shape, seed=seed + i)}, str(i)) for i in range(count)]


def tuned(student: onnx.ModelProto, teacher: onnx.ModelProto, given: list[Sample], **settings) -> tuple[dict[str, np.ndarray], Tuned]:
    """The weights after a tuning, and what became of it."""
    graph = ir.from_proto(student)
    options = {k: settings.pop(k) for k in ("checkpoint", "stage") if k in settings}
    done = tune(graph, ir.from_proto(teacher), given, settings.pop("judged", given), Tuning(**settings), threads=1, **options)
    return {n: v.const_value.numpy() for n, v in graph.graph.initializers.items()}, done


# --- optimizers by hand ---------------------------------------------------------------------------------------------


def gradients(given: list[Sample], weight: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Of mean((xw - xt)^2) / var(xt) in double precision."""
    x = np.concatenate([s.feeds["x"] for s in given]).astype(np.float64)
    wanted = x @ target
    return 2 * x.T @ (x @ weight - wanted) / wanted.size / wanted.var()


def by_hand(kind: str, given: list[Sample], weight: np.ndarray, target: np.ndarray, steps: int, decay: float) -> np.ndarray:
    w, first, second = weight.astype(np.float64), 0.0, 0.0
    for step in range(1, steps + 1):
        g = gradients(given, w, target)
        if kind == "adamw":
            w = w * (1 - 0.05 * decay)
        else:
            g = g + decay * w
        if kind in ("adam", "adamw"):  # Kingma and Ba 2015, algorithm 1
            first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g * g
            w = w - 0.05 * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        else:
            first = g if step == 1 else 0.8 * first + g
            w = w - 0.05 * (g if kind == "gd" else first)
    return w


@pytest.mark.parametrize("kind", ["gd", "sgd", "adam", "adamw"])
def test_steps_are_those_of_the_optimizer(kind: str):
    weight, target, given = array(5, 3, seed=1), array(5, 3, seed=2), samples(4, 5)
    found, done = tuned(linear(weight), linear(target), given, optimizer=kind, rate=0.05, momentum=0.8, weight_decay=0.1, epochs=4, **PLAIN)
    assert done.epochs == 4 and done.after < done.before
    np.testing.assert_allclose(found["w"], by_hand(kind, given, weight, target, 4, 0.1), rtol=1e-5, atol=1e-6)


def test_gradient_descent_is_by_all_samples_whatever_the_batch():
    weight, target, given = array(5, 3, seed=1), array(5, 3, seed=2), samples(4, 5)
    settings = PLAIN | {"optimizer": "gd", "rate": 0.05, "epochs": 3}
    whole, _ = tuned(linear(weight), linear(target), given, **settings)
    parts, _ = tuned(linear(weight), linear(target), given, **settings | {"batch": 3})
    np.testing.assert_allclose(whole["w"], parts["w"], rtol=1e-5, atol=1e-6)


def test_a_long_gradient_is_clipped():
    weight, target, given = array(5, 3, seed=1), 100 * array(5, 3, seed=2), samples(4, 5)
    gradient = gradients(given, weight, target)
    found, _ = tuned(linear(weight), linear(target), given, optimizer="gd", rate=0.5, epochs=1, **PLAIN | {"clip": 1e-3})
    np.testing.assert_allclose(found["w"], weight - 0.5e-3 * gradient / np.linalg.norm(gradient), rtol=1e-5, atol=1e-6)


# --- what comes of it -----------------------------------------------------------------------------------------------


def test_a_student_comes_close_to_its_teacher():
    teacher = cnn(1)
    weights, done = tuned(cnn(7), teacher, samples(8, 3, 6, 6), judged=samples(8, 3, 6, 6, seed=90), rate=0.03, epochs=60, batch=8)
    assert done.after < 0.1 * done.before and done.untouched == [] and len(done.history) == done.epochs
    student = cnn(7)
    for initializer in student.graph.initializer:
        initializer.CopyFrom(onnx.numpy_helper.from_array(weights[initializer.name], initializer.name))
    feeds = {"x": array(8, 3, 6, 6, seed=333)}
    far, wanted, close = (session(m).run(None, feeds)[0] for m in (cnn(7), teacher, student))
    assert np.square(close - wanted).mean() < 0.2 * np.square(far - wanted).mean()


def test_the_best_weights_are_kept_and_it_stops_where_nothing_gains():
    teacher = cnn(1)
    weights, done = tuned(teacher, teacher, samples(4, 3, 6, 6), rate=0.3, epochs=50, stop_after=3, schedule="constant")
    assert (done.ended, done.epochs, done.after) == ("no-progress", 3, done.before)
    np.testing.assert_array_equal(weights["w1"], array(6, 3, 3, 3, seed=1))


def test_what_a_caller_may_override_and_other_types_stay():
    weights = {"w": array(5, 3, seed=1), "v": array(5, 3, seed=4), "h": array(5, 3, seed=5).astype(np.float64)}
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("MatMul", ["x", "v"], ["b"]), node("Add", ["a", "b"], ["c"]),
             node("Cast", ["x"], ["d"], to=11), node("MatMul", ["d", "h"], ["e"]), node("Cast", ["e"], ["f"], to=1),
             node("Add", ["c", "f"], ["y"])]  # fmt: skip
    student = model(nodes, {"x": ["n", 5]}, ["y"], weights, overridable=("v",))
    found, _ = tuned(student, linear(array(5, 3, seed=2)), samples(4, 5), epochs=2, stop_after=0)
    assert (found["w"] != weights["w"]).all()
    np.testing.assert_array_equal(found["v"], weights["v"])
    np.testing.assert_array_equal(found["h"], weights["h"])


def test_zeros_stay_where_they_are_there_on_purpose():
    weight = array(5, 3, seed=1)
    weight[:3] = 0
    given = {"epochs": 3, "stop_after": 0, "rate": 0.01}
    kept, _ = tuned(linear(weight), linear(array(5, 3, seed=2)), samples(4, 5), **given)
    free, _ = tuned(linear(weight), linear(array(5, 3, seed=2)), samples(4, 5), keep_zeros=False, **given)
    assert (kept["w"][:3] == 0).all() and (kept["w"][3:] != weight[3:]).all() and (free["w"][:3] != 0).all()


def test_inner_values_are_made_alike():
    teacher, student = cnn(1), cnn(1)
    student.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(array(6, 3, 3, 3, seed=9), "w1"))

    def distance(**settings) -> float:
        found, _ = tuned(student, teacher, samples(8, 3, 6, 6), rate=0.02, epochs=30, batch=8, stop_after=0, **settings)
        return float(np.square(found["w1"] - array(6, 3, 3, 3, seed=1)).mean())

    assert distance(inner=("c",), inner_weight=10.0) < 0.5 * distance()
    with pytest.raises(InputError, match="there is no value 'nowhere'"):
        distance(inner=("nowhere",))


# --- BatchNormalization ---------------------------------------------------------------------------------------------


def normed(mean: np.ndarray, var: np.ndarray) -> onnx.ModelProto:
    nodes = [node("Conv", ["x", "w"], ["c"]), node("BatchNormalization", ["c", "s", "b", "mean", "var"], ["y"])]
    weights = {"w": array(4, 3, 1, 1), "s": np.ones(4, np.float32), "b": np.zeros(4, np.float32), "mean": mean, "var": var}
    return model(nodes, {"x": ["n", 3, 6, 6]}, ["y"], weights)


def test_statistics_stay_follow_or_are_taken_anew():
    mean, var = array(4, seed=8), np.abs(array(4, seed=9)) + 0.5
    given = samples(16, 3, 6, 6, count=2)
    off = normed(mean + 1, var * 3)
    wanted = np.concatenate([session(model([node("Conv", ["x", "w"], ["y"])], {"x": ["n", 3, 6, 6]}, ["y"], {"w": array(4, 3, 1, 1)}))
                             .run(None, s.feeds)[0] for s in given])  # fmt: skip
    true_mean, true_var = wanted.mean((0, 2, 3)), wanted.var((0, 2, 3))
    settings = {"epochs": 1, "rate": 1e-9, "batch": 64, "stop_after": 0}
    frozen, _ = tuned(off, normed(true_mean, true_var), given, normalization="frozen", **settings)
    np.testing.assert_array_equal(frozen["mean"], mean + 1)
    anew, done = tuned(off, normed(true_mean, true_var), given, normalization="re-estimated", **settings)
    np.testing.assert_allclose(anew["mean"], true_mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(anew["var"], true_var, rtol=2e-2)
    assert done.after < 1e-3 * done.before
    moved, _ = tuned(off, normed(true_mean, true_var), given, normalization="training", **settings)
    np.testing.assert_allclose(moved["mean"], 0.9 * (mean + 1) + 0.1 * true_mean, rtol=1e-4, atol=1e-5)


# --- trouble, and going on ------------------------------------------------------------------------------------------


def test_a_divergence_is_backed_off_from():
    found, done = tuned(cnn(7), cnn(1), samples(4, 3, 6, 6), optimizer="sgd", rate=1e18, clip=0.0, epochs=30, stop_after=0)
    assert done.backoffs == 4 and done.ended == "diverged" and done.after == done.before
    np.testing.assert_array_equal(found["w1"], array(6, 3, 3, 3, seed=7))


def test_a_tenth_of_the_rate_may_do():
    _, done = tuned(
        linear(array(5, 3, seed=1)), linear(array(5, 3, seed=2)), samples(4, 5), optimizer="sgd", rate=50.0, momentum=0.0, clip=0.0,
        schedule="constant", epochs=600, stop_after=0, batch=16,
    )  # fmt: skip
    assert 0 < done.backoffs < 4 and done.after < 1e-3 * done.before


def test_a_graph_that_cannot_be_differentiated_is_named():
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Greater", ["a", "zero"], ["g"], name="threshold"), node("Cast", ["g"], ["y"], to=1)]
    graph = model(nodes, {"x": ["n", 5]}, ["y"], {"w": array(5, 3), "zero": np.zeros(3, np.float32)})
    with pytest.raises(InputError, match=r"no gradient reaches the weights: Greater \(threshold\) cannot be differentiated"):
        tuned(graph, graph, samples(4, 5))
    plain = model([node("Relu", ["x"], ["y"])], {"x": ["n", 5]}, ["y"])
    with pytest.raises(InputError, match="no float32 weights"):
        tuned(plain, plain, samples(4, 5))


class Interrupted(Exception):
    """As when somebody pulls the plug."""


class Stage:
    """Interrupts a tuning when so many epochs are done."""

    def __init__(self, at: int) -> None:
        self.at = at

    def describe(self, text: str) -> None:
        """Nothing to show."""

    def __call__(self, done: int, total: int) -> None:
        if done == self.at:
            raise Interrupted


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_an_interrupted_tuning_goes_on_bit_for_bit(optimizer: str, tmp_path: Path):
    settings = {"optimizer": optimizer, "rate": 0.02, "epochs": 8, "schedule": "plateau", "patience": 0, "batch": 3}
    whole, straight = tuned(cnn(7), cnn(1), samples(5, 3, 6, 6), **settings)
    file = tmp_path / "tuning.pt"
    with pytest.raises(Interrupted):
        tuned(cnn(7), cnn(1), samples(5, 3, 6, 6), checkpoint=file, stage=Stage(5), **settings)
    assert file.exists()
    again, done = tuned(cnn(7), cnn(1), samples(5, 3, 6, 6), checkpoint=file, **settings)
    assert done.history == straight.history and done.after == straight.after and not file.exists()
    for name, weight in whole.items():
        np.testing.assert_array_equal(weight, again[name])


def test_the_checkpoint_of_another_tuning_is_not_gone_on_from(tmp_path: Path):
    file = tmp_path / "tuning.pt"
    with pytest.raises(Interrupted):
        tuned(cnn(7), cnn(1), samples(5, 3, 6, 6), checkpoint=file, stage=Stage(3), epochs=5)
    _, done = tuned(cnn(8), cnn(1), samples(5, 3, 6, 6), checkpoint=file, epochs=2)
    _, fresh = tuned(cnn(8), cnn(1), samples(5, 3, 6, 6), epochs=2)
    assert done.history == fresh.history
