"""The ONNX backend node tests through the importer: each case of a float or int operator passes, or is listed with the reason."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.importing.node_cases import all_cases, counted, out_of_scope, run_case
from tests.importing.node_cases_failing import FAILING

torch = pytest.importorskip("torch")

_CHUNKS = 16
_DOC = Path(__file__).parents[2] / "docs" / "torch_import.md"


@pytest.mark.parametrize("chunk", range(_CHUNKS))
def test_cases_pass_or_are_listed(chunk: int) -> None:
    torch.set_num_threads(1)
    wrong, mended = {}, []
    for name in counted()[chunk::_CHUNKS]:
        problem = run_case(name)
        if problem and name not in FAILING:
            wrong[name] = problem
        if not problem and name in FAILING:
            mended.append(name)
    assert not wrong, "\n".join(f"{name}: {problem}" for name, problem in wrong.items())
    assert not mended, f"these pass and must be taken off the list of those that do not: {mended}"


def test_the_list_names_cases_that_count_and_says_why() -> None:
    assert set(FAILING) <= set(counted())
    assert all(reason.strip() for reason in FAILING.values())


def test_the_share_that_passes_is_what_the_docs_say() -> None:
    total = len(counted())
    passing = total - len(FAILING)
    share = 100 * passing / total
    print(f"{passing} of {total} cases of float and int operators pass ({share:.1f} %)")
    stated = re.search(r"\*\*(\d+) of (\d+)\*\* cases of float and int operators pass \((\d+\.\d) %\)", _DOC.read_text())
    assert stated, f"{_DOC} does not state the share"
    assert (int(stated[1]), int(stated[2]), stated[3]) == (passing, total, f"{share:.1f}")
    assert share >= 97


def test_what_does_not_count_is_stated_in_the_docs() -> None:
    reasons: dict[str, int] = {}
    for case in all_cases().values():
        reason = out_of_scope(case)
        if reason:
            reasons[reason] = reasons.get(reason, 0) + 1
    text = _DOC.read_text()
    missing = [row for reason, count in reasons.items() if (row := f"| {reason} | {count} |") not in text]
    assert not missing, missing
