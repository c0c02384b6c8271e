"""Which shares are tried, and which of them is taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphopt.compression.gradual import gradual
from graphopt.compression.search import MOST, Trial, search


def table(loss, ratio=lambda share: 1 + 2 * share, noise: float = 0.01):
    """Trials whose loss and speed are functions of the share."""

    def attempt(share: float) -> Trial:
        speed = ratio(share)
        return Trial(share, loss(share), speed, speed - noise, speed + noise, round(1e6 * (1 - share)), Path(f"{share}"), {})

    return attempt


@pytest.mark.parametrize("edge", [0.1, 0.37, 0.61, 0.85])
def test_the_largest_share_within_the_budget_is_found(edge):
    found = search(table(lambda s: 0.0 if s <= edge else 1.0), budget=0.01)
    assert found.best is not None and edge - 0.03 < found.best.share <= edge


def test_the_smallest_share_that_is_fast_enough_is_found():
    found = search(table(lambda s: s / 10), budget=0.08, target=1.8)
    assert found.best is not None and 1.8 <= found.best.ratio < 1.88


def test_a_target_that_the_budget_forbids_gives_the_fastest_within_it():
    found = search(table(lambda s: s), budget=0.2, target=2.5)
    assert found.best is not None and 0.17 < found.best.share <= 0.2 and found.best.ratio < 2.5


def test_nothing_within_the_budget():
    found = search(table(lambda s: 1.0), budget=0.5)
    assert found.best is None and len(found.trials) == 6 and min(t.share for t in found.trials) < 0.02


def test_a_loss_that_is_no_number_is_never_within():
    assert search(table(lambda s: float("nan")), budget=1.0).best is None


def test_of_trials_as_fast_as_each_other_the_smaller_model_is_taken():
    found = search(table(lambda s: 0.0, ratio=lambda s: 1.0, noise=0.1), budget=0.1)
    assert found.best is not None and found.best.share == max(t.share for t in found.trials) > MOST - 0.1


def test_a_model_that_is_slower_beyond_noise_is_not_taken_for_being_smaller():
    found = search(table(lambda s: 0.0, ratio=lambda s: 2.0 if s < 0.5 else 1.2), budget=0.1)
    assert found.best is not None and found.best.share < 0.5


def test_trials_are_bounded():
    assert len(search(table(lambda s: s), budget=0.3, trials=3).trials) == 3


def steps(loss, ratio=lambda share: 1 + 2 * share):
    """As `table`, for steps out of other trials; with a list of what began where."""
    made, attempt = [], table(loss, ratio)

    def step(share: float, start: Trial | None) -> Trial:
        made.append((round(share, 3), None if start is None else round(start.share, 3)))
        return attempt(share)

    return step, made


def test_each_step_begins_where_the_one_before_ended():
    attempt, made = steps(lambda s: 0.0)
    found = gradual(attempt, budget=0.01)
    assert made == [(0.25, None), (0.6, 0.25), (0.9, 0.6)] and found.best is not None and found.best.share == MOST


def test_a_step_that_costs_too_much_is_undone_and_halved():
    attempt, made = steps(lambda s: 0.0 if s <= 0.45 else 0.5)
    found = gradual(attempt, budget=0.01, trials=5)
    assert made == [(0.25, None), (0.6, 0.25), (0.425, 0.25), (0.688, 0.425), (0.556, 0.425)]
    assert found.best is not None and found.best.share == pytest.approx(0.425) and len(found.trials) == 5


def test_a_step_within_the_budget_that_costs_more_than_its_share_is_not_gone_on_from():
    attempt, made = steps(lambda s: 0.008 if s > 0.5 else 0.0)
    found = gradual(attempt, budget=0.01, trials=3)
    assert made == [(0.25, None), (0.6, 0.25), (0.425, 0.25)]
    assert found.best is not None and found.best.share == pytest.approx(0.6)


def test_it_ends_where_the_target_is_reached():
    attempt, made = steps(lambda s: 0.0)
    found = gradual(attempt, budget=0.01, target=1.9)
    assert len(made) == 2 and found.best is not None and found.best.ratio == pytest.approx(2.2)


def test_it_ends_where_steps_are_too_short():
    attempt, made = steps(lambda s: 1.0)
    assert gradual(attempt, budget=0.01, trials=50).best is None
    assert [share for share, _ in made] == [0.25, 0.125, 0.062, 0.031]
