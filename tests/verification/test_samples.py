"""The user's samples: what is read, and that each fault is one clear error."""

import numpy as np
import pytest

from graphopt.errors import InputError
from graphopt.verification import for_timing, load_samples
from tests.verification.small import F, I, S, const, graph_of, info, linear, model, node, weight


@pytest.fixture
def graph():
    return graph_of(linear(weight()))


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_a_file_and_a_folder(tmp_path, graph):
    x = np.ones((2, 4), np.float32)
    save(tmp_path / "b.npz", x=x * 2, label=np.array(3))
    save(tmp_path / "a.npz", x=x)
    (tmp_path / "readme.txt").write_text("not a sample")
    (one,) = load_samples(tmp_path / "b.npz", graph)
    assert list(one.feeds) == ["x"] and one.origin == "user: b.npz"
    both = load_samples(tmp_path, graph)
    assert [s.origin for s in both] == ["user: a.npz", "user: b.npz"]
    np.testing.assert_array_equal(both[1].feeds["x"], x * 2)


def test_strings_and_defaults(tmp_path):
    data = model(
        [node("Identity", ["s"], ["y"]), node("Add", ["x", "b"], ["z"])],
        [info("s", S, ["N"]), info("x", F, ["N"]), info("b", F, [1])],
        [info("y", S, ["N"]), info("z", F, ["N"])],
        [const("b", [1.0])],
    )
    (sample,) = load_samples(save(tmp_path / "s.npz", s=np.array(["a", "bc"]), x=np.ones(2, np.float32)), graph_of(data))
    assert sample.feeds["s"].dtype == object and set(sample.feeds) == {"s", "x"}


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.ones((2, 4))}, ["'x'", "float32", "float64"]),
        ({"x": np.ones((2, 4), np.float16)}, ["'x'", "float32", "float16"]),
        ({"x": np.ones((2, 2, 4), np.float32)}, ["'x'", "2 dimensions [N, 4]", "3 [2, 2, 4]"]),
        ({"x": np.ones((2, 5), np.float32)}, ["'x'", "expected 4 in dimension 1", "[2, 5]"]),
        ({"y": np.ones((2, 4), np.float32)}, ["'y'", "its inputs: x"]),
        ({"labels": np.ones(2)}, ["no array for input 'x'"]),
        ({"x": np.array([object()])}, ["'x'", "cannot be read"]),
    ],
)
def test_faults_in_a_file(tmp_path, graph, arrays, words):
    path = save(tmp_path / "bad.npz", **arrays)
    with pytest.raises(InputError) as caught:
        load_samples(path, graph)
    message = str(caught.value)
    assert "\n" not in message and "bad.npz" in message
    for word in words:
        assert word in message


def test_an_integer_is_not_cast_either(tmp_path):
    data = model([node("Gather", ["t", "ids"], ["y"])], [info("ids", I, ["N"])], [info("y")], [const("t", weight())])
    with pytest.raises(InputError, match="expected int64, found int32"):
        load_samples(save(tmp_path / "i.npz", ids=np.zeros(3, np.int32)), graph_of(data))


def test_faults_of_the_path(tmp_path, graph):
    with pytest.raises(InputError, match="no such samples"):
        load_samples(tmp_path / "none.npz", graph)
    with pytest.raises(InputError, match=r"no \.npz file"):
        load_samples(tmp_path, graph)
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(InputError, match=r"text\.npz"):
        load_samples(tmp_path / "text.npz", graph)
    whole = save(tmp_path / "whole.npz", x=np.ones((200, 4), np.float32)).read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cut\.npz"):
        load_samples(tmp_path / "cut.npz", graph)
    np.save(tmp_path / "one.npy", np.ones(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    with pytest.raises(InputError, match="single array"):
        load_samples(tmp_path / "one.npz", graph)


def test_the_largest_is_for_timing_and_the_smallest_beside_it(tmp_path, graph):
    for name, rows in (("a", 2), ("b", 8), ("c", 1)):
        save(tmp_path / f"{name}.npz", x=np.ones((rows, 4), np.float32))
    samples = load_samples(tmp_path, graph)
    assert [s.origin for s in for_timing(samples)] == ["user: b.npz", "user: c.npz"]
    assert [s.origin for s in for_timing(samples[:1])] == ["user: a.npz"]
