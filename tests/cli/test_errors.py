"""Every error of a user: exit code 2, one clear line on standard error, no traceback, nothing lost, nothing half-written."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from graphopt.cli import entry
from tests.cli.conftest import Cli, Outcome, convolution
from tests.support import array, model, node

FAST = ("--no-bench", "--passes", "eliminate-identity")


def is_one_clear_line(done: Outcome, *words: str) -> None:
    assert done.code == 2, done
    assert done.out == ""
    lines = done.err.splitlines()
    assert len(lines) == 1, done.err
    assert lines[0].startswith("graphopt: error: ")
    assert "Traceback" not in done.err
    for word in words:
        assert word in lines[0], done.err


def files(folder: Path) -> set[str]:
    """Everything in a folder, hidden leftovers too; not what Python, and ONNX Runtime when it is imported (.ses), leave."""
    ours = (p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts and p.name != ".ses")
    return {str(p.relative_to(folder)) for p in ours}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["m.onnx", "no such file"]),
        (b"", ["m.onnx"]),
        (b"hello", ["m.onnx"]),
        (bytes(range(256)) * 20, ["m.onnx"]),
        ("half", ["m.onnx"]),
    ],
    ids=["missing", "empty", "text", "noise", "truncated"],
)
@pytest.mark.parametrize("command", ["run", "inspect", "bench", "bisect"])
def test_files_that_are_no_model(cli: Cli, tmp_path: Path, command: str, content: bytes | str | None, words: list[str]) -> None:
    path = tmp_path / "m.onnx"
    if content is not None:
        whole = convolution().SerializeToString()
        path.write_bytes(whole[: len(whole) // 2] if isinstance(content, str) else content)
    before = files(tmp_path)
    is_one_clear_line(cli(command, path), *words)
    assert files(tmp_path) == before


@pytest.mark.parametrize("command", ["verify", "diff"])
def test_the_second_model_is_checked_too(cli: Cli, ok: Path, tmp_path: Path, command: str) -> None:
    (tmp_path / "bad.onnx").write_text("hello")
    is_one_clear_line(cli(command, ok, tmp_path / "bad.onnx"), "bad.onnx")
    is_one_clear_line(cli(command, ok, tmp_path / "none.onnx"), "none.onnx", "no such file")


def test_a_folder_is_no_model(cli: Cli, tmp_path: Path) -> None:
    is_one_clear_line(cli("run", tmp_path), str(tmp_path))


def test_external_data_missing(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(convolution(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tmp_path / "weights.bin").unlink()
    before = files(tmp_path)
    is_one_clear_line(cli("run", path, *FAST), "m.onnx", "weights.bin")
    assert files(tmp_path) == before


def test_an_operator_that_the_runtime_does_not_know(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    proto = convolution()
    proto.graph.node[2].op_type = "Zonk"
    proto.graph.node[2].domain = "example.com"
    proto.opset_import.append(onnx.helper.make_opsetid("example.com", 1))
    onnx.save(proto, path)
    for command in (["bench", path], ["verify", path, path]):
        is_one_clear_line(cli(*command), "m.onnx", "Zonk")
    done = cli("run", path, *FAST)  # it can be rewritten, but not proved
    assert done.code == 1
    assert "Zonk" in done.out
    assert "not verified" in done.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-o", "no/such/dir/x.onnx"], ["no/such/dir"]),
        (["-o", "."], ["folder"]),
        (["-o", "ok.onnx"], ["--in-place"]),
        (["--report", "r.txt"], ["r.txt", ".json", ".html"]),
        (["--report", "no/r.json"], ["no/r.json"]),
        (["--passes", "nope"], ["unknown pass 'nope'"]),
        (["--passes", "eliminate-identiti"], ["did you mean eliminate-identity"]),
        (["--passes", "a,,b"], ["--passes"]),
        (["--passes", ""], ["--passes"]),
        (["--skip", "nope"], ["unknown pass 'nope'"]),
        (["--set", "nope.x=1"], ["unknown pass 'nope'"]),
        (["--set", "eliminate-identity.nope=1"], ["eliminate-identity", "nope"]),
        (["--set", "what"], ["PASS.OPTION=VALUE"]),
        (["--preset", "nope"], ["nope"]),
        (["--preset", "none.toml"], ["none.toml"]),
        (["--preset", "bad.toml"], ["bad.toml"]),
        (["--preset", "unknown.toml"], ["unknown.toml", "step 1", "nope"]),
        (["--plugin", "none.py"], ["none.py", "no such file"]),
        (["--plugin", "no.such.module"], ["no.such.module"]),
        (["--plugin", "raises.py"], ["raises.py", "RuntimeError", "boom"]),
        (["--plugin", "exits.py"], ["exits.py", "SystemExit"]),
        (["--plugin", "empty.py"], ["empty.py", "no pass"]),
        (["--plugin", "syntax.py"], ["syntax.py", "SyntaxError"]),
        (["--samples", "none.npz"], ["none.npz"]),
        (["--samples", "name.npz"], ["name.npz", "'z'"]),
        (["--samples", "shape.npz"], ["shape.npz", "'x'", "[1, 3, 9, 8]"]),
        (["--samples", "dtype.npz"], ["dtype.npz", "'x'", "float64"]),
        (["--samples", "text.npz"], ["text.npz"]),
        (["--samples", "hollow"], ["hollow", ".npz"]),
        (["--calibration", "none.npz"], ["none.npz"]),
        (["--calibration", "shape.npz"], ["calibration"]),
        (["--provider", "nope"], ["nope"]),
        (["--provider", "tensorrt"], ["tensorrt"]),
        (["--shape", "x=0,0"], ["x=0,0"]),
        (["--shape", "x=-1,3,8,8"], ["x=-1,3,8,8"]),
        (["--shape", "x=a,b"], ["x=a,b"]),
        (["--shape", "x="], ["x="]),
        (["--shape", "x"], ["INPUT="]),
        (["--shape", "z=1"], ["z"]),
        (["--shape", "x=2,3,8,8"], ["x"]),
        (["--threads", "-3"], ["--threads"]),
        (["--threads", "many"], ["--threads"]),
        (["--threads", "100000000"], ["--threads"]),
        (["--verify", "maybe"], ["maybe"]),
        (["--tolerance", "-1"], ["--tolerance"]),
        (["--tolerance", "nan"], ["tolerance"]),
        (["--budget", "inf"], ["--budget"]),
        (["--seed", "-1"], ["--seed"]),
        (["--metric", "accuracy"], ["MODULE:FUNCTION"]),
        (["--metric", "none.py:f"], ["none.py"]),
        (["--metric", "raises.py:f"], ["RuntimeError", "boom"]),
        (["--metric", "empty.py:f"], ["no function f"]),
        (["--explain", "fuse-nothing"], ["fuse-nothing"]),
        (["--frobnicate"], ["--frobnicate"]),
        (["second.onnx"], ["second.onnx"]),
    ],
    ids=lambda v: " ".join(v)[:40] or "empty",
)
def test_requests_at_fault(
    cli: Cli, ok: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "raises.py").write_text("raise RuntimeError('boom')")
    (tmp_path / "exits.py").write_text("raise SystemExit('gone')")
    (tmp_path / "syntax.py").write_text("def def")
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "bad.toml").write_text("[[step]\n")
    (tmp_path / "unknown.toml").write_text('[[step]]\npass = "nope"\n')
    (tmp_path / "hollow").mkdir()
    np.savez(tmp_path / "name.npz", z=array(1, 3, 8, 8))
    np.savez(tmp_path / "shape.npz", x=array(1, 3, 9, 8))
    np.savez(tmp_path / "dtype.npz", x=array(1, 3, 8, 8, dtype="float64"))
    (tmp_path / "text.npz").write_text("hello")
    before, raw = files(tmp_path), ok.read_bytes()
    preset = [] if {"--preset", "--passes"} & set(arguments) else ["--passes", "eliminate-identity"]
    is_one_clear_line(cli("run", "ok.onnx", "--no-bench", *preset, *arguments), *words)
    assert files(tmp_path) == before
    assert ok.read_bytes() == raw


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--help"]),
        (["frobnicate"], ["frobnicate"]),
        (["run"], ["MODEL"]),
        (["verify", "a.onnx"], ["B"]),
        (["bench"], ["A"]),
        (["diff"], ["A"]),
        (["new-pass"], ["NAME"]),
        (["inspect", "--json=3", "x"], ["--json"]),
    ],
)
def test_usage(cli: Cli, arguments: list[str], words: list[str]) -> None:
    is_one_clear_line(cli(*arguments), *words)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_without_permission(cli: Cli, ok: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    is_one_clear_line(cli("run", ok, *FAST, "-o", locked / "o.onnx"), "locked")


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "o.onnx"), ["o.onnx", "No space left"]),
        (PermissionError(errno.EACCES, "Permission denied", "o.onnx"), ["o.onnx", "Permission denied"]),
        (MemoryError(), ["out of memory"]),
        (MemoryError("Unable to allocate 3 GiB"), ["out of memory", "3 GiB"]),
        (ZeroDivisionError("division by zero"), ["internal error", "ZeroDivisionError", "test_errors.py", "--debug"]),
        (AssertionError("two\nlines"), ["two lines"]),
    ],
)
def test_what_nobody_expected(cli: Cli, ok: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, words: list[str]) -> None:
    monkeypatch.setattr("graphopt.run.optimize", raising(error))
    is_one_clear_line(cli("run", ok), *words)


def test_disk_full_while_saving(cli: Cli, ok: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files(tmp_path)
    monkeypatch.setattr(os, "fsync", raising(OSError(errno.ENOSPC, "No space left on device")))
    is_one_clear_line(cli("run", ok, *FAST, "--verify", "off", "-o", tmp_path / "o.onnx"), "o.onnx", "no space left")
    assert files(tmp_path) == before


def test_disk_full_while_reporting(cli: Cli, ok: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.replace

    def replace(source: Any, target: Any) -> None:
        if str(target).endswith(".json"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    is_one_clear_line(cli("run", ok, *FAST, "--report", tmp_path / "r.json"), "r.json", "no space left")
    assert files(tmp_path) == {"ok.onnx", "ok.opt.onnx"}


def test_interrupted(cli: Cli, ok: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphopt.run.optimize", raising(KeyboardInterrupt()))
    done = cli("run", ok)
    assert done.code == 130
    assert len(done.err.splitlines()) == 1


def test_reader_of_the_output_is_gone(cli: Cli, ok: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphopt.cli.inspect.print_text", raising(BrokenPipeError()))
    done = cli("inspect", ok)
    assert done.code == 141
    assert done.err == ""


def test_debug_shows_the_traceback(cli: Cli, ok: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphopt.run.optimize", raising(ZeroDivisionError("division by zero")))
    for args, variable in ((("--debug", "run", ok), None), (("run", ok, "--debug"), None), (("run", ok), "1")):
        if variable:
            monkeypatch.setenv("GRAPHOPT_DEBUG", variable)
        done = cli(*args)
        assert done.code == 2
        assert "Traceback" in done.err
        assert done.err.splitlines()[-1].startswith("graphopt: error: internal error: ZeroDivisionError")


def test_control_characters_of_a_name_do_not_reach_the_terminal(cli: Cli, tmp_path: Path) -> None:
    done = cli("inspect", tmp_path / "a\x1b[31m\nb.onnx")
    is_one_clear_line(done)
    assert "\x1b" not in done.err


def test_exit_codes_of_system_exit() -> None:
    assert entry.explained(SystemExit(3)) == ("", 3)
    assert entry.explained(SystemExit(None)) == ("", 0)
    assert entry.explained(SystemExit("why")) == ("why", 2)


def process(*args: object, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "graphopt", *map(str, args)], capture_output=True, text=True, timeout=120, **more)


def test_as_processes(ok: Path, tmp_path: Path) -> None:
    for arguments in (["run", tmp_path / "none.onnx"], ["frobnicate"], ["bench"], ["run", ok, "--threads", "-3"]):
        done = process(*arguments)
        assert done.returncode == 2
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1


SLEEPER = """import sys, time
from dataclasses import dataclass
from graphopt import Pass
@dataclass(frozen=True)
class Sleeper(Pass):
    'Sleeps.'
    name = 'sleeper'
    def run(self, context):
        print('asleep', flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_as_a_process(ok: Path, tmp_path: Path, number: int, code: int) -> None:
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    (tmp_path / "tmp").mkdir()
    before = files(tmp_path)
    command = [sys.executable, "-m", "graphopt", "run", str(ok), "--plugin", str(tmp_path / "sleeper.py"), "--passes", "sleeper"]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}

    def listening() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell starts what it runs in the background deaf to it

    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, preexec_fn=listening, **pipes) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "asleep\n"
        running.send_signal(number)
        _, err = running.communicate(timeout=30)
    assert running.returncode == code
    assert len(err.splitlines()) <= 1
    assert "Traceback" not in err
    assert files(tmp_path) == before
    assert not [p for p in (tmp_path / "tmp").iterdir() if p.is_dir()]


def test_no_room_as_a_process(ok: Path, tmp_path: Path) -> None:
    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))

    before, raw = files(tmp_path), ok.read_bytes()
    for extra in ((), ("--in-place",)):
        done = process("run", ok, *FAST, "--verify", "off", *extra, preexec_fn=small)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert done.stderr.startswith("graphopt: error: ")
        assert files(tmp_path) == before
        assert ok.read_bytes() == raw


def test_a_closed_pipe_as_a_process(ok: Path) -> None:
    command = f"{sys.executable} -m graphopt inspect {ok}; echo $? >&2"
    done = subprocess.run(["bash", "-c", f"({command}) | true"], capture_output=True, text=True, timeout=120)
    assert done.stderr.split() in (["141"], ["0"])  # 0: it had written all before the reader went


def test_many_names_are_read(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "two.onnx"
    onnx.save(model([node("Add", ["a=b", "c"], ["y"])], {"a=b": ["n"], "c": ["n"]}, ["y"]), path)
    done = cli("run", path, *FAST, "--shape", "a=b=3", "--shape", "c=3", "--json")
    assert done.code == 0, done.err
    assert {"a=b": [3], "c": [3]} in done.json["verification"]["sizes"]
