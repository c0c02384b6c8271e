"""Figures of outputs, against numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from graphopt.budget import Budget
from graphopt.errors import GraphoptError
from graphopt.quality import Quality, agreement, measure
from graphopt.verification import Sample
from graphopt.verification.original import Original
from tests.support import array


class Twice(Original):
    """y = 2 x; k, the place of the largest element."""

    output_names = ["y", "k"]

    def run_as(self, way: str, feeds: Mapping[str, Any]) -> dict[str, Any]:
        return {"y": 2 * feeds["x"], "k": np.asarray(feeds["x"].argmax(axis=-1))}


def samples(count: int = 3) -> list[Sample]:
    return [Sample({"x": array(2, 5, seed=i)}, f"sample {i}") for i in range(count)]


def test_the_same_is_the_same() -> None:
    found = measure(Twice(), samples(), Twice().run)
    assert found == Quality(0.0, 0.0, 1.0, pytest.approx(1.0), 1.0, 0.0)
    assert found.snr == math.inf
    assert found.within(Budget("snr", 200.0), False)


def test_distance_cosine_and_predictions() -> None:
    given = samples()

    def off(feeds: Mapping[str, Any]) -> dict[str, Any]:
        right = Twice().run(feeds)
        return right | {"y": right["y"] + (feeds["x"] is given[1].feeds["x"]) * np.array([0, 0, 0, 0, 3], np.float32)}

    found = measure(Twice(), given, off)
    a, b = off(given[1].feeds)["y"].astype(np.float64), 2 * given[1].feeds["x"].astype(np.float64)
    distance = np.linalg.norm(a - b) / np.linalg.norm(b)
    assert found.distance == pytest.approx(distance)
    assert found.mean_distance == pytest.approx(distance / math.sqrt(3))
    assert found.snr == pytest.approx(-20 * math.log10(distance))
    assert found.cosine == pytest.approx((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))
    assert found.top1 == pytest.approx(1 - int((a.argmax(1) != b.argmax(1)).sum()) / 6)
    assert found.within(Budget("loss", distance * 1.01), False)
    assert not found.within(Budget("loss", distance * 0.99), False)
    assert Quality.from_dict(found.to_dict()) == found


def test_elements_that_differ() -> None:
    def off(feeds: Mapping[str, Any]) -> dict[str, Any]:
        right = Twice().run(feeds)
        return right | {"k": right["k"] + np.array([0, 1])}

    assert measure(Twice(), samples(), off).flips == 0.5


@pytest.mark.parametrize("wrong", [np.zeros((2, 4), np.float32), np.full((2, 5), np.nan, np.float32), np.zeros((2, 5), np.float64)])
def test_what_cannot_be_compared_is_a_fault(wrong: np.ndarray) -> None:
    found = measure(Twice(), samples(), lambda feeds: Twice().run(feeds) | {"y": wrong})
    assert found.fault
    assert found.noise == math.inf
    assert not found.within(Budget("loss", 1e9), False)
    assert Quality.from_dict(found.to_dict()).noise == math.inf


def test_a_model_that_does_not_run_is_a_fault() -> None:
    def fails(feeds: Mapping[str, Any]) -> dict[str, Any]:
        raise GraphoptError("no memory")

    assert measure(Twice(), samples(), fails).fault == "no memory"


def test_the_metric_judges_where_it_is_to() -> None:
    good, bad = Quality(distance=9.0, metric=0.99, loss=0.01), Quality(distance=0.0, metric=0.5, loss=0.5)
    assert good.within(Budget("loss", 0.01), True)
    assert not good.within(Budget("loss", 0.01), False)
    assert not bad.within(Budget("loss", 0.01), True)
    assert not Quality().within(Budget("loss", 0.01), True)


def test_classes_of_pictures_lie_along_the_second_axis() -> None:
    a = np.zeros((1, 3, 2, 2), np.float32)
    a[:, 1] = 1
    b = a.copy()
    b[0, 2, 0, 0] = 5
    assert agreement(a, b) == (3, 4)
    assert agreement(np.zeros(4), np.zeros(4)) == (0, 0)
    assert agreement(np.zeros((4, 1), np.float32), np.zeros((4, 1), np.float32)) == (0, 0)
