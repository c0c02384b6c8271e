"""Progress goes to standard error, late, and never where it is not wanted."""

import io
import time

import pytest

from graphopt.reporting.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_short_stage_shows_nothing():
    out = Terminal()
    with Progress(file=out).stage("verify", 10) as stage:
        stage.advance()
    assert out.getvalue() == ""


def test_a_long_stage_shows_a_bar():
    out = Terminal()
    with Progress(file=out, delay=0.05).stage("verify [/x]", 10) as stage:
        stage(5)
        time.sleep(0.6)
    assert "verify [/x]" in out.getvalue()


def test_quiet():
    out = Terminal()
    with Progress(quiet=True, file=out, delay=0.0).stage("verify") as stage:
        stage(1, 2)
        time.sleep(0.1)
    assert out.getvalue() == "" and (stage.done, stage.total) == (1, 2)


def test_a_file_gets_plain_lines_now_and_then():
    out = io.StringIO()
    with Progress(file=out, line_every=0.1).stage("bench", 8) as stage:
        stage(3)
        time.sleep(0.35)
    lines = out.getvalue().splitlines()
    assert 1 <= len(lines) <= 4
    assert lines[0] == "bench: 3 of 8, 0 s"


def test_stages_within_stages_and_after_errors():
    out = Terminal()
    progress = Progress(file=out, delay=0.05)
    with progress.stage("outer"), progress.stage("inner"):
        time.sleep(0.4)
    assert "outer" in out.getvalue() and "inner" not in out.getvalue()
    with pytest.raises(KeyError), progress.stage("fails"):
        raise KeyError
    with progress.stage("after"):
        time.sleep(0.4)
    assert "after" in out.getvalue()


def test_nothing_on_standard_output(capsys):
    with Progress(line_every=0.05).stage("bench"):
        time.sleep(0.15)
    captured = capsys.readouterr()
    assert captured.out == "" and "bench" in captured.err
