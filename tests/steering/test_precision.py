"""The search for what goes back to float, on tables of noise and time."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from graphopt.placement.cut import Costs, Crossing, cheapest
from graphopt.steering.precision import Held, guess, order, prefixes, search, tradeoffs


def total(saves: dict[int, float]):
    return lambda held: sum(v for n, v in saves.items() if n not in held)


def additive(noise: dict[int, float], allowed: float):
    return lambda held: sum(v for n, v in noise.items() if n not in held) <= allowed


def test_most_noise_for_the_least_time_goes_first() -> None:
    assert order({0: 1.0, 1: 4.0, 2: 4.0, 3: 0.0}, {0: 1.0, 1: 2.0, 2: 8.0, 3: 1.0}) == [1, 0, 2, 3]
    assert order({0: 1.0, 1: 0.1}, {0: 1.0, 1: 0.0})[0] == 1  # it saves nothing
    assert order({0: math.inf, 1: 5.0}, {0: 1.0, 1: 1.0}) == [0, 1]


def test_a_guess_from_noise_that_adds_up() -> None:
    noise = {0: 10.0, 1: 3.0, 2: 1.0, 3: 1.0}
    assert guess([0, 1, 2, 3], noise, 2.0) == 2
    assert guess([0, 1, 2, 3], noise, 100.0) == 0
    assert guess([0, 1, 2, 3], noise, 0.5) == 4
    assert guess([0, 1], {0: math.inf, 1: math.inf}, 1.0) == 2


@pytest.mark.parametrize("seed", range(20))
def test_close_to_the_best_there_is(seed: int) -> None:
    """Ten units, beside all 1024 choices: within the budget always, and not far from the one that saves most."""
    r = np.random.default_rng(seed)
    noise = {i: float(v) for i, v in enumerate(r.exponential(1.0, 10) ** 2)}
    saves = {i: float(v) for i, v in enumerate(r.exponential(1.0, 10))}
    inside = additive(noise, 0.3 * sum(noise.values()))
    found = search(prefixes(order(noise, saves)), total(saves), inside)
    assert inside(found.best)
    choices = (frozenset(c) for k in range(11) for c in itertools.combinations(range(10), k))
    best = max(sum(v for i, v in saves.items() if i not in c) for c in choices if inside(c))
    assert sum(v for i, v in saves.items() if i not in found.best) >= 0.85 * best
    assert found.complete


def test_one_culprit_is_found_in_few_trials() -> None:
    noise = dict.fromkeys(range(64), 1e-06) | {17: 1.0}
    saves = dict.fromkeys(noise, 1.0)
    ranked = order(noise, saves)
    found = search(prefixes(ranked), total(saves), additive(noise, 1e-3), start=guess(ranked, noise, 1e-3))
    assert found.best == {17}
    assert len(found.points) < 10


def test_what_the_order_is_wrong_about_is_tried_again() -> None:
    """Only 5 is to blame, whatever was measured alone: all that went back with it is narrowed again."""
    noise = {i: float(10 - i) for i in range(8)}
    saves = dict.fromkeys(noise, 1.0)
    found = search(prefixes(order(noise, saves)), total(saves), lambda held: 5 in held)
    assert found.best == {5}


def test_it_is_bounded() -> None:
    noise = dict.fromkeys(range(100), 1.0)
    found = search(prefixes(list(noise)), total(noise), lambda held: len(held) > 97, trials=4)
    assert len(found.points) == 4
    assert not found.complete
    assert len(found.best) > 97
    ticks = itertools.count()
    found = search(prefixes(list(noise)), total(noise), lambda held: len(held) > 50, seconds=3, clock=lambda: next(ticks))
    assert not found.complete
    assert len(found.best) > 50


def test_nothing_but_everything_is_within() -> None:
    found = search(prefixes([0, 1, 2]), total(dict.fromkeys(range(3), 1.0)), lambda held: False)
    assert found.best == {0, 1, 2}
    assert not any(p.inside for p in found.points)


def test_one_unit() -> None:
    assert search(prefixes([3]), total({3: 1.0}), lambda held: pytest.fail("there is nothing to try")).best == {3}


def chain(count: int, conversion: float) -> Costs:
    """Units in a row, each 2 ms in float and 1 ms narrow; values between them are converted where the precision changes."""
    return Costs(dict.fromkeys(range(count), 2.0), dict.fromkeys(range(count), 1.0), in_a_row(count, conversion))


def in_a_row(count: int, ms: float) -> tuple[Crossing, ...]:
    return tuple(Crossing(f"v{i}", i - 1 if i else None, (i,) if i < count else (), i == count, ms, ms) for i in range(count + 1))


def priced(costs: Costs):
    def choose(penalties: dict[int, float]) -> Held:
        return cheapest(Costs(costs.in_float, {n: v + penalties.get(n, 0.0) for n, v in costs.narrow.items()}, costs.crossings))

    return choose


def test_conversions_count_where_units_go_back() -> None:
    """Two loud units with a quiet one between them, whose conversions cost more than it gains: all three go back."""
    costs = chain(9, 0.7)
    noise = dict.fromkeys(range(9), 1e-4) | {3: 1.0, 5: 1.0}
    steps = tradeoffs(range(9), noise, priced(costs), costs.total(()))
    assert steps[0] == frozenset()
    assert steps[-1] == frozenset(range(9))
    assert all(a < b for a, b in itertools.pairwise(steps))
    assert frozenset({3, 4, 5}) in steps
    found = search(steps, lambda held: costs.total(()) - costs.total(frozenset(range(9)) - held), additive(noise, 0.01))
    assert found.best == {3, 4, 5}


@pytest.mark.parametrize("seed", range(8))
def test_close_to_the_best_with_conversions(seed: int) -> None:
    r = np.random.default_rng(seed)
    narrow = {i: float(v) for i, v in enumerate(r.exponential(1.0, 10))}
    costs = Costs({i: v * float(r.uniform(1.2, 4)) for i, v in narrow.items()}, narrow, in_a_row(10, 0.3))
    noise = {i: float(v) for i, v in enumerate(r.exponential(1.0, 10) ** 2)}
    inside = additive(noise, 0.3 * sum(noise.values()))
    everything = frozenset(range(10))

    def saved(held: Held) -> float:
        return costs.total(()) - costs.total(everything - held)

    found = search(tradeoffs(range(10), noise, priced(costs), costs.total(())), saved, inside)
    assert inside(found.best)
    choices = (frozenset(c) for k in range(11) for c in itertools.combinations(range(10), k))
    best = max(saved(c) for c in choices if inside(c))
    assert saved(found.best) >= 0.8 * best


def test_units_that_break_the_outputs_go_back_first() -> None:
    costs = chain(4, 0.0)
    steps = tradeoffs(range(4), {0: 1e-3, 1: math.inf, 2: 1e-3, 3: 2e-3}, priced(costs), costs.total(()))
    assert steps[1] == {1}
    assert tradeoffs([0, 1], {0: math.inf, 1: 0.0}, priced(chain(2, 0.0)), 4.0)[-1] == {0, 1}
