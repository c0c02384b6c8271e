"""The journal of a search: what is taken over, what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphopt.errors import OutputError
from graphopt.quality import Quality
from graphopt.steering.journal import Journal

GOOD, BAD = Quality(0.1, 0.05, 0.99, 0.995, 0.5), Quality(float("inf"), float("inf"), 0.0, 0.0, fault="NaN")


def write(path: Path, key: str = "k") -> None:
    journal = Journal(path, key)
    journal.put("alone", [3], GOOD)
    journal.put("held", [1, 2], BAD)
    journal.close()


def test_measurements_are_taken_over(tmp_path: Path) -> None:
    write(tmp_path / "j")
    journal = Journal(tmp_path / "j", "k")
    assert (journal.taken, journal.stale) == (2, "")
    assert journal.get("alone", [3]) == GOOD
    assert journal.get("held", [2, 1]) == BAD
    assert journal.get("held", [3]) is None
    journal.put("held", [3], GOOD)
    journal.close()
    assert Journal(tmp_path / "j", "k").taken == 3


def test_another_key_begins_anew(tmp_path: Path) -> None:
    write(tmp_path / "j")
    journal = Journal(tmp_path / "j", "another")
    assert journal.taken == 0
    assert "was of another model" in journal.stale
    journal.close()
    assert Journal(tmp_path / "j", "k").taken == 0


def test_a_line_that_was_cut_off_is_measured_again(tmp_path: Path) -> None:
    write(tmp_path / "j")
    data = (tmp_path / "j").read_bytes()
    (tmp_path / "j").write_bytes(data[:-20])
    journal = Journal(tmp_path / "j", "k")
    assert journal.taken == 1
    journal.put("held", [1, 2], BAD)
    journal.close()
    assert (tmp_path / "j").read_bytes() == data


@pytest.mark.parametrize("text", ["my notes\n", "{}\n", '["graphopt.search"]\n'])
def test_another_file_is_not_touched(tmp_path: Path, text: str) -> None:
    (tmp_path / "j").write_text(text)
    with pytest.raises(OutputError, match="is none"):
        Journal(tmp_path / "j", "k")
    assert (tmp_path / "j").read_text() == text


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="journal"):
        Journal(tmp_path / "none" / "j", "k")
    with pytest.raises(OutputError, match="journal"):
        Journal(tmp_path, "k")


def test_without_a_file_nothing_is_written() -> None:
    journal = Journal(None, "k")
    journal.put("held", [1], GOOD)
    assert journal.get("held", [1]) == GOOD
    journal.close(remove=True)
