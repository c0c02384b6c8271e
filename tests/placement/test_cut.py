"""The minimum cut beside all subsets, and what a conversion counts for."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from graphopt.placement.cut import Costs, Crossing, cheapest, crossing_cost


def best(costs: Costs) -> float:
    units = list(costs.in_float)
    return min(costs.total(chosen) for n in range(len(units) + 1) for chosen in itertools.combinations(units, n))


@pytest.mark.parametrize("seed", range(150))
def test_no_subset_is_cheaper(seed: int) -> None:
    rng = random.Random(seed)
    n = rng.randint(1, 8)
    crossings = []
    for i in range(rng.randint(0, 10)):
        producer = rng.choice([None, *range(n)])
        readers = tuple(r for r in rng.sample(range(n), rng.randint(0, min(n, 4))) if r != producer)
        crossings.append(Crossing(f"v{i}", producer, readers, rng.random() < 0.4, rng.random(), rng.random()))
    costs = Costs({i: 3 * rng.random() for i in range(n)}, {i: 3 * rng.random() for i in range(n)}, tuple(crossings), rest=1.0)
    chosen = cheapest(costs)
    assert costs.total(chosen) == pytest.approx(best(costs))
    for unit in range(n):
        assert costs.saves(unit, chosen) == pytest.approx(costs.total(chosen - {unit}) - costs.total(chosen | {unit}))


def test_a_value_is_converted_once_however_many_read_it() -> None:
    down = Crossing("v", None, (0, 1, 2), False, down=5.0, up=0.0)
    assert crossing_cost(down, frozenset({0})) == crossing_cost(down, frozenset({0, 1, 2})) == 5.0
    assert crossing_cost(down, frozenset()) == 0.0
    # Each alone would not pay for the conversion, together they do.
    assert cheapest(Costs(dict.fromkeys(range(3), 3.0), dict.fromkeys(range(3), 1.0), (down,))) == {0, 1, 2}
    assert cheapest(Costs({0: 3.0}, {0: 1.0}, (Crossing("v", None, (0,), False, 5.0, 0.0),))) == frozenset()


def test_a_narrow_result_is_dequantized_once_where_anything_reads_it_in_float() -> None:
    up = Crossing("v", 0, (1, 2), True, down=7.0, up=2.0)
    assert crossing_cost(up, frozenset({0, 1, 2})) == crossing_cost(up, frozenset({0})) == 2.0
    assert crossing_cost(up, frozenset({1})) == 7.0
    inner = Crossing("v", 0, (1,), False, down=7.0, up=2.0)
    assert crossing_cost(inner, frozenset({0, 1})) == 0.0


def test_a_unit_that_loses_stays_between_those_that_gain() -> None:
    chain = (Crossing("a", 0, (1,), False, 4.0, 4.0), Crossing("b", 1, (2,), False, 4.0, 4.0))
    assert cheapest(Costs({0: 9.0, 1: 1.0, 2: 9.0}, {0: 1.0, 1: 2.0, 2: 1.0}, chain)) == {0, 1, 2}
    assert cheapest(Costs({0: 9.0, 1: 1.0, 2: 9.0}, {0: 1.0, 1: 12.0, 2: 1.0}, chain)) == {0, 2}


def test_of_choices_that_cost_the_same_the_one_with_less_on_integers() -> None:
    assert cheapest(Costs({0: 1.0, 1: 2.0, 2: 0.0}, {0: 1.0, 1: 1.0, 2: 0.0})) == {1}
    assert cheapest(Costs({}, {})) == frozenset()


def test_what_cannot_be_in_float_is_not() -> None:
    crossing = Crossing("v", None, (0,), False, down=50.0, up=0.0)
    assert cheapest(Costs({0: math.inf, 1: 1.0}, {0: 1.0, 1: 5.0}, (crossing,))) == {0}
    assert cheapest(Costs({0: 9.0}, {0: math.inf})) == frozenset()


def test_thousands_of_units() -> None:
    n = 2000
    crossings = tuple(Crossing(f"v{i}", i, (i + 1,), False, 0.3, 0.3) for i in range(n - 1))
    costs = Costs(dict.fromkeys(range(n), 1.0), {i: 0.5 + (i // 100 % 2) for i in range(n)}, crossings)
    assert cheapest(costs) == {i for i in range(n) if i // 100 % 2 == 0}
