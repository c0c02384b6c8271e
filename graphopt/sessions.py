"""A file of session settings beside a model, `MODEL.session.json`, and sessions that are made with it.

Where a model runs faster with other settings than the runtime's own (one of its optimizers off, fewer threads), a run
writes them beside the model. The file says which model they belong to, so that one left beside another model is noticed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt import runtime
from graphopt.errors import GraphoptError, InputError, OptionError, OutputError
from graphopt.formats import write_text
from graphopt.settings import Settings

if TYPE_CHECKING:
    import onnxruntime as ort

_FORMAT = "graphopt session settings"
_VERSION = 1
_PART = 4 << 20  # bytes at either end of a model's file that its digest covers: the nodes, and some of the weights


@dataclass(frozen=True)
class SessionFile:
    """What stands beside a model.

    Attributes:
        settings: how to make its session.
        model: "bytes" and "digest" of the model's file.
        target: where they were measured: "runtime" (version of ONNX Runtime), "provider", "device", "threads", "isa".
        speed: what they gained there over a session without them: "ratio", "low", "high", "pairs".
    """

    settings: Settings
    model: dict[str, Any]
    target: dict[str, Any] = field(default_factory=dict)
    speed: dict[str, Any] = field(default_factory=dict)

    @property
    def provider(self) -> str:
        return str(self.target.get("provider", "cpu"))

    def to_json(self) -> str:
        return json.dumps(
            {
                "format": _FORMAT,
                "version": _VERSION,
                "model": self.model,
                "target": self.target,
                "speed": self.speed,
                "settings": self.settings.to_dict(),
            },
            indent=2,
            ensure_ascii=False,
        ) + "\n"  # fmt: skip


def settings_path(model: str | os.PathLike) -> Path:
    """Where the settings of a model stand: `fast.session.json` for `fast.onnx`."""
    path = Path(model)
    return path.with_name(f"{path.stem}.session.json")


def identity(model: str | os.PathLike) -> dict[str, Any]:
    """How a model's file is recognized: its size, and a digest of its size, its beginning and its end.

    The settings depend on the graph, not on the values of the weights: so files of any size are recognized at once.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with open(model, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.sha256(f"{size}\n".encode() + file.read(_PART))
            if size > _PART:
                file.seek(max(_PART, size - _PART))
                digest.update(file.read(_PART))
    except OSError as error:
        raise InputError(f"{os.fspath(model)}: {error.strerror or error}") from None
    return {"bytes": size, "digest": f"sha256:{digest.hexdigest()}"}


def read_settings(model: str | os.PathLike) -> SessionFile | None:
    """The settings beside a model, None where there are none.

    Raises:
        GraphoptError: the file is none of settings, or its settings belong to another model.
    """
    path = settings_path(model)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise GraphoptError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise GraphoptError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(data, dict) or data.get("format") != _FORMAT:
        raise GraphoptError(f"{path}: not a file of session settings")
    if data.get("version") != _VERSION:
        raise GraphoptError(f"{path}: of version {data.get('version')!r}; this graphopt reads version {_VERSION}")
    parts = [data.get(key, {}) for key in ("model", "target", "speed")]
    if not all(isinstance(part, dict) for part in parts):
        raise GraphoptError(f"{path}: model, target and speed must be objects")
    try:
        found = SessionFile(Settings.from_dict(data.get("settings")), *parts)
    except ValueError as error:
        raise GraphoptError(f"{path}: {error}") from None
    if found.model != identity(model):
        raise GraphoptError(f"{path}: belongs to another model, or the model was changed since; remove it, or optimize the model again")
    return found


def write_settings(model: str | os.PathLike, settings: Settings, target: Mapping[str, Any], speed: Mapping[str, Any]) -> Path:
    """Write the settings of a model beside it; returns where.

    Raises:
        OutputError: it cannot be written.
    """
    path = settings_path(model)
    write_text(path, SessionFile(settings, identity(model), dict(target), dict(speed)).to_json())
    return path


def remove_settings(model: str | os.PathLike) -> None:
    """Remove the settings beside a model that is about to be replaced.

    Raises:
        OutputError: it cannot be removed.
    """
    path = settings_path(model)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be removed: {error.strerror or error}") from None


def check_settings_path(model: str | os.PathLike) -> None:
    """Raises OutputError where what stands in the place of a model's settings is something else, which must not be lost."""
    path = settings_path(model)
    if not os.path.lexists(path):
        return
    try:
        ours = json.loads(path.read_text(encoding="utf-8"))["format"] == _FORMAT
    except (OSError, ValueError, TypeError, KeyError):
        ours = False
    if not ours:
        raise OutputError(f"{path}: stands where the settings of {Path(model).name} go, and is none; rename it or the output")


def session(
    path: str | os.PathLike,
    *,
    provider: str | None = None,
    threads: int | None = None,
    level: str | None = None,
    disabled_optimizers: Sequence[str] | None = None,
    config: Mapping[str, str] | None = None,
) -> ort.InferenceSession:
    """A session of ONNX Runtime on a model, with the settings that stand beside it; with none, a plain one.

    Args:
        path: the model; its settings are in `MODEL.session.json`, see `graphopt run`.
        provider: execution provider; the one that the settings were measured on without it. On another one the
            settings are not used.
        threads: threads within an operator, instead of those of the settings; 0: every usable core.
        level: of the runtime's graph optimizations ("disabled", "basic", "extended", "layout", "all"), instead.
        disabled_optimizers: names of the runtime's optimizers to switch off, instead.
        config: further entries of the session's configuration, over those of the settings.

    Raises:
        GraphoptError: the model does not load, or the settings are malformed or those of another model.
    """
    beside = read_settings(path)
    settings = Settings()
    if beside is not None and (provider is None or runtime.same_provider(provider, beside.provider)):
        provider, settings = beside.provider, beside.settings
    changes = {"threads": threads, "level": level, "disabled": None if disabled_optimizers is None else tuple(disabled_optimizers)}
    settings = replace(settings, **{key: value for key, value in changes.items() if value is not None})
    # Nobody else's work waits for the threads of a session that serves: they may spin as the runtime has them do.
    settings = replace(settings, config={"session.force_spinning_stop": "0", **settings.config, **(config or {})})
    try:
        Settings.from_dict(settings.to_dict())
    except ValueError as error:
        raise OptionError(str(error)) from None
    return runtime.session(path, threads=settings.threads, provider=provider or "cpu", settings=settings)
