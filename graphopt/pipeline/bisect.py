"""Finds the application at fault in a candidate that failed a test, and the best candidate without it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from graphopt.pipeline.runner import Application, Candidate, Hold


@dataclass(frozen=True)
class Culprit:
    """What was found at fault.

    Attributes:
        pass_name: the pass.
        label: the node that the application was made at; None where the whole pass was rolled back.
        reason: what the test said of the candidate with it.
    """

    pass_name: str
    label: str | None
    reason: str


@dataclass
class Search:
    """The result of `without_culprits`.

    Attributes:
        candidate: a candidate that passed.
        culprits: what had to be left out, in the order in which it was found.
        trials: how many candidates were tested.
    """

    candidate: Candidate
    culprits: list[Culprit] = field(default_factory=list)
    trials: int = 0


def without_culprits(
    build: Callable[[Hold], Candidate],
    test: Callable[[Candidate], str | None],
    failing: Candidate,
    reason: str,
    *,
    singles: int = 3,
) -> Search:
    """Bisect over all applications, hold the one at fault back, and go on until a candidate passes.

    The passes are deterministic, so the run that stops before application n is a prefix of the run that does not: the
    first n whose inclusion makes the test fail is found in log2(applications) runs. A pass that is at fault again, and
    every pass once `singles` applications were held back, is rolled back whole. The search ends, at the latest with
    nothing applied at all.

    Args:
        build: runs the pipeline with a `Hold`.
        test: None where the candidate is right, otherwise what is wrong with it.
        failing: the candidate that failed, and `reason`, what the test said.
        singles: how many applications are held back one by one.
    """
    search = Search(failing)
    hold = failing.hold
    blamed: set[str] = set()
    while True:
        culprit, reason_there = _first_bad(build, test, search, search.candidate, hold, reason)
        if culprit is None:
            # Wrong even with nothing applied: it is not the passes' doing.
            search.candidate = build(replace(hold, limit=0))
            search.culprits.append(Culprit("(none)", None, reason))
            return search
        if culprit.pass_name in blamed or len(hold.applications) >= singles:
            hold = replace(hold, passes=hold.passes | {culprit.pass_name}, applications=frozenset())
            search.culprits.append(Culprit(culprit.pass_name, None, reason_there))
        else:
            blamed.add(culprit.pass_name)
            hold = replace(hold, applications=hold.applications | {culprit.number})
            search.culprits.append(Culprit(culprit.pass_name, culprit.label, reason_there))
        search.candidate = build(hold)
        search.trials += 1
        verdict = test(search.candidate)
        if verdict is None:
            return search
        reason = verdict


def _first_bad(
    build: Callable[[Hold], Candidate],
    test: Callable[[Candidate], str | None],
    search: Search,
    failing: Candidate,
    hold: Hold,
    reason: str,
) -> tuple[Application | None, str]:
    """The first application whose inclusion makes the test fail, and what the test says there."""
    numbers = [a.number for a in failing.applications]
    low, high = 0, len(numbers)  # with the first `low` applied it passes (checked at 0 below), with `high` it fails
    seen_at_high = reason
    search.trials += 1
    if test(build(replace(hold, limit=0))) is not None:
        return None, reason
    while high - low > 1:
        middle = (low + high) // 2
        search.trials += 1
        verdict = test(build(replace(hold, limit=numbers[middle - 1] + 1)))
        if verdict is None:
            low = middle
        else:
            high, seen_at_high = middle, verdict
    return (failing.applications[high - 1], seen_at_high) if numbers else (None, reason)
